"""Odd places and whole corpora of good and bad files: everything is read or refused, and the books add up."""

from __future__ import annotations

import gzip
import json
import lzma
import os
import random
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from forms import trials
from hostilekit import PROSE, command, flipped, is_clear, tar_of
from hypothesis import given, settings
from hypothesis import strategies as st

from hnet_cli import modality
from hnet_cli.data.dataset import Dataset
from hnet_cli.data.prepare.preparation import prepare
from hnet_cli.errors import InputError
from hnet_cli.modality import Document, Modality, Refused


def test_r17_odd_places(tally: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    """Loops, pipes, devices, sockets, missing and odd names: handled, and nothing raw reaches the terminal."""
    counted = tally("R17", "loops, pipes, devices, sockets, odd names, vanishing and growing files, many files")
    place = tmp_path / "odd"
    place.mkdir()
    (place / "loop").symlink_to(place / "loop")
    (place / "folder-loop").symlink_to(place)
    (place / "nowhere").symlink_to(tmp_path / "nothing")
    os.mkfifo(place / "fifo")
    (place / "empty folder").mkdir()
    listener = socket.socket(socket.AF_UNIX)
    monkeypatch.chdir(place)
    listener.bind("socket")
    encoded = b"caf\xe9.txt|new\nline.txt|\x1b[31mred\x1b]0;x\x07.txt|-n.txt|\xe2\x80\xaegnp.txt".split(b"|")
    names = [os.fsdecode(name) for name in encoded]
    for name in (*names, "a" * 250):
        (place / name).write_bytes(PROSE)
    cases = {
        "loop": (3, "cannot read|Too many"),
        "nowhere": (3, "does not exist"),
        "fifo": (3, "a device, pipe or socket"),
        "socket": (3, "device, pipe or socket"),
        "/dev/zero": (3, "a device, pipe or socket"),
        "/dev/null": (3, "a device, pipe or socket"),
        "empty folder": (3, "nothing to use"),
        "missing": (3, "does not exist"),
        "odd\0name": (3, "cannot read"),
        "/proc/self/mem": (3, "of the system's kernel"),
        "": (3, "."),
    }
    for path, (code, why) in cases.items():
        got = command(tmp_path, path, "text")
        error = capfd.readouterr().err
        counted.count(got == code and is_clear(error, 0, "", why), f"{path!r}: exit {got}, {error}")
    got = command(tmp_path, str(place), "text")
    error = capfd.readouterr().err
    counted.count(got == 0 and "\x1b" not in error and "\u202e" not in error, f"folder: exit {got}, {error}")
    for name in names:
        (place / name).write_bytes(b"\xff not UTF-8 \x1b[31m")
        got = command(tmp_path, f"./{name}" if name[0] == "-" else name, "text")
        error = capfd.readouterr().err
        counted.count(got == 3 and "\x1b" not in error and error.count("\n") == 1, f"{name!r}: exit {got}, {error!r}")
    listener.close()
    many, files = tmp_path / "many", trials(500, 10_000, 10_000)
    many.mkdir()
    for number in range(files):
        (many / f"{number}.txt").write_bytes(b"file %d\n" % number)
    summary = prepare([many], modality.get("text"), tmp_path / "out", measure=False)
    counted.count(summary.documents == files, f"{summary.documents} of many files")


class Meddling(Modality):
    """Does something to another file while the first is read."""

    name, summary = "meddling", "for tests"

    def __init__(self, meddle: Callable[[], None]) -> None:
        self.meddle = meddle

    def documents(self, source: Any) -> Iterator[Document | Refused]:
        with source.open() as stream:
            yield Document(stream.read(), source.name, source.name, source.group)
        self.meddle()


@pytest.mark.parametrize("what", ["vanishes before", "vanishes while", "grows", "becomes a folder"])
def test_r17_files_that_change(what: str, tally: Any, tmp_path: Path) -> None:
    """In a folder: refused by reason, the rest is kept."""
    counted = tally("R17", "a file in a folder that changes: left out by reason", what)
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(3):
        (folder / f"{number}.txt").write_bytes(PROSE)
    file = folder / ("0.txt" if what in ("grows", "vanishes while") else "1.txt")

    def meddle() -> None:
        plugin.meddle = lambda: None
        if what == "grows":
            file.write_bytes(PROSE + b"more")
        else:
            file.unlink()
        if what == "becomes a folder":
            file.mkdir()

    plugin = Meddling(meddle)
    summary = prepare([folder], plugin, tmp_path / "out", measure=False, tolerated=1.0)
    reasons = [(reason, count) for reason, (count, _, _) in summary.refused.items()]
    good = summary.documents == 2 and reasons in ([("damaged file", 1)], [("vanished or unreadable", 1)])
    counted.count(good, f"{what}: {summary}")


BAD_ROWS = {
    "{": "row is not JSON",
    "[]": "row is not a JSON object",
    '{"text": null}': "empty",
    '{"text": 7}': "row has no text in field 'text'",
    '{"text": "\\ud800"}': "row with half a surrogate pair",
}


class Books:
    """A folder of files of which it is known what must be kept, and what refused, by reason, of how many bytes."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.rng = folder, random.Random(seed)
        self.kept, self.refused = [PROSE], dict[str, list[int]]()
        folder.mkdir(parents=True)
        (folder / "0.txt").write_bytes(PROSE)

    def refuse(self, reason: str, size: int) -> None:
        self.refused.setdefault(reason, []).append(size)

    def rows(self) -> bytes:
        """JSON lines, the first of them good."""
        lines = ['{"text": "first"}']
        self.kept.append(b"first")
        for _ in range(self.rng.randint(1, 6)):
            text = PROSE[: self.rng.randint(1, 200)].decode()
            if self.rng.random() < 0.6:
                self.kept.append(text.encode())
                lines.append(json.dumps({"text": text}))
            else:
                lines.append(self.rng.choice(list(BAD_ROWS)))
                self.refuse(BAD_ROWS[lines[-1]], len(lines[-1]) + 1)
        return ("\n".join(lines) + "\n").encode()

    def add(self, number: int, kind: str) -> None:
        rng, name, data = self.rng, f"{number + 1:03}.txt", PROSE[: self.rng.randint(60, 5000)]
        if kind == "file":
            self.kept.append(data)
        elif kind == "rows":
            name, data = f"{number + 1:03}.jsonl", self.rows()
        elif kind == "archive":
            self.kept.append(data)
            self.refuse("hidden file or folder", 7)
            name, data = f"{number + 1:03}.tar", tar_of({"a.txt": data, ".hidden/b.txt": b"7 bytes"})
        elif kind == "hidden":
            self.refuse("hidden file or folder", 0)
            name = f".{name}"
        else:
            reason, suffix, data = {
                "bad file": ("not UTF-8", "", data + b"\xff"),
                "damaged": ("damaged file", ".gz", gzip.compress(rng.randbytes(2000).hex().encode())[:-30]),
                "blank": ("only white space", "", b"\n" * rng.randint(1, 99)),
                "binary": ("binary data", "", bytes(rng.randint(50, 99))),
            }[kind]
            name += suffix
            self.refuse(reason, len(data))
        (self.folder / name).write_bytes(data)


KINDS = st.sampled_from(["file", "bad file", "rows", "damaged", "archive", "blank", "binary", "hidden"])


@settings(max_examples=trials(12, 100, 500), deadline=None)
@given(kinds=st.lists(KINDS, max_size=12), seed=st.integers(0, 1 << 30))
def corpora(counted: Any, place: Path, kinds: list[str], seed: int) -> None:
    """Documents and bytes in = kept + refused by reason, exactly."""
    folder = place / str(time.monotonic_ns())
    books = Books(folder / "in", seed)
    for number, kind in enumerate(kinds):
        books.add(number, kind)
    summary = prepare([folder / "in"], modality.get("text"), folder / "out", measure=False, tolerated=1.0)
    refused = {reason: (count, size) for reason, (count, size, _) in summary.refused.items()}
    right = refused == {reason: (len(sizes), sum(sizes)) for reason, sizes in books.refused.items()}
    right = right and (summary.documents, summary.bytes) == (len(books.kept), sum(map(len, books.kept)))
    counted.count(right, f"{kinds} {seed}: {refused}, {books.refused}, {summary.documents}, {len(books.kept)}")
    assert right


def test_r18_books(tally: Any, tmp_path: Path) -> None:
    corpora(tally("R18", "generated corpora: documents and bytes in = kept + refused, by reason"), tmp_path)


@pytest.mark.parametrize(("bad", "code"), [(1, 0), (2, 3)])
def test_r18_more_than_one_percent(bad: int, code: int, tally: Any, tmp_path: Path, capfd: Any) -> None:
    """One damaged row of 150 is reported and skipped; two are refused without --allow-skips."""
    counted = tally("R18", "damaged rows of 150: refused from two on, told from the first", f"{bad}")
    rows = [json.dumps({"text": f"row {n} " + "words " * 20}) for n in range(150 - bad)] + ["{" + " " * 80] * bad
    (tmp_path / "x.jsonl").write_text("\n".join(rows) + "\n")
    path = str(tmp_path / "x.jsonl")
    for options, expected in (((), code), (("--allow-skips",), 0)):
        got = command(tmp_path, path, "text", *options)
        error = capfd.readouterr().err
        counted.count(got == expected and "row is not JSON" in error and f"x.jsonl:{151 - bad}" in error, error)


def test_r18_a_damaged_file_gives_nothing(tally: Any, tmp_path: Path) -> None:
    """A damaged file gives no documents, not even those before the damage; all other files are kept, byte for byte."""
    counted = tally("R18", "documents before the damage in a file of a folder")
    folder = tmp_path / "in"
    folder.mkdir()
    big = PROSE * 400  # several documents, and more than a block
    (folder / "1.txt").write_bytes(PROSE)
    (folder / "2.txt.gz").write_bytes(gzip.compress(big)[:-100])
    (folder / "3.txt.xz").write_bytes(flipped(lzma.compress(big), 0.9))
    (folder / "4.tar").write_bytes(tar_of({"a.txt": PROSE, "b.txt": big})[:-20_000])
    (folder / "5.txt").write_bytes(big)
    summary = prepare([folder], modality.get("text"), tmp_path / "out", measure=False, tolerated=1.0)
    dataset = Dataset.open(tmp_path / "out")
    counted.count(dataset.shards.read(0, summary.bytes) == PROSE + big, "other bytes are kept")
    counted.count(summary.refused["damaged file"][0] == 3, str(summary.refused))
    for file in ("2.txt.gz", "3.txt.xz", "4.tar"):
        with pytest.raises(InputError, match=file):
            prepare([folder / file], modality.get("text"), tmp_path / "out2", measure=False)
