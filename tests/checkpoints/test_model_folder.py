"""Model folders: what they say, where their weights lie, and what does not fit is named."""

import json
import os
import shutil

import pytest
import torch

import hnet_cli
from hnet_cli.checkpoints.convert import convert
from hnet_cli.checkpoints.find import find, load
from hnet_cli.errors import DamagedError, UsageError


def test_a_model_folder_says_what_it_is(trained):
    stored = json.loads((find(trained) / "config.json").read_text())
    assert stored["arch_layout"] == ["m1", ["T1"], "m1"]
    assert stored["hnet"]["modality"] == "text"
    assert stored["hnet"]["target_ratios"] == [4.0]
    assert hnet_cli.HNetConfig.from_json(find(trained) / "config.json").target_ratios == (4.0,)


def test_the_python_interface(trained):
    model = hnet_cli.load(str(trained))
    data = "Kette — 世界, the quick brown fox".encode()
    chunks = model.segment(data)
    assert b"".join(chunks) == data
    assert len(chunks) > 1
    assert model.modality == "text"
    assert not model.training
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert model.segment(b"") == []
    assert [chunk.data for chunk in model.chunks(data.decode())] == chunks
    assert model.bits(data) == pytest.approx(model.chunks(data).bits) == pytest.approx(model.score(data).sum())
    assert repr(model).endswith("1 stage, on cpu>")
    assert len(repr(model)) < 100


def test_continuations_are_those_of_the_command(trained, capsys):
    model = hnet_cli.load(str(trained))
    from hnet_cli.cli.sample import sample

    sample(str(trained), "The quick", max_bytes=20, number=2, seed=3, as_json=True, device="cpu")
    shown = [json.loads(line)["text"] for line in capsys.readouterr().out.splitlines()]
    assert model.sample("The quick", 2, max_bytes=20, seed=3) == shown
    assert model.sample(b"The quick", max_bytes=20, seed=3) == shown[0].encode()
    before = model.thresholds
    assert isinstance(model.sample(max_bytes=5, bytes_per_chunk=3), str)
    assert model.thresholds == before
    with pytest.raises(UsageError, match="no option 'max_byte'"):
        model.sample("a", max_byte=5)


def test_half_a_surrogate_pair_is_named(trained):
    model = hnet_cli.load(str(trained))
    assert model.segment("a\udcffb") == model.segment(b"a\xffb")
    for call in (model.chunks, model.bits, model.sample):
        with pytest.raises(UsageError, match=r"character 1 of the text is half a surrogate pair, '\\ud800'"):
            call("a\ud800b")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_model_in_use_stays_what_it_was(tmp_path, trained, dtype):
    """Its file may be cut, changed or deleted; and nothing done to the model reaches the file."""
    convert(find(trained), tmp_path / "model", dtype={torch.float32: "fp32", torch.bfloat16: "bf16"}[dtype])
    file = tmp_path / "model/model.safetensors"
    model = load(tmp_path / "model", dtype=dtype)
    for name, parameter in model.named_parameters():
        wide = "residual_proj" in name or name.endswith(".D")
        assert parameter.dtype == (torch.float32 if wide else dtype), name
    before, bytes_before = model.segment(b"the quick brown fox " * 20), file.read_bytes()
    with open(file, "r+b") as opened:
        opened.seek(-1000, 2)
        opened.write(bytes(1000))
    assert model.segment(b"the quick brown fox " * 20) == before
    os.truncate(file, 100)
    assert model.segment(b"the quick brown fox " * 20) == before
    file.write_bytes(bytes_before)
    with torch.no_grad():
        model.embeddings.weight.zero_()
    assert file.read_bytes() == bytes_before


def test_only_large_models_compute_in_half_precision(tmp_path, trained, monkeypatch):
    convert(find(trained), tmp_path / "model", dtype="bf16")
    exact = load(tmp_path / "model")
    assert {p.dtype for p in exact.parameters()} == {torch.float32}
    monkeypatch.setattr("hnet_cli.checkpoints.model_folder.WIDENED", 1000)
    large = load(tmp_path / "model")
    assert large.embeddings.weight.dtype == torch.bfloat16
    assert load(trained).embeddings.weight.dtype == torch.float32, "what is stored in float32 stays so"
    data = b"the quick brown fox jumps over the lazy dog " * 20
    assert b"".join(large.segment(data)) == data
    ids = torch.tensor([list(data)])
    with torch.no_grad():
        assert (large(ids).logits.float() - exact(ids).logits).abs().max() < 0.1
    state = large.allocate_state(1, 100)
    stepped = [large.prefill([data[:5]], state), *(large.step(ids[:, t], state)[0] for t in range(5, 20))]
    with torch.no_grad():
        torch.testing.assert_close(torch.stack(stepped, 1), large(ids[:, :20]).logits[:, 4:], atol=0.1, rtol=0)


def test_files_of_another_checkpoint_are_damage(run):
    two, three = (run / f"checkpoints/step-0000000{n}/model.safetensors" for n in (2, 3))
    shutil.copy(two, three)
    with pytest.raises(DamagedError, match="SHA-256"):
        load(three.parent)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("config.json", b"{", "config.json"),
        ("config.json", b"[]", "config.json"),
        ("config.json", b"\xff", "config.json"),
        ("config.json", b"[" * 100_000, "config.json"),
        ("config.json", b'{"arch_layout": ["m1"]}', "lacks d_model"),
        ("model.safetensors", b"", "model.safetensors"),
        ("model.safetensors", b"\xff" * 64, "model.safetensors"),
        ("model.safetensors", b"\x80\x04cos\nsystem\n", "model.safetensors"),
    ],
)
def test_a_model_folder_without_manifest_is_checked_as_far_as_it_goes(run, name, content, said):
    folder = run / "checkpoints/step-00000003"
    (folder / "manifest.json").unlink()
    (folder / name).write_bytes(content)
    with pytest.raises(DamagedError, match=said):
        load(folder)


def test_weights_that_do_not_fit_the_configuration(run):
    folder = run / "checkpoints/step-00000003"
    (folder / "manifest.json").unlink()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"d_intermediate": [0, 256]}))
    with pytest.raises(DamagedError, match=r"does not fit its config\.json: 2 of another shape"):
        load(folder)
