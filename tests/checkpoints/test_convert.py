"""Checkpoints in and out: exact, checked, and never executing what a file asks for."""

from __future__ import annotations

import json
import os
import pickle
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from convertkit import CONFIG, same, weights, written_config
from safetensors.torch import load_file, save_file

from hnet_cli import storage
from hnet_cli.checkpoints import find as finding
from hnet_cli.checkpoints.convert import convert, expected_shapes
from hnet_cli.checkpoints.torch_file import Stored, read_torch_file
from hnet_cli.config.run import resolve
from hnet_cli.errors import BusyError, DamagedError, HNetError, InputError, UsageError
from hnet_cli.model import HNetConfig, HNetForCausalLM


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    return written_config(tmp_path)


# --- what a good file becomes -----------------------------------------------------------------------------------------


def test_round_trip_is_exact(tmp_path: Path, config_file: Path) -> None:
    """official .pt -> ours -> official safetensors -> ours -> official .pt, mixed dtypes, a NaN, a view."""
    state = weights()
    state["embeddings.weight"][0, 0] = float("nan")
    state["lm_head.weight"] = state["lm_head.weight"].bfloat16()
    state["backbone.residual_proj.weight"] = state["backbone.residual_proj.weight"].half().t()
    torch.save(state, tmp_path / "a.pt")
    done = convert(tmp_path / "a.pt", tmp_path / "ours", config_file)
    assert same(load_file(tmp_path / "ours/model.safetensors"), state)
    assert done.parameters == HNetConfig.from_dict(CONFIG).num_parameters
    assert done.dtypes == {"float32": len(state) - 2, "bfloat16": 1, "float16": 1}
    storage.verify_folder(tmp_path / "ours")

    convert(tmp_path / "ours", tmp_path / "b.safetensors")
    assert same(load_file(tmp_path / "b.safetensors"), state)
    convert(tmp_path / "b.safetensors", tmp_path / "again")
    convert(tmp_path / "again", tmp_path / "c.pt")
    assert same(torch.load(tmp_path / "c.pt", weights_only=True), state)
    assert list(torch.load(tmp_path / "c.pt", weights_only=True)) == list(state), "the order of the state dict is kept"
    assert json.loads((tmp_path / "c.json").read_text()) == CONFIG
    assert (tmp_path / "again/model.safetensors").read_bytes() == (tmp_path / "ours/model.safetensors").read_bytes()


def test_converted_model_computes_the_same(tmp_path: Path, config_file: Path) -> None:
    torch.manual_seed(0)
    model = HNetForCausalLM(HNetConfig.from_dict(CONFIG)).eval()
    torch.save(model.state_dict(), tmp_path / "a.pt")
    convert(tmp_path / "a.pt", tmp_path / "ours", config_file)
    loaded = finding.load(tmp_path / "ours")
    ids = torch.randint(0, 256, (2, 40))
    with torch.no_grad():
        assert torch.equal(loaded(ids).logits, model(ids).logits)


@pytest.mark.parametrize("name", ["A_seed0", "B_seed0", "D_seed0"])
def test_parity_weights_convert(tmp_path: Path, name: str) -> None:
    """Weights of the official release's code: the converted model gives the logits that code gives."""
    golden = Path(__file__).parents[1] / "golden/parity"
    (tmp_path / "config.json").write_text(json.dumps(json.loads((golden / f"{name}.json").read_text())["config"]))
    torch.save(load_file(golden / f"{name}.weights.safetensors"), tmp_path / "official.pt")
    convert(tmp_path / "official.pt", tmp_path / "ours")
    values = load_file(golden / f"{name}.io.safetensors")
    with torch.no_grad():
        logits = finding.load(tmp_path / "ours")(values["mask.input_ids"]).logits
    torch.testing.assert_close(logits, values["mask.logits"], atol=1e-4, rtol=0)


def test_tied_embeddings_are_stored_once(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG | {"tie_embeddings": True}))
    state = weights(tie_embeddings=True)
    state["lm_head.weight"] = state["embeddings.weight"]
    torch.save(state, tmp_path / "a.pt")
    convert(tmp_path / "a.pt", tmp_path / "ours")
    assert "lm_head.weight" not in load_file(tmp_path / "ours/model.safetensors")
    convert(tmp_path / "ours", tmp_path / "b.pt")
    assert same(torch.load(tmp_path / "b.pt", weights_only=True), state)
    torch.save(state | {"lm_head.weight": state["lm_head.weight"] + 1}, tmp_path / "c.pt")
    with pytest.raises(DamagedError, match="tied"):
        convert(tmp_path / "c.pt", tmp_path / "c")


