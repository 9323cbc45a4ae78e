"""Writing shards and tables."""

from __future__ import annotations

import os
import resource
import signal
from pathlib import Path

import numpy as np
import pytest
from corpuskit import make, text
from hypothesis import given
from hypothesis import strategies as st

from hnet_cli.data.dataset import Shards
from hnet_cli.data.prepare.store import Writer, read_shards
from hnet_cli.errors import StorageError
from hnet_cli.storage import HeldFile


def test_full_disk(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(text(1, 1 << 20))
    pid = os.fork()
    if pid == 0:
        try:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 17, 1 << 17))
            make(tmp_path / "out", tmp_path / "x")
        except StorageError:
            os._exit(74)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 74
    assert os.listdir(tmp_path) == ["x"]


def test_shards_join_without_a_seam(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Documents that cross shards, with small shards."""
    for module in ("dataset", "prepare.store"):
        monkeypatch.setattr(f"hnet_cli.data.{module}.SHARD_BYTES", 4096)
        monkeypatch.setattr(f"hnet_cli.data.{module}.CHECKSUM_BYTES", 1024)
    rng = np.random.default_rng(1)
    documents = [rng.bytes(int(size)) for size in rng.integers(1, 9000, 40)]
    writer = Writer(tmp_path)
    for data in documents:
        writer.add(data, 0, 0, "x", "x")
    writer.close()
    joined = b"".join(documents)
    files = [HeldFile(file) for file in sorted(tmp_path.glob("shard-*"))]
    shards = Shards(files, len(joined), np.fromfile(tmp_path / "blocks.bin", "<u4"))
    starts = rng.integers(0, len(joined) - 6000, 200)
    lengths = rng.integers(1, 6000, 200)
    expected = b"".join(joined[a : a + n] for a, n in zip(starts.tolist(), lengths.tolist(), strict=True))
    assert shards.gather(starts, lengths).tobytes() == expected
    assert shards.read(0, len(joined)) == joined
    assert read_shards(tmp_path, 5000, 17_000) == joined[5000:17_000]
    assert len(list(tmp_path.glob("shard-*"))) == -(-len(joined) // 4096)


def written(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@given(sizes=st.lists(st.integers(1, 3000), min_size=1, max_size=12), data=st.data())
def test_rollbacks_and_restored_states_leave_no_trace(
    sizes: list[int], data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """With small shards, wherever a file turns out to be damaged and wherever the process is killed."""
    plain, again = tmp_path_factory.mktemp("plain"), tmp_path_factory.mktemp("again")
    with pytest.MonkeyPatch.context() as patch:
        for module in ("dataset", "prepare.store"):
            patch.setattr(f"hnet_cli.data.{module}.SHARD_BYTES", 2048)
            patch.setattr(f"hnet_cli.data.{module}.CHECKSUM_BYTES", 512)
        reference, writer, states = Writer(plain), Writer(again), []
        for number, size in enumerate(sizes):
            document = bytes([number]) * size, number, number, f"name {number}", "group"
            mark = writer.mark()
            for lost in data.draw(st.lists(st.integers(1, 5000), max_size=3)):
                writer.add(b"lost" * lost, 0, 0, "lost", "lost")
            writer.rollback(mark)
            for each in (reference, writer):
                each.add(*document)
            states.append(writer.state())
            if data.draw(st.booleans()):  # killed: bytes after the last state may be on disk
                writer.add(b"lost" * 700, 0, 0, "lost", "lost")
                writer.mark()
                writer = Writer(again)
                assert all(writer.restore(state) for state in states)
                writer.remove_others()
        reference.close()
        writer.close()
    assert written(again) == written(plain)
    assert writer.files == reference.files
