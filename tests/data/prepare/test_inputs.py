"""Files, folders and standard input, full of traps."""

from __future__ import annotations

import gzip
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from corpuskit import Lines, make, text, tree

from hnet_cli import modality
from hnet_cli.data.dataset import Dataset
from hnet_cli.data.prepare.detection import detect
from hnet_cli.data.prepare.inputs import InputFile, expand
from hnet_cli.data.prepare.preparation import prepare
from hnet_cli.errors import BusyError, InputError
from hnet_cli.modality import Document, Refused, Source
from hnet_cli.storage import discard


class Grown(Lines):
    """Writes to its file while reading it."""

    def documents(self, source: Source) -> Iterator[Document | Refused]:
        yield from super().documents(source)
        with open(source.name, "ab") as file:
            file.write(b"more\n")


def test_folders_full_of_traps(tmp_path: Path) -> None:
    source = tree(tmp_path / "in", 3)
    (source / "loop").symlink_to(source)
    (source / "dangling").symlink_to(tmp_path / "nowhere")
    os.mkfifo(source / "fifo")
    (source / ".hidden").write_bytes(text(9))
    (source / "empty folder").mkdir()
    (source / "archive.zip").write_bytes(b"PK\x03\x04" + bytes(100))
    for name in (b"caf\xe9", b"new\nline", b"\x1b[31mred"):
        Path(os.fsdecode(os.fsencode(source) + b"/" + name)).write_bytes(text(4))
    summary, dataset = make(tmp_path / "out", source)
    assert {reason: count for reason, (count, _, _) in summary.refused.items()} == {
        "link to a folder read already": 1,
        "link to nothing": 1,
        "device, pipe or socket": 1,
        "hidden file or folder": 1,
        "zip archive: unpack it first": 1,
    }
    assert summary.bytes == sum(len(text(n)) for n in range(3)) + 3 * len(text(4))
    for entry in dataset.about["sources"]:
        assert entry["name"].isprintable()
    for document in range(summary.documents):
        assert dataset.name(document).isascii()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_unreadable_files(tmp_path: Path) -> None:
    source = tree(tmp_path / "in", 3)
    (source / "001.txt").chmod(0)
    summary, _ = make(tmp_path / "out", source)
    assert list(summary.refused) == ["unreadable: permission denied"]
    with pytest.raises(InputError, match="permission denied"):
        make(tmp_path / "out2", source / "001.txt")


def test_missing_empty_and_busy_places(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(text(1))
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match="none does not exist"):
        make(tmp_path / "out", tmp_path / "none")
    with pytest.raises(InputError, match=r"nothing to use in .*folder"):
        make(tmp_path / "out", tmp_path / "folder")
    with pytest.raises(BusyError, match="cannot create"):
        make(tmp_path / "x" / "out", tmp_path / "x")
    make(tmp_path / "out", tmp_path / "x")
    with pytest.raises(BusyError, match="exists already"):
        make(tmp_path / "out", tmp_path / "x")
    make(tmp_path / "out", tmp_path / "x", overwrite=True)
    assert sorted(os.listdir(tmp_path)) == ["folder", "out", "x"]


def test_a_file_that_changes_while_read(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(text(1))
    with pytest.raises(InputError, match="x changed while it was read"):
        prepare([tmp_path / "x"], Grown(), tmp_path / "out", measure=False)
    assert os.listdir(tmp_path) == ["x"]


def test_standard_input(tmp_path: Path) -> None:
    program = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from corpuskit import Lines; from hnet_cli.data.prepare.preparation import prepare\n"
        "print(prepare(['-'], Lines(), sys.argv[2], measure=False).bytes)"
    )
    for number, data in enumerate([text(1), gzip.compress(text(1))]):
        kits, out = Path(__file__).parents[2] / "kits", tmp_path / f"out{number}"
        command = [sys.executable, "-c", program, str(kits), str(out)]
        done = subprocess.run(command, input=data, capture_output=True, check=True)
        assert int(done.stdout) == len(text(1))
    assert Dataset.open(tmp_path / "out0").about["sources"][0]["size"] == len(text(1))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["text", "code"])
def test_a_folder_of_1200_levels(tmp_path: Path, kind: str) -> None:
    """Deeper than Python's stack."""
    here = os.open(".", os.O_RDONLY)
    top = tmp_path / "top"
    top.mkdir()
    try:
        os.chdir(top)
        for _ in range(1200):
            os.mkdir("d")
            os.chdir("d")
        Path("deep.py").write_text("print('at the bottom')\n" * 100)
    finally:
        os.chdir(here)
        os.close(here)
    (top / "flat.py").write_text("print('at the top')\n" * 100)
    try:
        summary = prepare([top], modality.get(kind), tmp_path / "out", val=0.5, measure=False)
        assert summary.documents == 2
    finally:
        discard(top)  # pytest cannot


SAME = "the same file as one read already"


