"""Members of the line-up: named, sized to the same FLOPs per byte, and not edited under the same name."""

import pytest

from hnet_cli.comparison.members import line_up
from hnet_cli.data.dataset import Dataset
from hnet_cli.errors import UsageError


def test_members_are_sized_to_the_first_and_a_double_to_twice_that(arena):
    dataset = Dataset.open(arena / "dataset")
    members, flops = line_up(["1stage", "bpe-2x"], "nano", dataset, None, [], {})
    assert [member.name for member in members] == ["1stage", "transformer-2x"]
    assert [member.learned for member in members] == [True, False]
    assert members[0].flops_per_byte == pytest.approx(flops, rel=0.05)
    assert members[1].flops_per_byte == pytest.approx(2 * flops, rel=0.2)
    assert members[0].layout.startswith("m")


def test_an_edited_file_is_refused_where_it_was_decided_before(arena):
    dataset, file = Dataset.open(arena / "dataset"), arena / "learned.yaml"
    before = {"learned": arena / "fixed.yaml"}
    with pytest.raises(UsageError, match=r"learned\.yaml is not what .*model\.chunker is learned"):
        line_up([str(file)], "nano", dataset, 1e5, [], before)
