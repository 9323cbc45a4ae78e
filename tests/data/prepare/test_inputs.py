"""Files, folders and standard input, full of traps."""

from __future__ import annotations

import gzip
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from corpuskit import Lines, make, text, tree

from hnet_cli import modality
from hnet_cli.data.dataset import Dataset
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
