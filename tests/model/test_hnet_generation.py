"""Prefill and steps give what the full pass gives, for every row, whatever the other rows do."""

import pytest
import torch
from generationkit import EXACT, MODELS, each_model, full, text
from hypothesis import given
from hypothesis import strategies as st
from laws import one_in
from modelkit import tiny_config, tiny_model, worst


@each_model
@one_in(8)
@given(st.lists(st.integers(1, 24), min_size=1, max_size=4), st.integers(0, 999))
def test_rows_equal_the_full_pass(model, prompts, seed):
    """Prompts of different lengths, one byte included; rows reach boundaries at different times; well beyond the
    window."""
    steps = 14
    documents = [text(n + steps, seed + i) for i, n in enumerate(prompts)]
    expected = [full(model, d) for d in documents]
    state = model.allocate_state(len(prompts), 100)
    logits = model.prefill([d[:n] for d, n in zip(documents, prompts, strict=True)], state)
    for t in range(steps + 1):
        for row, (n, out) in enumerate(zip(prompts, expected, strict=True)):
            assert worst(logits[row], out.logits[0, n + t - 1]) < EXACT
        if t < steps:
            tokens = torch.stack([d[n + t] for d, n in zip(documents, prompts, strict=True)])
            logits, routing = model.step(tokens, state)
            check_routing(routing, expected, [n + t for n in prompts])
    assert state.lengths == [n + steps for n in prompts]


def check_routing(routing, expected, positions):
    for row, (out, position) in enumerate(zip(expected, positions, strict=True)):
        reached = True
        for stage, whole in zip(routing, out.routing, strict=True):
            assert stage.reached[row].item() == reached
            if not reached:
                assert stage.boundary_prob[row].isnan()
                assert not stage.boundary_mask[row]
                continue
            assert worst(stage.boundary_prob[row], whole.boundary_prob[position]) < EXACT
            reached = bool(whole.boundary_mask[position])
            assert stage.boundary_mask[row].item() == reached
            position = int(whole.boundary_mask[: position + 1].sum()) - 1


@each_model
def test_prefill_split_anywhere(model):
    document = text(30, 5)
    expected = full(model, document).logits[0, -1]
    for cut in (1, 2, 13, 29, 30):
        state = model.allocate_state(1, 30)
        logits = model.prefill([document[:cut]], state)
        for token in document[cut:]:
            logits, _ = model.step(token[None], state)
        assert worst(logits[0], expected) < EXACT


def test_a_second_prefill_starts_afresh():
    model = MODELS["two stages"]
    state = model.allocate_state(2, 50)
    model.prefill([text(20, 1), text(7, 2)], state)
    again = model.prefill([text(4, 3), text(9, 4)], state)
    assert worst(again[0], full(model, text(4, 3)).logits[0, -1]) < EXACT
    assert state.lengths == [4, 9]


def test_bytes_are_prompts():
    model = MODELS["two stages"]
    state = model.allocate_state(2, 10)
    logits = model.prefill([b"hello", bytearray(b"x")], state)
    assert worst(logits[0], full(model, torch.tensor(list(b"hello"))).logits[0, -1]) < EXACT


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ([b""], "prompt 0 has shape"),
        ([b"123456789"], "1 to 8 bytes"),
        ([b"a", b"b"], "2 prompts for a state with 1 rows"),
        ([torch.zeros(1, 3, dtype=torch.int64)], "prompt 0 has shape"),
    ],
)
def test_bad_prompts(prompts, message):
    model = MODELS["no stage"]
    with pytest.raises(ValueError, match=message):
        model.prefill(prompts, model.allocate_state(1, 8))


def test_bad_steps():
    model = MODELS["no stage"]
    state = model.allocate_state(1, 3)
    with pytest.raises(ValueError, match="filled by prefill"):
        model.step(torch.tensor([1]), state)
    model.prefill([b"ab"], state)
    with pytest.raises(ValueError, match="tokens must be"):
        model.step(torch.tensor([1, 2]), state)
    model.step(torch.tensor([1]), state)
    with pytest.raises(ValueError, match="of 3 bytes"):
        model.step(torch.tensor([1]), state)
    with pytest.raises(ValueError, match="at least 1"):
        model.allocate_state(0, 3)


def test_bfloat16_generation_stays_close():
    """A cast model rounds everywhere; prefill and steps agree to a few roundings where no boundary flips."""
    model = tiny_model(torch.float32, config=tiny_config(chunker={"kind": "fixed", "k": 3})).cast(torch.bfloat16)
    document = text(40, 3)
    expected = full(model, document).logits[0, -1]
    state = model.allocate_state(1, 40)
    model.prefill([document[:17]], state)
    for token in document[17:]:
        logits, _ = model.step(token[None], state)
    assert logits.dtype == torch.bfloat16
    assert (logits[0].float() - expected.float()).norm() < 0.1 * expected.float().norm()


def test_autocast_does_not_reach_generation():
    model = tiny_model(torch.float32)
    document = text(20, 1)
    results = []
    for autocast in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            state = model.allocate_state(1, 20)
            logits = [model.prefill([document[:9]], state)]
            logits += [model.step(token[None], state)[0] for token in document[9:]]
        results.append(torch.cat(logits))
    assert torch.equal(*results)
