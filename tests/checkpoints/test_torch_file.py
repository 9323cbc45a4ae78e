"""Pickled checkpoints are read as data: what else they hold is passed over, what they would do is never done."""

from __future__ import annotations

import contextlib
import pickle
import struct
import sys
import types
import zipfile
from pathlib import Path

import pytest
import torch
from convertkit import same, weights, written_config
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from hnet_cli.checkpoints import torch_file
from hnet_cli.checkpoints.convert import convert
from hnet_cli.errors import DamagedError, InputError


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    return written_config(tmp_path)


# --- files that hold more than tensors --------------------------------------------------------------------------------


def omegaconf_like(monkeypatch: pytest.MonkeyPatch) -> type:
    """A class that pickles as `omegaconf.listconfig.ListConfig`; its module is importable inside the test alone."""
    module = types.ModuleType("omegaconf.listconfig")

    class ListConfig:
        def __init__(self, items: list[object]) -> None:
            self.__dict__.update(_content=items, _metadata={"ref_type": int, "flags": {}}, _parent=None)

    ListConfig.__module__, ListConfig.__qualname__ = "omegaconf.listconfig", "ListConfig"
    module.ListConfig = ListConfig  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "omegaconf", types.ModuleType("omegaconf"))
    monkeypatch.setitem(sys.modules, "omegaconf.listconfig", module)
    return ListConfig


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_configuration_objects_inside_are_passed_over(
    tmp_path: Path, config_file: Path, monkeypatch: pytest.MonkeyPatch, protocol: int
) -> None:
    state = weights()
    with monkeypatch.context() as patch:
        made = omegaconf_like(patch)([1, 2, [3.5, None, True]])
        tagged = torch.nn.Parameter(state["embeddings.weight"].clone())
        tagged._optim = {"lr_multiplier": made}  # type: ignore[attr-defined]
        inside = state | {"embeddings.weight": tagged}
        torch.save({"config": made, "state_dict": inside}, tmp_path / "a.pt", pickle_protocol=protocol)
        torch.save(inside, tmp_path / "b.pt", pickle_protocol=protocol)
    with pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / "a.pt", weights_only=True)
    for name in ("a", "b"):
        convert(tmp_path / f"{name}.pt", tmp_path / name, config_file)
        assert same(load_file(tmp_path / name / "model.safetensors"), state)
    assert "omegaconf" not in sys.modules


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod."])
def test_prefixes_of_wrappers_are_dropped(tmp_path: Path, config_file: Path, prefix: str) -> None:
    torch.save({prefix + name: tensor for name, tensor in weights().items()}, tmp_path / "a.pt")
    convert(tmp_path / "a.pt", tmp_path / "ours", config_file)
    assert same(load_file(tmp_path / "ours/model.safetensors"), weights())


# --- hostile files ----------------------------------------------------------------------------------------------------


def with_pickle(path: Path, instructions: bytes, tensors: dict[str, torch.Tensor] | None = None) -> Path:
    """A `.pt` whose data.pkl is `instructions`; everything else is as torch writes it."""
    torch.save(tensors or {"x": torch.zeros(4)}, path)
    with zipfile.ZipFile(path) as archive:
        entries = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, data in entries.items():
            archive.writestr(name, instructions if name.endswith("/data.pkl") else data)
    return path


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def attacks(marker: Path) -> dict[str, bytes]:
    touch, python = f"touch '{marker}'", f"open({str(marker)!r}, 'w')"
    call = b"\x85R"
    system = b"cposix\nsystem\n" + text(touch) + call
    attribute = b"c__builtin__\ngetattr\nc__builtin__\n__import__\n" + text("os") + call + text("system") + b"\x86R"
    return {
        "posix.system": system,
        "nt.system": b"cnt\nsystem\n" + text(touch) + call,
        "eval": b"c__builtin__\neval\n" + text(python) + call,
        "exec": b"cbuiltins\nexec\n" + text(python) + call,
        "getattr": attribute + text(touch) + call,
        "stack global": text("posix") + text("system") + b"\x93" + text(touch) + call,
        "dotted name": text("torch") + text("serialization.os.system") + b"\x93" + text(touch) + call,
        "dotted in an allowed module": text("collections") + text("abc.sys.modules") + b"\x93" + text(touch) + call,
        "class instantiated": b"csubprocess\nPopen\n" + text(touch) + b"\x85\x81",
        "keyword instantiated": b"csubprocess\nPopen\n" + text(touch) + b"\x85}\x92",
        "old instance": b"(" + text(touch) + b"iposix\nsystem\n",
        "old object": b"(cposix\nsystem\n" + text(touch) + b"o",
        "nested in a configuration": b"comegaconf.listconfig\nListConfig\n)\x81}" + text("_content") + system + b"sb",
        "argument of a tensor": b"ctorch._utils\n_rebuild_tensor_v2\n(" + system + b"tR",
        "third-party function": b"cnumpy.testing._private.utils\nrunstring\n" + text(python) + b"}\x86R",
        "torch's own loader": b"ctorch\nload\n" + text(str(marker)) + call,
        "our own function": b"chnet_cli.storage\nremove_folder\n" + text(str(marker.parent)) + call,
        "extension registry": b"\x82\x01",
        "operator": b"coperator\nattrgetter\n" + text("system") + call,
        "functools": b"cfunctools\npartial\n" + b"cposix\nsystem\n" + text(touch) + b"\x86R",
        "runpy": b"crunpy\n_run_code\n" + text(python) + b"}\x86R",
        "textual persistent id": b"Pposix.system\n",
    }


