"""Documents read in any blocks, alone or beside others at other places, give what one pass over all of them gives."""

from random import Random

import pytest
import torch
from generationkit import EXACT, MODELS, each_model, full, text
from hypothesis import given
from hypothesis import strategies as st
from laws import one_in
from modelkit import tiny_config, tiny_model, worst

from hnet_cli.kernels import cpu as host
from hnet_cli.kernels import reference


@pytest.fixture(autouse=True, scope="module")
def _blocks_are_longer_than_the_queries_at_once():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reference, "QUERIES", 7)
        yield


def read(model, documents, blocks, until=None):
    """The state after reading `blocks`, of each the number of bytes per row; and per document logits (T, V) and the
    probabilities and mask of each stage."""
    state, at = model.allocate_state(len(documents), max(map(len, documents)) + 1), [0] * len(documents)
    parts = [[[] for _ in range(1 + model.config.num_stages)] for _ in documents]
    for lengths in blocks:
        ids = [document[a : a + n] for document, a, n in zip(documents, at, lengths, strict=True)]
        at = [a + len(row) for a, row in zip(at, ids, strict=True)]
        out = model.extend(ids, state, until)
        for row, piece in enumerate(out.logits.split([0 if until else len(row) for row in ids])):
            parts[row][0].append(piece)
        for stage, routing in enumerate(out.routing, start=1):
            pairs = torch.stack([routing.boundary_prob, routing.boundary_mask.double()], 1)
            for row, piece in enumerate(pairs.split(routing.cu_seqlens.diff().tolist())):
                parts[row][stage].append(piece)
    return state, [[torch.cat(pieces) for pieces in row] for row in parts]


def check(got, out, until=None):
    logits, *stages = got
    assert until or worst(logits, out.logits[0]) < EXACT
    for pairs, whole in zip(stages, out.routing, strict=True):
        assert worst(pairs, torch.stack([whole.boundary_prob, whole.boundary_mask.double()], 1)) < EXACT


@each_model
@one_in(8)
@given(
    rows=st.lists(st.integers(1, 60), min_size=1, max_size=3),
    seed=st.integers(0, 999),
    until=st.sampled_from([None, "routing"]),
)
def test_any_blocks_of_any_rows_equal_one_pass(model, rows, seed, until):
    random = Random(seed)
    documents = [text(length, row + length) for row, length in enumerate(rows)]
    left, blocks = list(rows), []
    while any(left):
        take = [random.choice([0, 1, random.randint(0, n), n]) if n else 0 for n in left]
        if any(take):
            blocks.append(take)
            left = [n - t for n, t in zip(left, take, strict=True)]
    until = until if model.config.num_stages else None
    state, got = read(model, documents, blocks, until)
    assert state.lengths == rows
    for parts, document in zip(got, documents, strict=True):
        check(parts, full(model, document), until)


@each_model
def test_blocks_and_steps_take_turns(model, monkeypatch):
    monkeypatch.setattr(host, "TILE", 1)  # a step puts off what is added to a state
    documents, at = [text(60, 7), text(60, 8)], [9, 2]
    expected = [full(model, document).logits[0] for document in documents]
    state = model.allocate_state(2, 60)
    model.prefill([document[:n] for document, n in zip(documents, at, strict=True)], state)
    for sizes in ((1, 20), (5, 0), (0, 3), (17, 1), (2, 9)):
        ids = [document[a : a + n] for document, a, n in zip(documents, at, sizes, strict=True)]
        for row, logits in enumerate(model.extend(ids, state).logits.split(sizes)):
            if sizes[row]:
                assert worst(logits, expected[row][at[row] : at[row] + sizes[row]]) < EXACT
        at = [a + n for a, n in zip(at, sizes, strict=True)]
        for _ in range(2):
            logits, _ = model.step(torch.stack([d[a] for d, a in zip(documents, at, strict=True)]), state)
            assert max(worst(logits[row], expected[row][at[row]]) for row in range(2)) < EXACT
            at = [a + 1 for a in at]


@pytest.mark.parametrize("until", [None, "routing"])
def test_a_pass_until_the_routing_gives_that_of_the_whole(until):
    model = tiny_model(torch.float32)
    ids, offsets = torch.randint(0, 256, (90,)), torch.tensor([0, 40, 41, 90])
    out = model(ids, cu_seqlens=offsets, until=until)
    assert out.logits.shape == (0 if until else 90, 256)
    for a, b in zip(out.routing, model(ids, cu_seqlens=offsets).routing, strict=True):
        assert torch.equal(a.boundary_mask, b.boundary_mask)
        assert torch.equal(a.boundary_prob, b.boundary_prob)
    assert model(ids[None], until=until).logits.numel() == (0 if until else 90 * 256)


def test_autocast_applies_as_in_one_pass():
    model = tiny_model(torch.float32, config=tiny_config(chunker={"kind": "fixed", "k": 3}))
    document = text(40, 3)
    with torch.autocast("cpu", torch.bfloat16):
        expected = full(model, document).logits[0].float()
        _, ((logits, *_),) = read(model, [document], [[9], [20], [11]])
    assert logits.dtype == torch.bfloat16
    assert (logits.float() - expected).norm() < 0.05 * expected.norm()


def held(level):
    """Bytes that a state of one level and the inner ones holds."""
    tensors = [level.last, level.smoothed]
    for stack in level.layers.values():
        for layer in stack:
            tensors += [layer.conv, layer.ssm.value] if hasattr(layer, "ssm") else [layer.keys, layer.values]
    inner = held(level.inner) if level.inner is not None else 0
    return sum(tensor.untyped_storage().nbytes() for tensor in tensors) + inner


@pytest.mark.parametrize(("name", "grows"), [("two stages, windows", False), ("two stages", True)])
def test_a_state_does_not_grow_but_with_attention_to_everything(name, grows):
    model, sizes = MODELS[name], []
    state = model.allocate_state(1, 5000)
    for block in text(2000, 3).split(250):
        model.extend(block, state)
        sizes.append(held(state.level))
    assert (sizes[-1] > 2 * sizes[1]) == grows
    assert grows or sizes[-1] == sizes[1]


@pytest.mark.parametrize(
    ("rows", "ids"), [(2, text(3, 0)), (1, b""), (1, text(10, 0)), (1, text(4, 0)[None]), (2, [b"", b""])]
)
def test_what_cannot_be_read_is_refused(rows, ids):
    model = MODELS["no stage"]
    with pytest.raises(ValueError, match="extend needs"):
        model.extend(ids, model.allocate_state(rows, 9))