@pytest.mark.parametrize(
    ("inputs", "again"),
    [
        (["in", "in"], 3),
        (["in", "in/001.txt", "./in/002.txt", "other/../in"], 5),
        (["in/001.txt", "in"], 1),
        (["in", "links"], 3),
        (["links", "in"], 3),
        (["in", "linked folder"], 3),
        (["in", "in/001.txt", "a link"], 2),
        (["hard", "in"], 3),
        ([".", "in"], None),
    ],
)
def test_a_file_is_read_once_whatever_its_names(
    inputs: list[str], again: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tree(tmp_path / "in", 3)
    for folder in ("other", "links", "hard"):
        (tmp_path / folder).mkdir()
    for file in sorted(source.iterdir()):
        (tmp_path / "links" / f"z{file.name}").symlink_to(file)
        (tmp_path / "hard" / file.name).hardlink_to(file)
    (tmp_path / "links" / "loop").symlink_to("loop")
    (tmp_path / "linked folder").symlink_to(source)
    (tmp_path / "a link").symlink_to("linked folder/002.txt")
    monkeypatch.chdir(tmp_path)
    summary, dataset = make(tmp_path / "out", *map(Path, inputs))
    assert summary.bytes == sum(file.stat().st_size for file in source.iterdir())
    assert len(dataset.about["sources"]) == 3
    if again is not None:
        assert summary.refused[SAME][0] == again


def test_a_link_to_a_held_out_file_is_not_trained_on(tmp_path: Path) -> None:
    source = tree(tmp_path / "in", 10)
    (source / "z.txt").symlink_to("003.txt")
    (source / "h.txt").hardlink_to(source / "003.txt")
    (tmp_path / "val").symlink_to(source / "003.txt")
    summary, dataset = make(tmp_path / "out", source, val_inputs=[tmp_path / "val", source / "z.txt"])
    assert b"".join(dataset.documents("val")) == text(3)
    assert text(3) not in b"".join(dataset.documents("train"))
    assert summary.notes == {"files held out by --val-input, so not trained on": 3}
    assert summary.refused[SAME][0] == 1


def test_files_that_a_disk_gives_no_numbers_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """File systems over a network: every file has inode 0, or two have one number."""
    source, fstat = tree(tmp_path / "in", 3), os.stat

    class Numberless:
        def __init__(self, status: os.stat_result, number: int) -> None:
            self.status, self.st_ino = status, number

        def __getattr__(self, name: str) -> Any:
            return getattr(self.status, name)

    for number in (0, 7):
        with monkeypatch.context() as patch:
            patch.setattr(os, "stat", lambda *a, **k: Numberless(fstat(*a, **k), number))  # noqa: B023
            found = [item for _, item in expand([source], Lines())]
        assert len(found) == 3
        files = [item for item in found if isinstance(item, InputFile)]
        assert len({file.identity for file in files} - {""}) in (0, 3)


@pytest.mark.parametrize("kind", ["dataset", "part of a dataset", "run", "comparison", "model folder"])
def test_what_hnet_wrote_is_left_out(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a folder that is read, and where it is named; a folder of the same files without our content is not."""
    source = tree(tmp_path / "in", 3)
    written = source / "sub" / "written"
    if kind == "dataset":
        make(written, source / "001.txt")
    elif kind == "part of a dataset":
        written = make_part(written, source / "001.txt")
    else:
        files = {
            "run": {"config.yaml": "model:\n  arch_layout: [m1]\n", "metrics.jsonl": '{"loss": 1}\n', "log.txt": "x"},
            "comparison": {"plan.json": '{"flops_per_byte": {}, "line_up": []}', "members/a.yaml": "a: 1"},
            "model folder": {"config.json": '{"arch_layout": ["m1"]}', "model.safetensors": "x"},
        }
        write_files(written, files[kind])
    summary, _ = make(tmp_path / "out", source)
    assert summary.refused == {f"{kind} made by hnet": (1, 0, str(written))}
    assert summary.bytes == sum(len(text(n)) for n in range(3))
    with pytest.raises(InputError, match=f"{written}: {kind} made by hnet"):
        make(tmp_path / "out2", written)
    with pytest.raises(InputError, match=f"{kind} made by hnet"):
        detect([written])
    summary, _ = make(tmp_path / "out5", *sorted(source.iterdir()))  # as a shell expands *
    assert summary.refused[f"{kind} made by hnet"][0] == 1
    (written.parent / "x.txt").write_bytes(text(9))
    _, dataset = make(tmp_path / "out3", source, val_inputs=[written.parent])
    assert b"".join(dataset.documents("val")) == text(9)
    monkeypatch.chdir(source)
    make(Path("sub/out"), Path())  # into the folder that is read
    names = ["config.yaml", "log.txt", "plan.json", "manifest.json", "config.json", "dataset.json"]
    write_files(source / "foreign", dict.fromkeys(names, "{}\n"))
    summary, dataset = make(tmp_path / "out4", source / "foreign", source / "001.txt")
    assert len(dataset.about["sources"]) == len(names) + 1


def make_part(out: Path, source: Path) -> Path:
    out.parent.mkdir()
    return prepare([source], Lines(), out, part=(1, 2), measure=False).path


def write_files(folder: Path, files: dict[str, str]) -> None:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