@pytest.mark.parametrize("attack", sorted(attacks(Path("x"))))
def test_a_pickle_is_never_executed(tmp_path: Path, config_file: Path, attack: str) -> None:
    """Beside whole weights, so that the attack is the only thing wrong."""
    marker = tmp_path / "executed"
    state = weights()
    path = tmp_path / "a.pt"
    torch.save(state, path)
    with zipfile.ZipFile(path) as archive:
        good = archive.read("a/data.pkl")
    body = good[2:-1]  # without PROTO and STOP: a dict on the stack
    path = with_pickle(
        path, b"\x80\x02}" + text("state_dict") + body + b"s" + text("extra") + attacks(marker)[attack] + b"s.", state
    )
    with pytest.raises(InputError) as caught:
        convert(path, tmp_path / "ours", config_file)
    assert caught.value.exit_code == 3
    assert not marker.exists()
    assert not (tmp_path / "ours").exists()
    if attack == "posix.system":
        assert "'posix.system'" in str(caught.value)


def test_the_attacks_are_real(tmp_path: Path) -> None:
    """Python's own unpickler does run them: the marker tells the difference."""
    marker = tmp_path / "executed"
    for attack in ("posix.system", "eval", "getattr", "old instance"):
        pickle.loads(b"\x80\x02" + attacks(marker)[attack] + b".")
        assert marker.exists(), attack
        marker.unlink()


STORAGE = (
    b"ctorch._utils\n_rebuild_tensor_v2\n(("
    + text("storage")
    + b"ctorch\nFloatStorage\n"
    + text("0")
    + text("cpu")
    + b"K\x04tQ"
)


def tensor(offset: int, shape: tuple[int, ...], stride: tuple[int, ...]) -> bytes:
    def number(value: int) -> bytes:
        return b"\x8a\x08" + struct.pack("<q", value)

    def many(values: tuple[int, ...]) -> bytes:
        return b"(" + b"".join(map(number, values)) + b"t"

    return STORAGE + number(offset) + many(shape) + many(stride) + b"\x89}tR"


def long(value: int) -> bytes:
    data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data


BOMBS = {
    "keys of one hash": b"}(" + b"".join(long(((1 << 61) - 1) * (n << 61)) + b"N" for n in range(1, 80_000)) + b"u",
    "a huge key, hashed often": (
        b"}q\x01" + b"\x8b" + struct.pack("<i", 1 << 20) + b"\x01" * (1 << 20) + b"q\x0200" + b"h\x01h\x02Ns0" * 120_000
    ),
    "beyond its bytes": tensor(0, (5,), (1,)),
    "offset beyond": tensor(4, (1,), (1,)),
    "negative offset": tensor(-1, (1,), (1,)),
    "negative stride": tensor(3, (4,), (-1,)),
    "expanded to terabytes": tensor(0, (1 << 40,), (0,)),
    "overflowing shape": tensor(0, (1 << 62, 1 << 62), (1, 1)),
    "strides of another rank": tensor(0, (2, 2), (2,)),
    "dict key that takes forever to hash": b")" + b"2\x86" * 60 + b"K\x01s",
    "name that takes forever to print": b")" + b"2\x86" * 60 + text("x") + b"\x93",
    "deep nesting": b"]" * 100_000 + b"a" * 99_999,
    "endless attributes": b"ctorch._tensor\n_rebuild_from_type_v2\nq\x00" * 3 + b"h\x00)\x86R",
    "breaks off": b"X\xff\xff\xff\x7fabc",
    "pops too much": b"0" * 50,
    "unknown memo": b"h\x07",
    "long number": b"\x8b\xff\xff\xff\x7f1",
    "twenty million instructions": b"]0" * 10_000_000,
}