def test_shapes_of_a_preset_are_recognised(tmp_path: Path) -> None:
    preset = resolve("nano")
    torch.save({k: torch.zeros(s) for k, s in expected_shapes(preset.model).items()}, tmp_path / "a.pt")
    done = convert(tmp_path / "a.pt", tmp_path / "ours", modality="text")
    stored = json.loads((tmp_path / "ours/config.json").read_text())
    assert done.configuration == "preset nano"
    assert done.modality == stored["hnet"]["modality"] == finding.load(tmp_path / "ours").modality == "text"
    assert stored["hnet"]["target_ratios"] == preset.train.target_ratios
    torch.save(weights(), tmp_path / "b.pt")
    with pytest.raises(UsageError, match="no preset has these shapes"):
        convert(tmp_path / "b.pt", tmp_path / "other")


def test_a_model_for_our_code_alone_is_not_called_official(tmp_path: Path, config_file: Path) -> None:
    save_file(weights(), tmp_path / "a.safetensors")
    for change in (
        {"hnet": {"chunker": {"kind": "fixed", "k": 4}}},
        {"hnet": {"residual": "spacebyte"}},
        {"ssm_cfg": CONFIG["ssm_cfg"] | {"headdim": 32}},
    ):
        settings = CONFIG | change
        config_file.write_text(json.dumps(settings))
        shapes = expected_shapes(HNetConfig.from_dict(settings))
        save_file({k: torch.zeros(s) for k, s in shapes.items()}, tmp_path / "a.safetensors")
        convert(tmp_path / "a.safetensors", tmp_path / "ours", config_file, overwrite=True)
        with pytest.raises(UsageError, match=r"official code (knows only|does not know)"):
            convert(tmp_path / "ours", tmp_path / "b.pt")
        assert not (tmp_path / "b.pt").exists()
        assert not (tmp_path / "b.json").exists()


def test_nothing_is_replaced_unasked(tmp_path: Path, config_file: Path) -> None:
    torch.save(weights(0), tmp_path / "a.pt")
    for target in ("ours", "b.pt"):
        convert(tmp_path / "a.pt", tmp_path / target, config_file)
        with pytest.raises(BusyError, match="exists already"):
            convert(tmp_path / "a.pt", tmp_path / target, config_file)
        convert(tmp_path / "a.pt", tmp_path / target, config_file, overwrite=True)
    assert same(torch.load(tmp_path / "b.pt", weights_only=True), weights(0))


# --- damaged and mistaken files ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.3, 0.9, 0.999])
def test_truncated_file(tmp_path: Path, config_file: Path, share: float) -> None:
    torch.save(weights(), tmp_path / "a.pt")
    save_file(weights(), tmp_path / "a.safetensors")
    for name in ("a.pt", "a.safetensors"):
        data = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(data[: int(len(data) * share)])
        with pytest.raises(DamagedError, match="damaged"):
            convert(tmp_path / name, tmp_path / "ours", config_file)
    assert sorted(os.listdir(tmp_path)) == ["a.pt", "a.safetensors", "model.json"]


def test_a_flipped_bit_is_named_and_nothing_half_written(tmp_path: Path, config_file: Path) -> None:
    torch.save(weights(), tmp_path / "a.pt")
    with zipfile.ZipFile(tmp_path / "a.pt") as archive:
        largest = max(archive.infolist(), key=lambda entry: entry.file_size)
    data = bytearray((tmp_path / "a.pt").read_bytes())
    data[largest.header_offset + 1000] ^= 1
    (tmp_path / "a.pt").write_bytes(data)
    for target in ("ours", "b.pt", "b.safetensors"):
        with pytest.raises(DamagedError, match="checksum"):
            convert(tmp_path / "a.pt", tmp_path / target, config_file)
        assert not (tmp_path / target).exists()
    assert not list(tmp_path.glob(".*"))


def test_checksums_may_be_absent(tmp_path: Path, config_file: Path) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(weights(), tmp_path / "a.pt")
    finally:
        torch.serialization.set_crc32_options(True)
    convert(tmp_path / "a.pt", tmp_path / "ours", config_file)
    assert same(load_file(tmp_path / "ours/model.safetensors"), weights())


