"""Compressed input: read through all members; truncation and damage are noticed."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from hnet_cli import storage
from hnet_cli.errors import InputError

CODECS: dict[str, Callable[[bytes], bytes]] = {
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zst": zstandard.compress,
}


def fill(folder: Path, **files: bytes) -> None:
    for name, data in files.items():
        (folder / name).write_bytes(data)


def write(target: Path, overwrite: bool = False, **files: bytes) -> None:
    with storage.staged_folder(target, overwrite=overwrite) as folder:
        fill(folder, **files)


@settings(max_examples=60, deadline=None)
@given(codec=st.sampled_from(sorted(CODECS)), parts=st.lists(st.binary(max_size=3000), min_size=1, max_size=4))
def test_members_joined_are_read_through(codec: str, parts: list[bytes]) -> None:
    packed = b"".join(map(CODECS[codec], parts))
    assert storage.decompressed(io.BytesIO(packed), "x").read() == b"".join(parts)


@settings(deadline=None)
@given(data=st.binary(max_size=300))
def test_plain_bytes_pass(data: bytes) -> None:
    data = b"plain" + data
    stream = storage.decompressed(io.BytesIO(data), "x")
    assert stream.peek(512)[:512] == data
    assert stream.read() == data
    unbuffered = storage.decompressed(io.BytesIO(data), "x")
    assert unbuffered.raw.read(1000) == data


@pytest.mark.parametrize("codec", sorted(CODECS))
def test_truncation_and_damage_are_noticed(codec: str, tmp_path: Path) -> None:
    random.seed(codec)
    data = b"".join(b"%d " % random.randrange(10**9) for _ in range(30000))
    packed = CODECS[codec](data)
    file = tmp_path / f"x.{codec}"
    for length in [len(packed) - 1, *(random.randrange(12, len(packed)) for _ in range(40))]:
        file.write_bytes(packed[:length])
        with pytest.raises(InputError, match=r"x\..* is truncated"):
            storage.open_input(file).read()
    file.write_bytes(packed + b"trailing rubbish")
    with pytest.raises(InputError, match="damaged"):
        storage.open_input(file).read()
    if codec == "zst":
        packed = zstandard.ZstdCompressor(write_checksum=True).compress(data)
    for _ in range(40):
        flipped = bytearray(packed)
        flipped[random.randrange(12, len(packed))] ^= 1 << random.randrange(8)
        file.write_bytes(flipped)
        with pytest.raises(InputError, match=r"damaged|truncated"):
            storage.open_input(file).read()


@pytest.mark.parametrize("codec", ["gz", "zst"])
def test_bombs_stay_small_in_memory(codec: str, tmp_path: Path) -> None:
    size = 1 << 30
    if codec == "zst":
        (tmp_path / "x").write_bytes(zstandard.compress(bytes(size)))
    else:
        with gzip.open(tmp_path / "x", "wb", compresslevel=1) as file:
            for _ in range(size >> 20):
                file.write(bytes(1 << 20))
    program = (
        "import resource, sys; from hnet_cli.storage import open_input; stream = open_input(sys.argv[1])\n"
        # a limit rather than a measured peak, which would count what the parent had before exec
        "resource.setrlimit(resource.RLIMIT_AS, (400 << 20, 400 << 20))\n"
        "print(sum(len(block) for block in iter(lambda: stream.read(1 << 20), b'')))"
    )
    done = subprocess.run([sys.executable, "-c", program, tmp_path / "x"], capture_output=True, text=True, check=True)
    assert int(done.stdout) == size


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path, why in [(tmp_path, "folder"), (tmp_path / "fifo", "pipe"), (Path("/dev/zero"), "device")]:
        with pytest.raises(InputError, match=why):
            storage.open_input(path)
    with pytest.raises(InputError, match="does not exist"):
        storage.open_input(tmp_path / "none")
    with pytest.raises(InputError, match="null"):
        storage.open_input(Path("a\0b"))


def test_awkward_names_are_shown_safely() -> None:
    assert storage.shown("a\nb\x1b[31m") == "a\\x0ab\\x1b[31m"
    assert storage.shown(os.fsdecode(b"caf\xe9")) == "caf\\xe9"
    assert storage.shown("汉字 é") == "汉字 é"
