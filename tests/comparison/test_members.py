"""Members of the line-up: named, sized to the same FLOPs per byte, and not edited under the same name."""

import sys

import pytest
from runkit import dataset

from hnet_cli.comparison.members import line_up
from hnet_cli.comparison.plan import ComparisonRequest, choose
from hnet_cli.data.dataset import Dataset
from hnet_cli.errors import EnvironmentLimit, UsageError
from hnet_cli.training.lineup import members as defaults


def test_members_are_sized_to_the_first_and_a_double_to_twice_that(arena):
    dataset = Dataset.open(arena / "dataset")
    members, flops = line_up(["1stage", "bpe-2x"], "nano", dataset, None, [], {})
    assert [member.name for member in members] == ["1stage", "transformer-2x"]
    assert [member.learned for member in members] == [True, False]
    assert members[0].flops_per_byte == pytest.approx(flops, rel=0.05)
    assert members[1].flops_per_byte == pytest.approx(2 * flops, rel=0.2)
    assert members[0].layout.startswith("m")


def test_a_member_that_needs_a_missing_package_is_left_out_unless_it_was_asked_for(tmp_path, monkeypatch, capsys):
    folder = dataset(tmp_path)
    monkeypatch.setitem(sys.modules, "tokenizers", None)  # as if it were not installed
    plan = choose(ComparisonRequest(folder, bytes=400_000, run=tmp_path / "c", device="cpu"))
    assert [member.name for member in plan.members] == [name for name in defaults("text") if name != "transformer"]
    assert "left out: transformer: " in capsys.readouterr().err
    for names in ("bpe", "1stage,bpe-2x", "1stage,transformer"):
        with pytest.raises(EnvironmentLimit, match="tokenizers") as error:
            choose(ComparisonRequest(folder, names, bytes=400_000, run=tmp_path / "d", device="cpu"))
        assert error.value.exit_code == 69
        assert str(error.value).startswith(names.split(",")[-1])
    with pytest.raises(EnvironmentLimit, match="no member of the line-up"):
        line_up(["bpe"], "nano", Dataset.open(folder), None, [], {}, asked=False)


def test_an_edited_file_is_refused_where_it_was_decided_before(arena):
    dataset, file = Dataset.open(arena / "dataset"), arena / "learned.yaml"
    before = {"learned": arena / "fixed.yaml"}
    with pytest.raises(UsageError, match=r"learned\.yaml is not what .*model\.chunker is learned"):
        line_up([str(file)], "nano", dataset, 1e5, [], before)