def test_a_damaged_model_of_ours_is_not_passed_on(tmp_path: Path, config_file: Path) -> None:
    torch.save(weights(), tmp_path / "a.pt")
    convert(tmp_path / "a.pt", tmp_path / "ours", config_file)
    file = tmp_path / "ours/model.safetensors"
    data = bytearray(file.read_bytes())
    data[-5] ^= 1
    file.write_bytes(data)
    with pytest.raises(DamagedError, match="SHA-256"):
        convert(tmp_path / "ours", tmp_path / "b.pt")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s.pop("lm_head.weight"), "1 missing .'lm_head.weight'"),
        (lambda s: s.update(stranger=torch.zeros(2)), "1 unexpected .'stranger'"),
        (lambda s: s.update({"lm_head.weight": torch.zeros(256, 31)}), r"\[256, 31\], not \[256, 32\]"),
        (lambda s: s.update({"lm_head.weight": s["lm_head.weight"].long()}), "not of a float dtype"),
        (lambda s: [s.pop(k) for k in list(s)[:-1]], r"\d+ missing .*, \.\.\."),
    ],
)
def test_weights_that_do_not_fit_are_named(tmp_path: Path, config_file: Path, change: object, words: str) -> None:
    state = weights()
    change(state)  # type: ignore[operator]
    torch.save(state, tmp_path / "a.pt")
    with pytest.raises(DamagedError, match=words):
        convert(tmp_path / "a.pt", tmp_path / "ours", config_file)
    assert not (tmp_path / "ours").exists()


def raw(header: object, body: bytes = bytes(16), length: int | None = None) -> bytes:
    encoded = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(encoded) if length is None else length) + encoded + body


F32 = {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}
HEADERS = {
    "longer than the file": raw({"a": F32}, length=1 << 40),
    "overflowing length": raw({"a": F32}, length=(1 << 64) - 1),
    "not JSON": raw(b"{nonsense}"),
    "deep JSON": raw(b'{"a":' * 50_000),
    "offsets beyond the file": raw({"a": F32 | {"data_offsets": [0, 1600], "shape": [400]}}),
    "offsets reversed": raw({"a": F32 | {"data_offsets": [16, 0]}}),
    "shape too large": raw({"a": F32 | {"shape": [1 << 40, 1 << 40]}}),
    "overlapping": raw({"a": F32, "b": F32}),
    "unknown dtype": raw({"a": F32 | {"dtype": "F99"}}),
    "integers": raw({"a": F32 | {"dtype": "I32"}}),
    "a hole": raw({"a": F32 | {"data_offsets": [16, 32]}}, bytes(32)),
    "no tensors": raw({}, b""),
}


@pytest.mark.parametrize("abuse", sorted(HEADERS))
def test_abused_safetensors_headers(tmp_path: Path, config_file: Path, abuse: str) -> None:
    (tmp_path / "a.safetensors").write_bytes(HEADERS[abuse])
    with pytest.raises((InputError, DamagedError)):
        convert(tmp_path / "a.safetensors", tmp_path / "ours", config_file)
    assert not (tmp_path / "ours").exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "empty"),
        (b"hello, this is text", "holds no weights"),
        (pickle.dumps({"a": 1}, 2), "bare pickle"),
        (b"PK\x03\x04 but no zip", "damaged"),
    ],
)
def test_not_a_model(tmp_path: Path, config_file: Path, content: bytes, words: str) -> None:
    (tmp_path / "a.pt").write_bytes(content)
    with pytest.raises(HNetError, match=words) as caught:
        convert(tmp_path / "a.pt", tmp_path / "ours", config_file)
    assert caught.value.exit_code in (3, 4)


def test_mistakes_are_named(tmp_path: Path, config_file: Path) -> None:
    torch.save(torch.nn.Linear(2, 2), tmp_path / "module.pt")
    with pytest.raises(InputError, match=r"torch\.nn\.modules\.linear\.Linear"):
        convert(tmp_path / "module.pt", tmp_path / "ours", config_file)
    torch.save({"epoch": 3}, tmp_path / "nothing.pt")
    with pytest.raises(InputError, match="no state dict"):
        convert(tmp_path / "nothing.pt", tmp_path / "ours", config_file)
    with pytest.raises(InputError, match="there is no model"):
        convert(tmp_path / "missing.pt", tmp_path / "ours", config_file)
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match="holds no weights"):
        convert(tmp_path / "folder", tmp_path / "ours", config_file)
    torch.save(weights(), tmp_path / "a.pt")
    with pytest.raises(InputError, match="no configuration at"):
        convert(tmp_path / "a.pt", tmp_path / "ours", tmp_path / "no.json")
    with pytest.raises(UsageError, match="no modality is called 'klingon'"):
        convert(tmp_path / "a.pt", tmp_path / "ours", config_file, modality="klingon")
    for content in ("{", "[1]", json.dumps(CONFIG | {"colour": 1}), '{"a":' * 50_000):
        config_file.write_text(content)
        with pytest.raises(UsageError, match=r"model\.json"):
            convert(tmp_path / "a.pt", tmp_path / "ours", config_file)


