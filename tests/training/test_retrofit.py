"""A Transformer over tokens becomes an H-Net: read exactly, kept frozen, taught by what it was."""

import importlib.util
import json
import math

import pytest
import torch
from runkit import FLAT, dataset, metrics, tiny, weights
from safetensors.torch import load_file, save_file

from hnet_cli import storage
from hnet_cli.checkpoints import find as finding
from hnet_cli.checkpoints import model_folder
from hnet_cli.checkpoints.llama import read
from hnet_cli.cli import app as cli
from hnet_cli.config.run import resolve
from hnet_cli.data.dataset import Dataset
from hnet_cli.data.tokens import learned
from hnet_cli.errors import BusyError, DamagedError, InputError, UsageError
from hnet_cli.kernels import Packing
from hnet_cli.model import HNetForCausalLM
from hnet_cli.training import budget
from hnet_cli.training.loop import train
from hnet_cli.training.retrofit import retrofit
from hnet_cli.training.teacher import Teacher

pytest.importorskip("tokenizers")
VOCABULARY = 320
LLAMA = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 100,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": VOCABULARY,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500.0,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
SMALL = [
    "model.d_model=[32, 64]",
    "model.arch_layout=[m1, [m1], m1]",
    "model.ssm_cfg={d_state: 8, headdim: 16}",
    "model.adapter_width=96",
    "train.sequence_length=64",
    "train.batch_bytes=512",
    "train.steps=8",
    "train.log_every=1",
    "train.eval_every=0",
    "train.eval_bytes=512",
    "train.checkpoint_every=4",
    "train.embedding_loss_weight=5",
    "train.samples=false",
    "precision=fp32",
]


@pytest.fixture(scope="module")
def tokenizer(data):
    return learned(Dataset.open(data), VOCABULARY)


def tensors(config, seed=0):
    generator = torch.Generator().manual_seed(seed)
    d, mlp, head = config["hidden_size"], config["intermediate_size"], config["hidden_size"] // 4
    shapes = {"model.embed_tokens.weight": (VOCABULARY, d), "model.norm.weight": (d,)}
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (VOCABULARY, d)
    for n in range(config["num_hidden_layers"]):
        layer = f"model.layers.{n}."
        shapes |= {layer + f"{name}_layernorm.weight": (d,) for name in ("input", "post_attention")}
        for name, rows in (("q", d), ("k", 2 * head), ("v", 2 * head), ("o", d)):
            shapes[layer + f"self_attn.{name}_proj.weight"] = (rows, d)
        shapes |= {layer + f"mlp.{name}_proj.weight": (mlp, d) for name in ("gate", "up")}
        shapes[layer + "mlp.down_proj.weight"] = (d, mlp)
    return {
        name: torch.randn(shape, generator=generator) / math.sqrt(shape[-1])
        if len(shape) > 1
        else 1 + 0.3 * torch.randn(shape, generator=generator)
        for name, shape in shapes.items()
    }


def llama(folder, tokenizer, shards=1, **changes):
    """A Llama-style folder with random weights; what `changes` makes None is left out of its configuration."""
    folder.mkdir(parents=True)
    config = {key: value for key, value in (LLAMA | changes).items() if value is not None}
    values = tensors(LLAMA | changes)
    for shard in range(shards):
        name = "model.safetensors" if shards == 1 else f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        save_file({key: values[key] for key in sorted(values)[shard::shards]}, folder / name)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text(tokenizer.text)
    return folder


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


# -- the H-Net made of it ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made(tmp_path_factory, tokenizer):
    """A Llama-style folder and the H-Net made of it."""
    folder = tmp_path_factory.mktemp("made")
    source = llama(folder / "llama", tokenizer)
    assert cli.run(["retrofit", str(source), str(folder / "hnet"), *(f"--set={each}" for each in SMALL)]) == 0
    return source, folder / "hnet"


