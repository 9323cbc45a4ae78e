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
from hostilekit import (
    PROSE,
    command,
    flipped,
    is_clear,
    tar_of,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hnet_cli import modality
from hnet_cli.data.dataset import Dataset
from hnet_cli.data.prepare.preparation import prepare
from hnet_cli.errors import InputError
from hnet_cli.modality import Document, Modality, Refused

# --- R17 --------------------------------------------------------------------------------------------------------------


def test_r17_odd_places(tally: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    """Loops, pipes, devices, sockets, missing and odd names: handled, and nothing raw reaches the terminal."""
    found = tally("R17", "loops, pipes, devices, sockets, odd names, vanishing and growing files, many files")
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
    names = [
        b"caf\xe9.txt",
        b"new\nline.txt",
        b"\x1b[31mred\x1b]0;x\x07.txt",
        b"-n.txt",
        b"\xe2\x80\xaegnp.txt",
        b"a" * 250,
    ]
    for name in names:
        Path(os.fsdecode(os.fsencode(place) + b"/" + name)).write_bytes(PROSE)
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
        "/proc/self/mem": (74, "cannot read"),
        "": (3, "."),
    }
    for path, (code, why) in cases.items():
        got = command(tmp_path, path, "text")
        error = capfd.readouterr().err
        found.count(got == code and is_clear(error, 0, "", why), f"{path!r}: exit {got}, {error}")
    got = command(tmp_path, str(place), "text")
    error = capfd.readouterr().err
    found.count(got == 0 and "\x1b" not in error and "\u202e" not in error, f"folder: exit {got}, {error}")
    for name in names[:-1]:
        Path(os.fsdecode(os.fsencode(place) + b"/" + name)).write_bytes(b"\xff not UTF-8 \x1b[31m")
        got = command(tmp_path, os.fsdecode(name) if name[0] != ord("-") else "./-n.txt", "text")
        error = capfd.readouterr().err
        found.count(got == 3 and "\x1b" not in error and error.count("\n") == 1, f"{name!r}: exit {got}, {error!r}")
    listener.close()
    many = tmp_path / "many"
    many.mkdir()
    for number in range(trials(500, 10_000, 10_000)):
        (many / f"{number}.txt").write_bytes(b"file %d\n" % number)
    summary = prepare([many], modality.get("text"), tmp_path / "out", measure=False)
    found.count(summary.documents == trials(500, 10_000, 10_000), f"{summary.documents} of many files")


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
    """In a folder: refused by reason, the rest is kept. Named: exit 3 (tests/test_corpus_hostile.py)."""
    found = tally("R17", "a file in a folder that changes: left out by reason", what)
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(3):
        (folder / f"{number}.txt").write_bytes(PROSE)
    file = folder / ("0.txt" if what in ("grows", "vanishes while") else "1.txt")
    calls = []

    def meddle() -> None:
        calls.append(1)
        if len(calls) > 1:
            return
        if what == "grows":
            with file.open("ab") as opened:
                opened.write(b"more")
        else:
            file.unlink()
            if what == "becomes a folder":
                file.mkdir()

    summary = prepare([folder], Meddling(meddle), tmp_path / "out", measure=False, tolerated=1.0)
    reasons = {reason: count for reason, (count, _, _) in summary.refused.items()}
    found.count(
        summary.documents == 2
        and list(reasons.values()) == [1]
        and next(iter(reasons)) in ("damaged file", "vanished or unreadable"),
        f"{what}: {summary}",
    )


# --- R18 --------------------------------------------------------------------------------------------------------------


ITEM = st.sampled_from(["file", "bad file", "rows", "damaged", "archive", "blank", "binary", "hidden"])


@settings(max_examples=trials(12, 100, 500), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(kinds=st.lists(ITEM, max_size=12), seed=st.integers(0, 1 << 30))
def corpora(tally_of: Any, place: Path, kinds: list[str], seed: int) -> None:
    """Documents and bytes in = kept + refused by reason, exactly."""
    rng, folder = random.Random(seed), place / str(time.monotonic_ns())
    (folder / "in").mkdir(parents=True)
    kept: list[bytes] = [PROSE]
    refused: dict[str, list[int]] = {}
    (folder / "in" / "0.txt").write_bytes(PROSE)

    def refuse(reason: str, size: int) -> None:
        refused.setdefault(reason, []).append(size)

    for number, kind in enumerate(kinds):
        file, data = folder / "in" / f"{number + 1:03}.txt", PROSE[: rng.randint(60, 5000)]
        if kind == "file":
            kept.append(data)
        elif kind == "bad file":
            data += b"\xff"
            refuse("not UTF-8", len(data))
        elif kind == "rows":
            file, lines = file.with_suffix(".jsonl"), []
            for _ in range(rng.randint(1, 6)):
                text = PROSE[: rng.randint(1, 200)].decode()
                if rng.random() < 0.6:
                    kept.append(text.encode())
                    lines.append(json.dumps({"text": text}))
                else:
                    lines.append(rng.choice(["{", "[]", '{"text": null}', '{"text": "\\ud800"}']))
                    reason = {"{": "row is not JSON", "[": "row is not a JSON object"}.get(lines[-1][:2].strip("]"), "")
                    reason = reason or ("row with half a surrogate pair" if "ud800" in lines[-1] else "")
                    refuse(reason or "row has no text in field 'text'", len(lines[-1]) + 1)
            lines.insert(0, json.dumps({"text": "first"}))
            kept.insert(len(kept), b"")  # order is checked by the sum of bytes alone
            kept.append(b"first")
            data = ("\n".join(lines) + "\n").encode()
        elif kind == "damaged":
            file, data = file.with_suffix(".txt.gz"), gzip.compress(rng.randbytes(2000).hex().encode())[:-30]
            refuse("damaged file", len(data))
        elif kind == "archive":
            file = file.with_suffix(".tar")
            kept.append(data)
            refuse("hidden file or folder", 7)
            data = tar_of({"a.txt": data, ".hidden/b.txt": b"7 bytes"})
        elif kind == "blank":
            data = b"\n" * rng.randint(1, 99)
            refuse("only white space", len(data))
        elif kind == "binary":
            data = bytes(rng.randint(50, 99))
            refuse("binary data", len(data))
        else:
            file = file.with_name("." + file.name)
            refuse("hidden file or folder", 0)
        file.write_bytes(data)
    summary = prepare([folder / "in"], modality.get("text"), folder / "out", measure=False, tolerated=1.0)
    kept = [data for data in kept if data]
    told = {reason: (count, size) for reason, (count, size, _) in summary.refused.items()}
    right = told == {reason: (len(sizes), sum(sizes)) for reason, sizes in refused.items()}
    right = right and (summary.documents, summary.bytes) == (len(kept), sum(map(len, kept)))
    tally_of.count(right, f"{kinds} {seed}: {told}, {refused}, {summary.documents}, {len(kept)}")
    assert right


def test_r18_books(tally: Any, tmp_path: Path) -> None:
    corpora(tally("R18", "generated corpora: documents and bytes in = kept + refused, by reason"), tmp_path)


@pytest.mark.parametrize(("bad", "code"), [(1, 0), (2, 3)])
def test_r18_more_than_one_percent(bad: int, code: int, tally: Any, tmp_path: Path, capfd: Any) -> None:
    """Of 150 rows one may be damaged, two may not, unless --allow-skips; in any case it is told."""
    found = tally("R18", "damaged rows of 150: refused from two on, told from the first", f"{bad}")
    rows = [json.dumps({"text": f"row {n} " + "words " * 20}) for n in range(150 - bad)] + ["{" + " " * 80] * bad
    (tmp_path / "x.jsonl").write_text("\n".join(rows) + "\n")
    path = str(tmp_path / "x.jsonl")
    for options, expected in (((), code), (("--allow-skips",), 0)):
        got = command(tmp_path, path, "text", *options)
        error = capfd.readouterr().err
        found.count(got == expected and "row is not JSON" in error and f"x.jsonl:{151 - bad}" in error, error)


def test_r18_a_damaged_file_gives_nothing(tally: Any, tmp_path: Path) -> None:
    """What stands before the damage is not kept: nobody knows whether it is sound. All else is, byte for byte."""
    found = tally("R18", "documents before the damage in a file of a folder")
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
    found.count(dataset.shards.read(0, summary.bytes) == PROSE + big, "other bytes are kept")
    found.count(summary.refused["damaged file"][0] == 3, str(summary.refused))
    for file in ("2.txt.gz", "3.txt.xz", "4.tar"):
        with pytest.raises(InputError, match=file):
            prepare([folder / file], modality.get("text"), tmp_path / "out2", measure=False)
