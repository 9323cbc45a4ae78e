"""A document read block by block, with the state carried, gives what one pass over all of it gives."""

import pytest
import torch
from generationkit import EXACT, MODELS, each_model, full, text
from hypothesis import given, settings
from hypothesis import strategies as st
from modelkit import worst

from hnet_cli.kernels import cpu as host
from hnet_cli.model import carry
from hnet_cli.model.carry import extend


@pytest.fixture(autouse=True, scope="module")
def _blocks_are_longer_than_the_queries_at_once():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(carry, "QUERIES", 7)
        yield


def read(model, document, cuts):
    """Logits (T, V) and the routing of every stage, as one pass gives them."""
    state = model.allocate_state(1, len(document))
    outs = [extend(model, block, state) for block in document.tensor_split(cuts) if len(block)]
    stages = [
        (torch.cat([each.boundary_prob for each in stage]), torch.cat([each.boundary_mask for each in stage]))
        for stage in zip(*(out.routing for out in outs), strict=True)
    ]
    return torch.cat([out.logits for out in outs]), stages, state


@each_model
@settings(max_examples=5, deadline=None)
@given(st.integers(1, 90), st.lists(st.integers(1, 89), max_size=4), st.integers(0, 999))
def test_any_blocks_equal_one_pass(model, length, cuts, seed):
    document = text(length, seed)
    expected = full(model, document)
    logits, stages, state = read(model, document, sorted(cuts))
    assert worst(logits, expected.logits[0]) < EXACT
    assert state.lengths == [length]
    for (prob, mask), whole in zip(stages, expected.routing, strict=True):
        assert worst(prob, whole.boundary_prob) < EXACT
        assert torch.equal(mask, whole.boundary_mask)


@each_model
def test_steps_go_on_from_blocks(model, monkeypatch):
    monkeypatch.setattr(host, "TILE", 1)  # a step puts off what is added to a state
    document = text(40, 7)
    expected = full(model, document).logits[0]
    _, _, state = read(model, document[:30], [4, 11])
    state.max_length = 40
    for at in range(30, 40):
        logits, _ = model.step(document[at : at + 1], state)
        assert worst(logits[0], expected[at]) < EXACT
    state = model.allocate_state(1, 40)
    model.prefill([document[:9]], state)
    model.step(document[9:10], state)
    at = 10
    for size in (1, 5, 1, 1, 2, 1, 1, 1, 17):
        logits = extend(model, document[at : at + size], state).logits
        assert worst(logits, expected[at : at + size]) < EXACT
        at += size
        if at < 40:
            logits, _ = model.step(document[at : at + 1], state)
            assert worst(logits[0], expected[at]) < EXACT
            at += 1


def held(level):
    """Bytes that a state of one level and the inner ones holds."""
    found = [getattr(level, name) for name in ("query", "space", "smoothed", "average")]
    for stack in level.layers.values():
        for layer in stack:
            found += [layer.conv, layer.ssm.value] if hasattr(layer, "ssm") else [layer.keys, layer.values]
    own = sum(each.untyped_storage().nbytes() for each in found)
    return own + (held(level.inner) if level.inner is not None else 0)


@pytest.mark.parametrize(("name", "grows"), [("two stages, windows", False), ("two stages", True)])
def test_what_is_carried_does_not_grow_but_with_attention_to_everything(name, grows):
    model, sizes = MODELS[name], []
    state = model.allocate_state(1, 5000)
    for block in text(2000, 3).split(250):
        extend(model, block, state)
        sizes.append(held(state.level))
    assert (sizes[-1] > 2 * sizes[1]) == grows
    assert grows or sizes[-1] == sizes[1]


def test_what_cannot_be_read_is_refused():
    model = MODELS["no stage"]
    for rows, length, ids in ((2, 9, text(3, 0)), (1, 9, text(0, 0)), (1, 9, text(10, 0)), (1, 9, text(4, 0)[None])):
        with pytest.raises(ValueError, match="extend needs"):
            extend(model, ids, model.allocate_state(rows, length))
