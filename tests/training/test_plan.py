"""Plans: what is chosen for the user, what is refused, and what is said."""

from dataclasses import replace

import pytest
from rowkit import PAIRS, rows_dataset
from runkit import dataset

from hnet_cli.config.run import resolve
from hnet_cli.distributed.device import GIB, Machine
from hnet_cli.errors import EnvironmentLimit, InputError
from hnet_cli.training import plan as planning


@pytest.fixture
def plan(data, tmp_path, monkeypatch):
    """Plan of `small` on the dataset of the tests, on a CPU."""
    monkeypatch.chdir(tmp_path)
    return planning.choose("small", data, None, [], resume=False, device="cpu")


def on(plan, gib, *settings, device="cpu", **changes):
    config = resolve("2stage-xl", list(settings))
    return replace(plan, config=config, machine=Machine(device, int(gib * GIB), "made up"), **changes)


def test_the_rest_is_chosen(data, plan, capsys):
    assert str(plan.run) == "runs/dataset-small"
    assert plan.config.data == str(data)
    assert isinstance(plan.config.train.micro_batches, int)
    default = planning.choose(None, data, None, [], resume=False, device="cpu")
    assert default.config.name == "nano"
    assert "Preset: nano (the default for text on cpu)" in capsys.readouterr().err
    facts = planning.facts(plan)
    assert facts["bytes"] == plan.config.train.steps * plan.config.train.batch_bytes
    assert facts["epochs"] == pytest.approx(facts["bytes"] / plan.dataset["splits"]["train"]["bytes"])
    assert sum(facts["parameters_by_part"].values()) == facts["parameters"]


def test_rows_longer_than_a_sequence_are_counted(tmp_path, capsys):
    data = rows_dataset(tmp_path / "rows", [*PAIRS, ("many words " * 30 + "\n", "x"), ("x\n", "many words " * 30)])
    for value, said in ((64, True), (512, False)):
        settings = [f"train.sequence_length={value}", f"train.batch_bytes={4 * value}"]
        planning.choose("nano", data.path, tmp_path / "run", settings, resume=False, device="cpu")
        err = capsys.readouterr().err
        assert ("rows are longer than train.sequence_length, 64 bytes; they are cut from the left" in err) == said


TEXTS = {"chinese": "敏捷的棕色狐狸跳过了懒狗。\n", "code": "def f(x):\n    return x + 1\n", "dna": ">a\nACGTTGCA\n"}
NAMES = {"chinese": "a.txt", "code": "a.py", "dna": "a.fa"}


@pytest.mark.parametrize("kind", TEXTS)
def test_the_preset_follows_the_modality_of_the_data(kind, tmp_path, capsys):
    (tmp_path / NAMES[kind]).write_text(TEXTS[kind] * 1000)
    folder = dataset(tmp_path, tmp_path / NAMES[kind], kind=kind)
    settings = ["train.sequence_length=64", "train.batch_bytes=256"]
    plan = planning.choose(None, folder, tmp_path / "run", settings, resume=False, device="cpu")
    assert plan.config.name == f"nano-{kind}"
    assert f"Preset: nano-{kind} (the default for {kind} on cpu)" in capsys.readouterr().err


def test_a_folder_without_a_dataset_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"has no dataset\.json"):
        planning.dataset_at(tmp_path)
    with pytest.raises(InputError, match="does not exist"):
        planning.dataset_at(tmp_path / "none")
    with pytest.raises(InputError, match="no dataset under data/"):
        planning.newest_dataset()


def test_what_does_not_fit_is_refused_with_advice(plan):
    with pytest.raises(EnvironmentLimit, match=r"2stage-xl .* needs about .* has 1 GiB free") as error:
        planning.refuse_what_cannot_fit(on(plan, 1))
    assert error.value.hint == "no preset fits; free some memory" or error.value.hint.startswith("presets that fit: ")
    with pytest.raises(EnvironmentLimit) as error:
        planning.refuse_what_cannot_fit(on(plan, 40, "train.micro_batches=1"))
    advice = error.value.hint
    pieces = int(advice.removeprefix("--set train.micro_batches=").split()[0])
    planning.refuse_what_cannot_fit(on(plan, 40, f"train.micro_batches={pieces}"))
    with pytest.raises(EnvironmentLimit):
        planning.refuse_what_cannot_fit(on(plan, 40, f"train.micro_batches={pieces // 2}"))


def test_shards_are_advised_where_they_would_fit(plan):
    with pytest.raises(EnvironmentLimit) as error:
        planning.refuse_what_cannot_fit(on(plan, 70, "train.micro_batches=64", ranks=8))
    assert "--set train.shard=full would fit" in error.value.hint
