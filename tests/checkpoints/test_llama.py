"""Pretrained Transformers over tokens: read exactly, and what is not one is named."""

import contextlib
import importlib.util
import json
import math
import random

import pytest
import torch
from llamakit import LLAMA, LLAMA3, VOCABULARY, llama, tensors
from runkit import dataset
from strangerkit import changed

from hnet_cli.checkpoints.llama import read
from hnet_cli.data.dataset import Dataset
from hnet_cli.data.tokens import learned
from hnet_cli.errors import DamagedError, InputError, UsageError
from hnet_cli.model import HNetForCausalLM

pytest.importorskip("tokenizers")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return learned(Dataset.open(dataset(tmp_path_factory.mktemp("fox"))), VOCABULARY)


def llama_logits(w, config, ids):
    """Llama's forward pass for one sequence, written down anew in float64."""
    d, heads, groups = config["hidden_size"], config["num_attention_heads"], config["num_key_value_heads"]
    head, length = d // heads, len(ids)
    w = {name: value.double() for name, value in w.items()}
    inverse = [config["rope_theta"] ** (-2 * i / head) for i in range(head // 2)]
    if scaling := config.get("rope_scaling"):
        for i, frequency in enumerate(inverse):
            wavelength, original = 2 * math.pi / frequency, scaling["original_max_position_embeddings"]
            low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
            if wavelength > original / low:
                inverse[i] = frequency / scaling["factor"]
            elif wavelength > original / high:
                smooth = (original / wavelength - low) / (high - low)
                inverse[i] = (1 - smooth) * frequency / scaling["factor"] + smooth * frequency
    angle = torch.arange(length).double()[:, None] * torch.tensor(inverse * 2, dtype=torch.float64)

    def norm(x, name):
        return x / (x.square().mean(-1, keepdim=True) + config["rms_norm_eps"]).sqrt() * w[name]

    def turn(x):
        swapped = torch.cat([-x[..., head // 2 :], x[..., : head // 2]], -1)
        return x * angle.cos() + swapped * angle.sin()

    def split(x, count):
        return x.view(length, count, head).transpose(0, 1)

    x = w["model.embed_tokens.weight"][ids]
    for n in range(config["num_hidden_layers"]):
        at = f"model.layers.{n}."
        y = norm(x, at + "input_layernorm.weight")
        q, k, v = (y @ w[f"{at}self_attn.{name}_proj.weight"].T for name in "qkv")
        q, k, v = turn(split(q, heads)), turn(split(k, groups)), split(v, groups)
        k, v = (t.repeat_interleave(heads // groups, 0) for t in (k, v))
        scores = q @ k.transpose(1, 2) / math.sqrt(head)
        scores = scores.masked_fill(torch.ones(length, length).triu(1).bool(), -math.inf).softmax(-1)
        x = x + (scores @ v).transpose(0, 1).reshape(length, d) @ w[f"{at}self_attn.o_proj.weight"].T
        y = norm(x, at + "post_attention_layernorm.weight")
        gate, up = (y @ w[f"{at}mlp.{name}_proj.weight"].T for name in ("gate", "up"))
        x = x + (torch.nn.functional.silu(gate) * up) @ w[at + "mlp.down_proj.weight"].T
    head_weight = w.get("lm_head.weight", w["model.embed_tokens.weight"])
    return norm(x, "model.norm.weight") @ head_weight.T


def own_model(source):
    """The Transformer of a folder as our isotropic model, float64."""
    teacher = read(source)
    model = HNetForCausalLM(teacher.config)
    model.load_state_dict({name: stored.read() for name, stored in teacher.weights.items()})
    return model.double().eval()


@pytest.mark.parametrize(
    ("changes", "shards"),
    [
        ({}, 1),
        ({"tie_word_embeddings": True, "rope_scaling": LLAMA3}, 3),
        ({"rope_theta": None, "rope_parameters": {"rope_theta": 500.0} | LLAMA3}, 1),
    ],
    ids=["grouped", "tied, scaled, sharded", "transformers 5"],
)
def test_a_llama_is_read_exactly(tmp_path, tokenizer, changes, shards):
    folder = llama(tmp_path / "llama", tokenizer, shards, **changes)
    ids = torch.randint(0, VOCABULARY, (150,), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        ours = own_model(folder)(ids[None]).logits[0]
    facts = LLAMA | changes
    facts |= {"rope_theta": 500.0, "rope_scaling": facts.get("rope_scaling") or facts.get("rope_parameters")}
    theirs = llama_logits(tensors(facts), facts, ids)
    assert (ours - theirs).abs().max() < 1e-5  # angles are float32
    if importlib.util.find_spec("transformers"):
        from transformers import AutoModelForCausalLM

        with torch.no_grad():
            official = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)(ids[None]).logits[0]
        assert (ours - official).abs().max() < 1e-5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "qwen2"}, "model_type is 'qwen2', not 'llama'"),
        ({"rms_norm_eps": 1e-6}, "rms_norm_eps is 1e-06"),
        ({"attention_bias": True}, "attention_bias"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"head_dim": 32}, "head_dim"),
        ({"rope_scaling": {"type": "yarn", "factor": 2}}, "'yarn'"),
        ({"hidden_size": None}, "lacks 'hidden_size'"),
        ({"num_attention_heads": 0}, "does not describe a Transformer"),
        ({"rope_parameters": [1]}, "does not describe a Transformer"),
        ({"num_key_value_heads": 3}, "cannot share 3"),
    ],
)
def test_other_architectures_are_refused(tmp_path, tokenizer, changes, message):
    folder = llama(tmp_path / "x", tokenizer)
    config = {key: value for key, value in (LLAMA | changes).items() if value is not None}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UsageError, match=message):
        read(folder)


def test_what_is_missing_is_named(tmp_path, tokenizer):
    folder = llama(tmp_path / "x", tokenizer, shards=2)
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(DamagedError, match=r"model\.\S+ is missing"):
        read(folder)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(InputError, match=r"no tokenizer\.json"):
        read(folder)
    with pytest.raises(InputError, match="there is no model"):
        read(tmp_path / "nowhere")


def test_a_configuration_of_a_stranger_is_refused_or_fits(tmp_path, tokenizer):
    folder = llama(tmp_path / "x", tokenizer)
    stored = json.loads((folder / "config.json").read_text())
    for number in range(100):
        (folder / "config.json").write_text(changed(stored, random.Random(number))[0])
        with contextlib.suppress(UsageError, DamagedError):
            assert read(folder).config.num_parameters < 10**6
