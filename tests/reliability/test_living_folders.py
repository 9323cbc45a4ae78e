"""Folders that others change, replace or delete while they are in use, and folders that are somebody's."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from commands import hnet
from runkit import dataset, fox, metrics, tiny, when

from hnet_cli import modality
from hnet_cli.data.prepare import preparation
from hnet_cli.errors import BusyError, DamagedError
from hnet_cli.training.loop import train

CONFIG = tiny("train.steps=8", "train.eval_every=2", "train.eval_bytes=4096")


def made_anew(data: Path) -> None:
    """With another text, as `hnet prepare --overwrite` does."""
    text = data.parent / "other.txt"
    text.write_text("Quite another text, of other words and another length.\n" * 300)
    preparation.prepare([text], modality.get("text"), data, val=0.3, measure=False, overwrite=True)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("undisturbed")
    dataset(place)
    train(CONFIG, place / "dataset", place / "run")
    return place


@pytest.mark.parametrize("meddle", [made_anew, shutil.rmtree], ids=["made anew", "deleted"])
def test_a_training_goes_on_with_the_dataset_it_opened(
    meddle: Callable[[Path], None], undisturbed: Path, tmp_path: Path
) -> None:
    data = shutil.copytree(undisturbed / "dataset", tmp_path / "dataset")
    train(CONFIG, data, tmp_path / "run", listen=when("eval", 4, lambda: meddle(data)))
    assert metrics(tmp_path / "run") == metrics(undisturbed / "run")


@pytest.mark.parametrize("name", ["shard-00000.bin", "documents.bin"])
@pytest.mark.filterwarnings("ignore:.*was written to")
def test_a_training_ends_clearly_where_its_data_are_cut_or_changed(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hnet_cli.data.dataset.TABLE_BYTES", 0)  # as of a table too large for memory
    data = dataset(tmp_path)

    def cut() -> None:
        os.truncate(data / name, 10)

    with pytest.raises(DamagedError, match=name):
        train(CONFIG, data, tmp_path / "run", listen=when("eval", 4, cut))
    assert (tmp_path / "run" / "checkpoints" / "step-00000004").exists(), "what was saved is there"


def test_a_hard_linked_copy_of_a_run_goes_on_alone(undisturbed: Path, tmp_path: Path) -> None:
    run, copy = undisturbed / "run", undisturbed / "copy"
    subprocess.run(["cp", "-al", run, copy], check=True)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    train(tiny("train.steps=10", "train.eval_every=2"), undisturbed / "dataset", copy, resume=True)
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("name", "code", "word"),
    [
        ("SIGTERM", 143, "hnet: ended by SIGTERM"),
        ("SIGHUP", 129, "hnet: ended by SIGHUP"),
        ("SIGINT", 130, "hnet: interrupted"),
    ],
)
@pytest.mark.parametrize("writer", ["segment", "prepare", "convert"])
def test_a_signal_while_output_is_written_leaves_nothing(
    writer: str, name: str, code: int, word: str, undisturbed: Path, tmp_path: Path
) -> None:
    place = tmp_path / "place"
    place.mkdir()
    fox(tmp_path, 40_000).rename(tmp_path / "long.txt")
    run, out = undisturbed / "run", place / "out"
    arguments = {
        "segment": ["segment", tmp_path / "long.txt", "--model", run, "--out", out, "--format", "jsonl"],
        "prepare": ["prepare", tmp_path / "long.txt", "--modality", "text", "--out", out],
        "convert": ["convert", run, out],
    }[writer]
    process = hnet(*arguments, stderr=tmp_path / "stderr")
    process.wait_for(lambda: any(place.iterdir()), "writing")
    process.send(signal.Signals[name])
    assert process.wait() in (code, 0)
    if process.code:
        assert process.error.splitlines()[-1] == word
        assert [path.name for path in place.iterdir() if path.name.startswith(".") or writer == "segment"] == []
    else:
        assert writer != "segment", "it takes seconds"


def test_checkpoints_behind_a_link_are_not_pruned_for_another_run(undisturbed: Path, tmp_path: Path) -> None:
    """The copy of a run shares its checkpoints by a link: it writes beside them, and removes its own."""
    shared, said = tmp_path / "shared", list[str]()
    shutil.copytree(undisturbed / "run", tmp_path / "a")
    (tmp_path / "a" / "checkpoints").rename(shared)
    (tmp_path / "a" / "checkpoints").symlink_to(shared)
    (shared / "step-00000020").mkdir()
    (shared / "step-00000020" / "notes").write_text("somebody's")
    shutil.copytree(tmp_path / "a", tmp_path / "b", symlinks=True)
    before = {path: path.read_bytes() for path in shared.rglob("*") if path.is_file()}

    def listen(kind: str, record: dict[str, Any]) -> None:
        if kind == "warning":
            said.append(record["message"])

    more = tiny("train.steps=20", "train.checkpoint_every=2", "train.keep_checkpoints=2", "train.eval_every=0")
    with pytest.raises(BusyError, match="another run"):
        train(more, undisturbed / "dataset", tmp_path / "b", resume=True, listen=listen)
    assert {path: path.read_bytes() for path in before} == before
    own = {path.name for path in shared.iterdir()} - {path.relative_to(shared).parts[0] for path in before}
    assert own == {"step-00000016", "step-00000018"}
    assert any("is a link" in message for message in said)


@pytest.mark.parametrize("name", ["metrics.jsonl", "latest", "report.html", "tokenizer.json"])
@pytest.mark.parametrize("resume", [False, True])
def test_a_folder_with_files_of_somebody_becomes_no_run(
    name: str, resume: bool, undisturbed: Path, tmp_path: Path
) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / name).write_text("mine")
    with pytest.raises(BusyError, match=f"a file {name}"):
        train(CONFIG, undisturbed / "dataset", tmp_path / "site", resume=resume)
    assert (tmp_path / "site" / name).read_text() == "mine"
