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
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard
from corpuskit import bgzf
from hypothesis import given
from hypothesis import strategies as st

from hnet_cli import storage
from hnet_cli.errors import InputError
from hnet_cli.storage.streams import Unreadable, window_bytes

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


@given(codec=st.sampled_from(sorted(CODECS)), parts=st.lists(st.binary(max_size=3000), min_size=1, max_size=4))
def test_members_joined_are_read_through(codec: str, parts: list[bytes]) -> None:
    packed = b"".join(map(CODECS[codec], parts))
    assert storage.decompressed(io.BytesIO(packed), "x").read() == b"".join(parts)


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
    data = b"".join(b"%d " % random.randrange(10**9) for _ in range(6000))
    packed = CODECS[codec](data)
    file = tmp_path / f"x.{codec}"
    for length in [len(packed) - 1, *(random.randrange(12, len(packed)) for _ in range(15))]:
        file.write_bytes(packed[:length])
        with pytest.raises(InputError, match=r"x\..* is truncated"):
            storage.open_input(file).read()
    file.write_bytes(packed + b"trailing rubbish")
    with pytest.raises(InputError, match="damaged"):
        storage.open_input(file).read()
    if codec == "zst":
        packed = zstandard.ZstdCompressor(write_checksum=True).compress(data)
    for _ in range(15):
        flipped = bytearray(packed)
        flipped[random.randrange(12, len(packed))] ^= 1 << random.randrange(8)
        file.write_bytes(flipped)
        with pytest.raises(InputError, match=r"damaged|truncated"):
            storage.open_input(file).read()


def test_a_container_cut_at_a_border_of_its_blocks_is_truncated() -> None:
    """Containers whose format demands an end are truncated without it; a plain gz, bz2 or zst demands none."""
    data = b"".join(b"%d " % number for number in range(2000))
    blocks = bgzf(data)

    def read(packed: bytes) -> bytes:
        return storage.decompressed(io.BytesIO(packed), "x").read()

    assert read(b"".join(blocks)) == data
    assert read(b"".join(blocks + blocks)) == data * 2
    assert read(b"".join(blocks) + gzip.compress(b"more")) == data + b"more"
    assert read(blocks[-1]) == b""
    for count in range(1, len(blocks)):
        with pytest.raises(InputError, match=r"x is truncated: the block that marks its end is missing"):
            read(b"".join(blocks[:count]))
    with pytest.raises(InputError, match="truncated"):
        read(b"".join(blocks + blocks[:-1]))
    frame = zstandard.compress(data)
    note = b"\x50\x2a\x4d\x18\x04\0\0\0" + len(frame).to_bytes(4, "little")  # pzstd: the size of the next frame
    assert read(note + frame + note + frame) == data * 2
    with pytest.raises(InputError, match="truncated"):
        read(note + frame + note)
    xz = lzma.compress(data)
    with pytest.raises(InputError, match="truncated"):  # after its block, before the index
        read(xz[: -12 - 4 * (int.from_bytes(xz[-8:-4], "little") + 1)])
    for packer in (gzip.compress, bz2.compress, lzma.compress, zstandard.compress):
        assert read(packer(data)) == data


def with_window(data: bytes, exponent: int) -> bytes:
    """A frame of zstd that says that it looks back 2 ** (10 + exponent) bytes, as `zstd --long` does."""
    packer = zstandard.ZstdCompressor(
        compression_params=zstandard.ZstdCompressionParameters(window_log=27)
    ).compressobj()
    frame = packer.compress(data) + packer.flush()
    assert frame[4] & 0x20 == 0
    return frame[:5] + bytes([exponent << 3]) + frame[6:]


def test_a_window_is_read_or_named_and_never_called_damage() -> None:
    data = b"Reddit comments " * 5000
    stream = storage.decompressed(io.BytesIO(with_window(data, 21)), "RC.zst")
    assert window_bytes(stream) == 1 << 31
    assert stream.read() == data
    with pytest.raises(Unreadable, match=r"cannot unpack RC\.zst: its zstd window is larger than the 2 GiB"):
        storage.decompressed(io.BytesIO(with_window(data, 23)), "RC.zst").read()
    for bits in (18, 21, 23):
        filters = [{"id": lzma.FILTER_LZMA2, "dict_size": 1 << bits}]
        stream = storage.decompressed(io.BytesIO(lzma.compress(data, filters=filters)), "x")
        assert (window_bytes(stream), stream.read()) == (1 << bits, data)
    assert window_bytes(storage.decompressed(io.BytesIO(gzip.compress(data)), "x")) == 0
    samples = [b"%d %d" % (number, number**2) * 20 for number in range(400)]
    packer = zstandard.ZstdCompressor(dict_data=zstandard.train_dictionary(2000, samples))
    with pytest.raises(Unreadable, match="packed with a dictionary"):
        storage.decompressed(io.BytesIO(packer.compress(data)), "x").read()


def test_too_little_memory_for_a_window_is_said() -> None:
    program = (
        "import io, resource, sys, zstandard; from hnet_cli import storage\n"
        "stream = storage.decompressed(open(sys.argv[1], 'rb', buffering=0), 'RC.zst')\n"
        "resource.setrlimit(resource.RLIMIT_AS, (900 << 20, 900 << 20))\n"
        "try: stream.read()\nexcept Exception as error: print(type(error).__name__, error)"
    )
    with tempfile.NamedTemporaryFile() as file:
        file.write(with_window(bytes(range(256)) * 5000, 21))
        file.flush()
        run = subprocess.run([sys.executable, "-c", program, file.name], capture_output=True, text=True)
    assert run.stdout.startswith("EnvironmentLimit not enough memory to unpack RC.zst: "), run


@pytest.mark.slow
@pytest.mark.parametrize("codec", ["gz", "zst"])
def test_bombs_stay_small_in_memory(codec: str, tmp_path: Path) -> None:
    size = 1 << 30
    if codec == "zst":
        (tmp_path / "x").write_bytes(zstandard.compress(bytes(size)))
    else:
        with gzip.open(tmp_path / "x", "wb") as file:
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