def test_the_main_network_is_the_transformer(made):
    source, folder = made
    assert torch.equal(Teacher(folder).table, own_model(source).embeddings.weight)
    teacher, model = own_model(source), finding.load(folder).double()
    assert model.config.levels[1].main_network == "TT"
    hidden = torch.randn(40, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    packing = Packing.of_lengths([25, 15])
    outs = [
        stack(hidden, packing, model.kernels())
        for stack in (teacher.backbone.main_network, model.backbone.main_network.main_network)
    ]
    assert torch.equal(*outs)


def test_training_teaches_all_but_the_transformer(made, data, tmp_path):
    """Another step of the optimizer or a resumed run changes nothing of it, and needs the folder no longer."""
    _, folder = made
    moved = tmp_path / "hnet"
    folder.rename(moved)
    config = resolve(str(moved / "config.yaml"), [f"train.start={moved}"])
    train(config, data, tmp_path / "whole")
    records = [record for record in metrics(tmp_path / "whole") if "loss" in record]
    assert all(0 <= record["boundary_accuracy"] <= 1 for record in records)
    assert records[-1]["boundary_loss"] < records[0]["boundary_loss"]
    assert records[-1]["embedding_loss"] < records[0]["embedding_loss"]
    step = tmp_path / "whole/checkpoints/step-00000008"
    before, after = load_file(moved / "model.safetensors"), load_file(step / "model.safetensors")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    frozen = {name for name in before if name.startswith("backbone.main_network.main_network.")}
    assert changed == before.keys() - frozen
    assert len(frozen) == 2 * 6 + 1
    assert {key.split("|")[0] for key in load_file(step / "optimizer.safetensors")} == changed
    half = tmp_path / "half"
    shorter = resolve(str(moved / "config.yaml"), [f"train.start={moved}"])
    stopped = []
    with pytest.raises(KeyboardInterrupt):
        train(shorter, data, half, listen=lambda kind, record: stopped.append(kind == "checkpoint") or interrupt(kind))
    moved.rename(folder)
    train(shorter, data, half, resume=True)
    assert weights(half) == weights(tmp_path / "whole")


def interrupt(kind):
    if kind == "checkpoint":
        raise KeyboardInterrupt


def test_refusals(made, data, tmp_path):
    source, folder = made
    with pytest.raises(BusyError, match="exists already"):
        retrofit(source, folder)
    with pytest.raises(UsageError, match="cannot be made of itself"):
        retrofit(source, source, overwrite=True)
    with pytest.raises(UsageError, match="nano is not one to retrofit with"):
        retrofit(source, tmp_path / "x", "nano")
    with pytest.raises(UsageError, match=r"does not fit the Transformer: d_model must not shrink"):
        retrofit(source, tmp_path / "x", settings=["model.d_model=[128, 192]"])
    with pytest.raises(UsageError, match=r"no part .main.; it has embeddings, level0\.encoder"):
        tiny("train.frozen=[main]")
    with pytest.raises(UsageError, match=r"embedding_loss_weight needs adapters"):
        tiny("train.embedding_loss_weight=1")
    with pytest.raises(UsageError, match="has no boundaries"):
        tiny(*FLAT, "train.boundary_loss_weight=1")
    with pytest.raises(InputError, match="has no teacher"):
        train(tiny("train.boundary_loss_weight=1"), data, tmp_path / "run")
    table = folder / "teacher.safetensors"
    content = table.read_bytes()
    table.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(DamagedError, match=r"teacher\.safetensors"):
        Teacher(folder)
    table.write_bytes(content)


# -- beginning with weights, and keeping some --------------------------------------------------------------------------


def test_a_run_begins_with_the_weights_of_another(data, tmp_path):
    train(tiny("train.steps=4"), data, tmp_path / "first")
    last = metrics(tmp_path / "first")[-1]["val_bpb"]
    train(tiny("train.steps=1", f"train.start={tmp_path / 'first'}", "train.lr=1e-9"), data, tmp_path / "second")
    assert metrics(tmp_path / "second")[-1]["val_bpb"] == pytest.approx(last, abs=1e-5)
    with pytest.raises(UsageError, match=r"train\.start: .* is another model: arch_layout is .*, not"):
        train(tiny(*FLAT, f"train.start={tmp_path / 'first'}"), data, tmp_path / "third")


def test_tokens_must_be_the_same_to_begin_with(data, tmp_path):
    model = HNetForCausalLM(tiny(*FLAT, "tokenizer=bpe:300").model)
    model.tokenizer = learned(Dataset.open(data), 300)
    with storage.staged_folder(tmp_path / "model", manifest={"kind": "model"}) as folder:
        model_folder.save_model(folder, model, {}, [])
    other = HNetForCausalLM(model.config)
    other.tokenizer = learned(Dataset.open(dataset(tmp_path / "other", __file__)), 300)
    with pytest.raises(UsageError, match="reads other tokens"):
        finding.begin_from(tmp_path / "model", other)
    other.tokenizer = model.tokenizer
    finding.begin_from(tmp_path / "model", other)
    assert torch.equal(other.lm_head.weight, model.lm_head.weight)


def test_frozen_parts_need_weights_only():
    free, frozen = tiny(), tiny("train.frozen=[level1.main_network, embeddings]")
    parts = free.model.count_parameters()
    saved = budget.needs(free).weights - budget.needs(frozen).weights
    assert saved == 12 * (parts["level1.main_network"] + parts["embeddings"])