@pytest.mark.parametrize("bomb", sorted(BOMBS))
def test_sizes_are_checked_before_anything_is_allocated(tmp_path: Path, config_file: Path, bomb: str) -> None:
    path = with_pickle(tmp_path / "a.pt", b"\x80\x02}" + text("embeddings.weight") + BOMBS[bomb] + b"s.")
    with pytest.raises((InputError, DamagedError)):
        convert(path, tmp_path / "ours", config_file)
    assert not (tmp_path / "ours").exists()


# --- the zip ----------------------------------------------------------------------------------------------------------

NUMBER = st.sampled_from([0, 1, 46, 0xFFFF, 1 << 31, 0xFFFFFFFF, 1 << 40, (1 << 63) - 1, 1 << 63, (1 << 64) - 1])


def in_zip64(path: Path, **told: int) -> Path:
    """A `.pt` of two tensors whose directory ends as one of more than 4 GB; `told`: fields that say something else."""
    torch.save({"x": torch.arange(4), "y": torch.ones(3)}, path)
    whole = path.read_bytes()
    end = whole.rindex(b"PK\5\6")
    entries, size, start = struct.unpack("<10xHLL2x", whole[end:])
    directory = whole[start : start + size]
    fields = {"entries": entries, "size": size, "start": start, "at": start + size, "length": 44} | told
    ends = struct.pack("<4sQ2H2L", b"PK\6\6", fields["length"], 45, 45, 0, 0)
    ends += struct.pack("<4Q", fields["entries"], fields["entries"], fields["size"], fields["start"])
    ends += struct.pack("<4sLQL", b"PK\6\7", 0, fields["at"], 1)
    path.write_bytes(
        whole[:start] + directory + ends + struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, *[0xFFFF] * 2, *[0xFFFFFFFF] * 2, 0)
    )
    return path


def read_all(path: Path) -> dict[str, torch.Tensor]:
    return {name: stored.read() for name, stored in torch_file.read_torch_file(path).items()}


@given(st.dictionaries(st.sampled_from(["entries", "size", "start", "at", "length"]), NUMBER, max_size=2))
def test_ends_of_a_zip_that_lie(tmp_path_factory: pytest.TempPathFactory, told: dict[str, int]) -> None:
    path = in_zip64(tmp_path_factory.mktemp("zip") / "a.pt", **told)
    try:
        found = read_all(path)
    except (InputError, DamagedError):
        return
    assert same(found, {"x": torch.arange(4), "y": torch.ones(3)})


@given(st.integers(0, 2000), st.lists(st.integers(0, 255), min_size=1, max_size=8))
def test_a_directory_with_wrong_bytes(tmp_path_factory: pytest.TempPathFactory, at: int, wrong: list[int]) -> None:
    path = in_zip64(tmp_path_factory.mktemp("zip") / "a.pt")
    whole = bytearray(path.read_bytes())
    start = len(whole) - 1 - at % (len(whole) - whole.index(b"PK\1\2"))
    whole[start : start + len(wrong)] = bytes(wrong)[: len(whole) - start]
    path.write_bytes(whole)
    with contextlib.suppress(InputError, DamagedError):
        read_all(path)


@pytest.mark.parametrize("name", [b"a/data/%d", b"a/data/%060000d"])
def test_a_directory_of_millions_is_refused_before_it_is_read(tmp_path: Path, name: bytes) -> None:
    """A central directory has no need of files: 3,000,000 entries took a minute and 1.3 GB."""
    path = in_zip64(tmp_path / "a.pt")
    whole = path.read_bytes()
    at, end = whole.index(b"PK\1\2"), whole.rindex(b"PK\6\6")
    entry = struct.pack("<4s6H3L5H2L", b"PK\1\2", 20, 20, *[0] * 7, len(name % 0), *[0] * 6)
    more = b"".join(entry + name % n for n in range(1 + torch_file.MOST_DIRECTORY // len(entry + name % 0)))
    ends = bytearray(whole[end:])
    ends[40:48] = struct.pack("<Q", end - at + len(more))
    ends[64:72] = struct.pack("<Q", end + len(more))
    path.write_bytes(whole[:end] + more + ends)
    with pytest.raises(DamagedError, match=r"a directory of [0-9,]+ bytes, more than 16,777,216"):
        torch_file.read_torch_file(path)