# --- large files ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    """96 MB of weights in 1.5 MB tensors pass through 40 MB, on top of what importing takes."""
    settings = CONFIG | {"arch_layout": ["T0", ["T96"], "T0"], "d_model": [32, 256], "d_intermediate": [0, 256]}
    settings["arch_layout"] = ["m1", ["T52"], "m1"]
    (tmp_path / "config.json").write_text(json.dumps(settings))
    shapes = expected_shapes(HNetConfig.from_dict(settings))
    torch.save({name: torch.ones(shape) for name, shape in shapes.items()}, tmp_path / "a.pt")
    size = (tmp_path / "a.pt").stat().st_size
    script = """
import resource, sys
from pathlib import Path
from hnet_cli.checkpoints.convert import convert, expected_shapes
convert(Path(sys.argv[1]), Path(sys.argv[2]), modality="text")
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
before = peak()
convert(Path(sys.argv[3]), Path(sys.argv[4]))
print(peak() - before)
"""
    small = tmp_path / "small"
    small.mkdir()
    (small / "config.json").write_text(json.dumps(CONFIG))
    torch.save(weights(), small / "a.pt")
    paths = [small / "a.pt", small / "ours", tmp_path / "a.pt", tmp_path / "ours"]
    run = subprocess.run([sys.executable, "-c", script, *map(str, paths)], capture_output=True, text=True, check=True)
    assert size > 80_000_000
    assert int(run.stdout) < 40_000_000


def test_reader_reads_only_what_is_asked_for(tmp_path: Path) -> None:
    """A tensor that is a view into a large storage costs its own bytes."""
    base = torch.arange(1000.0)
    torch.save({"part": base[10:20], "column": base.view(10, 100)[:, 3], "none": base[:0]}, tmp_path / "a.pt")
    read = read_torch_file(tmp_path / "a.pt")
    assert all(isinstance(stored, Stored) for stored in read.values())
    assert torch.equal(read["part"].read(), base[10:20])
    assert torch.equal(read["column"].read(), base.view(10, 100)[:, 3])
    assert read["none"].read().shape == (0,)


def test_weights_can_be_stored_smaller(tmp_path: Path, config_file: Path) -> None:
    saved = weights()
    save_file(saved, tmp_path / "big.safetensors")
    done = convert(tmp_path / "big.safetensors", tmp_path / "small", config_file, dtype="bf16")
    stored = load_file(tmp_path / "small" / "model.safetensors")
    assert done.dtypes == {"bfloat16": len(saved)}
    assert same(stored, {name: tensor.bfloat16() for name, tensor in saved.items()})
    with pytest.raises(UsageError, match="int4"):
        convert(tmp_path / "small", tmp_path / "other", dtype="int4")


@pytest.mark.slow
def test_without_transformers_the_extra_is_named() -> None:
    code = "import sys; sys.modules['transformers'] = None; import hnet_cli.transformers"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "transformers 5 is not installed" in run.stderr
    assert run.returncode != 0


@pytest.mark.parametrize("dtype", [None, "bf16"])
def test_numbers_that_are_not_finite_are_converted_with_a_warning(
    tmp_path: Path, config_file: Path, dtype: str | None
) -> None:
    state = weights()
    for name, value in zip(list(state)[:2], (float("nan"), float("inf")), strict=True):
        state[name].view(-1)[0] = value
    save_file(state, tmp_path / "nan.safetensors")
    with pytest.warns(UserWarning, match=rf"2 of the {len(state)} tensors .* not finite"):
        convert(tmp_path / "nan.safetensors", tmp_path / "out", config_file, dtype=dtype)
    assert len(load_file(tmp_path / "out/model.safetensors")) == len(state)
