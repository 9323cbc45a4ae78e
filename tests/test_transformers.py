"""Our models under transformers: what they compute there is what they compute here."""

import json

import pytest
import torch
from modelkit import tiny_config, tiny_model

from hnet_cli import storage
from hnet_cli.checkpoints import find as finding
from hnet_cli.checkpoints import model_folder
from hnet_cli.inference.generate import sample_bytes
from hnet_cli.inference.windows import BOS
from hnet_cli.model import HNetForCausalLM as Network

transformers = pytest.importorskip("transformers", minversion="5")
CACHE = pytest.importorskip("hnet_cli.transformers").CACHE
PROMPTS = [b"The quick", b"a", "世界 the brown fox".encode()]


@pytest.fixture(scope="module", params=[False, True], ids=["untied", "tied"])
def folder(tmp_path_factory, request):
    config = tiny_config()
    if request.param:
        config = type(config).from_dict(config.to_dict() | {"tie_embeddings": True})
    path = tmp_path_factory.mktemp("model") / "model"
    with storage.staged_folder(path, manifest={"kind": "model"}) as staged:
        model_folder.save_model(staged, tiny_model(torch.float32, config=config), {}, [3.0, 3.0])
    return path


@pytest.fixture
def model(folder):
    return transformers.AutoModelForCausalLM.from_pretrained(folder).eval()


@pytest.fixture
def tokenizer(folder):
    return transformers.AutoTokenizer.from_pretrained(folder)


