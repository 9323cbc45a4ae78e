"""A Transformer over tokens becomes an H-Net: read exactly, kept frozen, taught by what it was."""

import pytest
import torch
from llamakit import VOCABULARY, llama
from runkit import FLAT, dataset, metrics, tiny, weights
from safetensors.torch import load_file

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


ATTENTIVE = ["model.arch_layout=[t1, [T1], m1t1]"]


@pytest.fixture(scope="module")
def tokenizer(data):
    return learned(Dataset.open(data), VOCABULARY)


def own_model(source):
    """The Transformer of a folder as our isotropic model, float64."""
    teacher = read(source)
    model = HNetForCausalLM(teacher.config)
    model.load_state_dict({name: stored.read() for name, stored in teacher.weights.items()})
    return model.double().eval()


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


@pytest.mark.slow
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


def test_a_start_may_differ_in_what_no_weight_depends_on(data, tmp_path):
    """Windows grow and a routing module comes to respect characters with the weights as they were; sizes cannot."""
    first = tiny(*ATTENTIVE, "model.attn_cfg.window_size=[31, -1]")
    with storage.staged_folder(tmp_path / "model", manifest={"kind": "model"}) as folder:
        model_folder.save_model(folder, old := HNetForCausalLM(first.model), {}, [4])
    changed = ("model.attn_cfg.window_size=[63, 15]", "model.chunker=characters", "train.target_ratios=[2]")
    new = HNetForCausalLM(tiny(*ATTENTIVE, *changed).model)
    finding.begin_from(tmp_path / "model", new)
    assert new.config.attn_cfg.window_size == (63, 15)
    assert new.config.chunkers[0].kind == "characters"
    assert new.state_dict().keys() == old.state_dict().keys()
    assert all(torch.equal(value, new.state_dict()[name]) for name, value in old.state_dict().items())
    for name, setting in (("chunkers", "chunker=space"), ("attn_cfg", "attn_cfg.num_heads=[1, 2]")):
        with pytest.raises(UsageError, match=f"is another model: {name}"):
            finding.begin_from(tmp_path / "model", HNetForCausalLM(tiny(*ATTENTIVE, f"model.{setting}").model))


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
