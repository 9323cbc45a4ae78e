"""Several processes: the bytes of one, and errors arrive."""

from __future__ import annotations

import gzip
import io
import json
import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import zstandard
from corpuskit import Lines, make, stored, text, tree

from hnet_cli.data.dataset import Dataset
from hnet_cli.data.prepare.preparation import prepare
from hnet_cli.errors import EnvironmentLimit, InputError
from hnet_cli.modality import Document, Refused, Source


def test_same_bytes_whatever_the_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hnet_cli.data.prepare.planning.UNIT_FILES", 4)
    source = tree(tmp_path / "in")
    (source / "z.gz").write_bytes(gzip.compress(text(77) + b"# refused\n"))
    (source / "copy.txt").write_bytes(text(5))
    (source / "rows.jsonl").write_text("".join(json.dumps({"text": f"row {n % 7}\n"}) + "\n" for n in range(70)))
    seen: list[int] = []
    for out, workers in (("one", 1), ("two", 2), ("again", 1)):
        make(tmp_path / out, source, workers=workers, measure=True, progress=lambda done, total: seen.append(done))
    for file in (tmp_path / "one").iterdir():
        for other in ("two", "again"):
            assert (tmp_path / other / file.name).read_bytes() == file.read_bytes(), file.name
    assert max(seen) == sum(file.stat().st_size for file in source.iterdir())


def test_errors_in_workers_arrive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hnet_cli.data.prepare.planning.UNIT_FILES", 4)
    source = tree(tmp_path / "in")
    (source / "015.txt.gz").write_bytes(gzip.compress(text(1))[:-20])
    with pytest.raises(InputError, match=r"damaged file: 1, first .*015\.txt\.gz is truncated"):
        make(tmp_path / "out", source, workers=2)
    assert os.listdir(tmp_path) == ["in"]


def test_a_damaged_file_that_is_named_among_others_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same as one found in a folder; alone, or where nobody knows its size, it is an error."""
    named = []
    for n in range(200):
        named.append(tmp_path / f"{n:03}.txt.gz")
        named[-1].write_bytes(gzip.compress(text(n)))
    named[15].write_bytes(named[15].read_bytes()[:-20])
    summary, dataset = make(tmp_path / "out", *named)
    assert summary.refused["damaged file"][0] == 1
    assert stored(dataset) == b"".join(text(n) for n in range(200) if n != 15)
    with pytest.raises(InputError, match=r"more than 1%: damaged file: 1, first .*015\.txt\.gz is truncated"):
        make(tmp_path / "few", *named[10:20])
    assert make(tmp_path / "few", *named[10:20], tolerated=1.0)[0].refused["damaged file"][0] == 1
    with pytest.raises(InputError, match=r"015\.txt\.gz is truncated"):
        make(tmp_path / "one", named[15], tolerated=1.0)
    with open(named[15], "rb") as given, monkeypatch.context() as patch:
        patch.setattr("sys.stdin", io.TextIOWrapper(given))
        with pytest.raises(InputError, match="truncated"):
            make(tmp_path / "two", Path("-"), *named[:15])


def test_an_input_of_rows_that_are_no_text_is_an_error_beside_others(tmp_path: Path) -> None:
    """Damage within a file excuses nothing: the field is another there, or the modality."""
    (tmp_path / "good.jsonl").write_text("".join(json.dumps({"text": f"row {n} of many"}) + "\n" for n in range(500)))
    (tmp_path / "bad.jsonl").write_text('{"text": {"a": 1}}\n')
    with pytest.raises(InputError, match=r"nothing to use in .*bad\.jsonl: row has no text"):
        make(tmp_path / "out", tmp_path / "good.jsonl", tmp_path / "bad.jsonl")


@pytest.mark.parametrize("side", ["train", "val"])
def test_a_side_that_is_all_damaged_is_named(side: str, tmp_path: Path) -> None:
    files = [tmp_path / "a.txt.gz", tmp_path / "b.txt.gz"]
    for n, file in enumerate(files):
        file.write_bytes(gzip.compress(text(n))[: -20 if (n == 0) == (side == "train") else None])
    with pytest.raises(InputError, match=rf"nothing to use in .*{'ab'[side == 'val']}\.txt\.gz: damaged file"):
        make(tmp_path / "out", files[0], val_inputs=[files[1]], tolerated=1.0)


def test_a_file_that_cannot_be_read_here_is_not_called_damaged(tmp_path: Path) -> None:
    packer = zstandard.ZstdCompressor(
        compression_params=zstandard.ZstdCompressionParameters(window_log=27)
    ).compressobj()
    frame = packer.compress(text(1)) + packer.flush()
    folder = tree(tmp_path / "in", files=3)
    (folder / "a.zst").write_bytes(frame[:5] + bytes([23 << 3]) + frame[6:])  # it looks back 8 GiB
    with pytest.raises(InputError, match=r"unreadable, more than 1%: file that cannot be read here: 1, .*a\.zst: its"):
        make(tmp_path / "out", folder)
    summary, dataset = make(tmp_path / "out", folder, tolerated=1.0)
    assert summary.refused["file that cannot be read here"][0] == 1
    assert stored(dataset) == text(0) + text(1) + text(2)


class Dying(Lines):
    """Ends its process as the system does for lack of memory; in a worker only."""

    def documents(self, source: Source) -> Iterator[Document | Refused]:
        if multiprocessing.parent_process() is not None:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().documents(source)


def test_a_worker_that_is_killed_is_the_machines_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hnet_cli.data.prepare.planning.UNIT_FILES", 7)
    source = tree(tmp_path / "in", 30)
    with pytest.raises(EnvironmentLimit, match="worker") as caught:
        prepare([source], Dying(), tmp_path / "out", measure=False, workers=2)
    assert "--workers" in caught.value.hint
    assert not (tmp_path / "out").exists()


class Slow(Lines):
    """Takes a long time for the last file where it says so."""

    def documents(self, source: Source) -> Iterator[Document | Refused]:
        slow = Path(source.name).parent.with_name("slow")
        if source.name.endswith("029.txt") and slow.exists():
            slow.write_text("begun")
            for _ in range(600):
                time.sleep(0.05)
            slow.with_name("finished").touch()
        return super().documents(source)


def test_nobody_waits_for_workers_of_a_command_that_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was finished is kept, so that the next run goes on."""
    monkeypatch.setattr("hnet_cli.data.prepare.planning.UNIT_FILES", 15)
    monkeypatch.setattr("hnet_cli.data.prepare.preparation.UNIT_BYTES", 1)
    source, slow = tree(tmp_path / "in", 30), tmp_path / "slow"
    slow.write_text("")

    def end(done: int, total: int | None) -> None:
        if done:
            while not slow.read_text():
                time.sleep(0.01)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare([source], Slow(), tmp_path / "out", measure=False, workers=2, progress=end)
    assert sorted(os.listdir(tmp_path)) == [".out.partial", "in", "slow"]
    slow.unlink()
    before = sum(len(text(number)) for number in range(15))
    seen: list[int] = []
    prepare([source], Slow(), tmp_path / "out", measure=False, progress=lambda done, total: seen.append(done))
    assert seen[0] == before, "it did not go on"
    assert stored(Dataset.open(tmp_path / "out")) == b"".join(map(text, range(30)))