def test_logits_and_loss_are_ours(folder, model):
    own = finding.load(folder)
    ids = torch.randint(0, 256, (2, 33))
    with torch.no_grad():
        expected = own(ids).logits
        out = model(ids, labels=ids)
    assert torch.equal(out.logits, expected)
    loss = torch.nn.functional.cross_entropy(expected[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    torch.testing.assert_close(out.loss, loss)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing(folder, model, tokenizer, side):
    own = finding.load(folder)
    batch = tokenizer([p.decode() for p in PROMPTS], return_tensors="pt", padding=True, padding_side=side)
    labels = batch.input_ids.masked_fill(batch.attention_mask == 0, -100)
    with torch.no_grad():
        out = model(**batch, labels=labels)
        alone = [own(torch.tensor([list(BOS + p)])).logits[0] for p in PROMPTS]
    for row, mask, expected in zip(out.logits, batch.attention_mask, alone, strict=True):
        torch.testing.assert_close(row[mask.bool()], expected, atol=1e-4, rtol=0)
    nats = [
        torch.nn.functional.cross_entropy(logits[:-1], torch.tensor(list(p)), reduction="sum")
        for logits, p in zip(alone, PROMPTS, strict=True)
    ]
    torch.testing.assert_close(out.loss, sum(nats) / sum(map(len, PROMPTS)))


@pytest.mark.parametrize("side", ["left", "right"])
def test_hidden_states_are_those_of_every_layer(folder, model, tokenizer, side):
    """One more than layers, all of the input's length; the last is what the head reads, the inner ones repeat."""
    batch = tokenizer([p.decode() for p in PROMPTS], return_tensors="pt", padding=True, padding_side=side)
    with torch.no_grad():
        out = model(**batch, output_hidden_states=True)
        torch.testing.assert_close(model.lm_head(out.hidden_states[-1]), out.logits)
        assert torch.equal(out.logits, model(**batch).logits)
        assert model(**batch).hidden_states is None
    mask = batch.attention_mask.bool()
    assert torch.equal(out.hidden_states[0][mask], model.embeddings(batch.input_ids[mask]))
    assert [states.shape[-1] for states in out.hidden_states] == [32, 32, 48, 48, 64, 48, 32, 32]
    assert all(states.shape[:2] == mask.shape and not states[~mask].any() for states in out.hidden_states)
    vectors = finding.load(folder).embed(PROMPTS[0], "chunk", 1, "main")
    repeated = out.hidden_states[4][0][mask[0]][-1].numpy()
    torch.testing.assert_close(torch.tensor(repeated), torch.tensor(vectors.vectors[-1]), atol=1e-4, rtol=1e-4)


def test_hidden_states_of_what_goes_on_are_not_kept(model, tokenizer):
    batch = tokenizer(["one"], return_tensors="pt")
    with torch.no_grad():
        past = model(**batch, use_cache=True).past_key_values
        with pytest.raises(ValueError, match="use_cache"):
            model(batch.input_ids[:, -1:], past_key_values=past, output_hidden_states=True)


@pytest.mark.parametrize("use_cache", [True, False])
def test_greedy_generation_is_ours(folder, model, tokenizer, use_cache):
    own = finding.load(folder)
    batch = tokenizer([p.decode() for p in PROMPTS], return_tensors="pt", padding=True)
    made = model.generate(**batch, max_new_tokens=24, do_sample=False, eos_token_id=None, use_cache=use_cache)
    for row, prompt in zip(made, PROMPTS, strict=True):
        expected = b"".join(sample_bytes(own, [prompt], max_bytes=24, temperature=0))
        assert bytes(row[-24:].tolist()) == expected[len(prompt) :]


def test_generation_reads_nothing_twice(model, tokenizer, monkeypatch):
    """And goes on from the cache that it gives."""
    read, steps = [], []
    prefill, step = Network.prefill, Network.step
    monkeypatch.setattr(Network, "prefill", lambda *given: read.append(len(given[1][0])) or prefill(*given))
    monkeypatch.setattr(Network, "step", lambda *given: steps.append(given[1].shape) or step(*given))
    batch = tokenizer(["one text"], return_tensors="pt")
    options = {"do_sample": False, "eos_token_id": None, "return_dict_in_generate": True}
    out = model.generate(**batch, max_new_tokens=6, **options)
    assert read == [batch.input_ids.shape[1]]
    assert len(steps) == 5
    past = {CACHE: getattr(out, CACHE)}
    more = model.generate(torch.cat([out.sequences, batch.input_ids[:, 1:]], 1), max_new_tokens=4, **past, **options)
    assert len(read) == 1
    fresh = model.generate(more.sequences[:, :-4], max_new_tokens=4, use_cache=False, **options)
    assert torch.equal(more.sequences, fresh.sequences)


def test_beams_keep_their_own_past(model, tokenizer):
    batch = tokenizer(["one", "another"], return_tensors="pt", padding=True)
    options = {"max_new_tokens": 12, "num_beams": 3, "do_sample": False, "eos_token_id": None}
    cached, fresh = (model.generate(**batch, **options, use_cache=use) for use in (True, False))
    assert torch.equal(cached, fresh)


def test_saved_by_transformers_loads_here(folder, model, tokenizer, tmp_path):
    model.save_pretrained(tmp_path / "again")
    tokenizer.save_pretrained(tmp_path / "again")
    stored = json.loads((tmp_path / "again/config.json").read_text())
    assert stored["model_type"] == "hnet"
    ids = torch.randint(0, 256, (1, 20))
    with torch.no_grad():
        assert torch.equal(finding.load(tmp_path / "again")(ids).logits, finding.load(folder)(ids).logits)
    assert finding.load(tmp_path / "again").config.target_ratios == (3.0, 3.0)
    again = transformers.AutoTokenizer.from_pretrained(tmp_path / "again")
    assert again("é").input_ids == tokenizer("é").input_ids


def test_half_precision_keeps_what_the_release_keeps(folder):
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    kinds = {name: p.dtype for name, p in model.named_parameters()}
    wide = {name for name, kind in kinds.items() if kind == torch.float32}
    assert wide == {name for name in kinds if "residual_proj" in name or name.endswith(".D")}


def test_gradients_reach_every_weight(model):
    ids = torch.randint(0, 256, (2, 40))
    model.train()(ids, labels=ids).loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_tokens_are_bytes(tokenizer):
    text = "þÿ <|begin|> 世界\n"
    ids = tokenizer(text).input_ids
    assert ids == [254, *text.encode()]
    assert tokenizer.decode(ids, skip_special_tokens=True) == text
