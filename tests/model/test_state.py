"""The state of generation: selected rows, caches that grow up to the window."""

import pytest
import torch
from generationkit import EXACT, MODELS, each_model, full, text
from modelkit import tiny_config, tiny_model, worst

from hnet_cli.kernels import cpu as host
from hnet_cli.kernels import cpu_step as host_step


@each_model
def test_select_drops_and_reorders_rows(model):
    prompts, more = [text(n, n) for n in (3, 9, 1, 6)], text(20, 77)
    state = model.allocate_state(4, 50)
    model.prefill(prompts, state)
    model.step(more[:4], state)
    state.select([3, 1, 3])
    for a, b, c in more[4:16].view(-1, 3):
        logits, _ = model.step(torch.stack([a, b, c]), state)
    seen = more[4:16].view(-1, 3).T
    for row, (prompt, first) in enumerate([(prompts[3], more[3:4]), (prompts[1], more[1:2]), (prompts[3], more[3:4])]):
        assert worst(logits[row], full(model, torch.cat([prompt, first, seen[row]])).logits[0, -1]) < EXACT
    with pytest.raises(IndexError, match="3 rows"):
        state.select([3])


def test_caches_are_bounded_by_the_window_and_grow_with_use():
    model = tiny_model(config=tiny_config(("T1", ("T1",), "m1"), window=6))
    model.backbone.main_network.main_network.layers[0].mixer.window = -1
    state = model.allocate_state(1, 100_000)
    model.prefill([text(5, 0)], state)
    for token in text(60, 1):
        model.step(token[None], state)
    outer, inner = state.level.layers["encoder"][0], state.level.inner.layers["main_network"][0]
    assert outer.keys.shape[1] == 7
    chunks = state.level.inner.seen[0]
    assert chunks < 65
    assert chunks <= inner.keys.shape[1] <= 2 * chunks


@pytest.mark.parametrize(("name", "many"), [("two stages, windows", 6), ("DNA layout", 7)])
def test_rows_that_leave_the_cache(name, many, monkeypatch):
    """The blocked products and tiled caches a CPU uses for many rows of a larger model, after rows are dropped."""
    monkeypatch.setattr(host, "TILE", 1)
    monkeypatch.setattr(host_step, "LARGE", 1)
    monkeypatch.setattr(host_step, "CACHED", 0)
    monkeypatch.setattr(host_step, "MANY", many)
    model, rows, at = MODELS[name], list(range(6)), [3 * n + 1 for n in range(6)]
    documents = [text(60, n) for n in rows]
    expected = [full(model, document).logits[0] for document in documents]
    state = model.allocate_state(6, 60)
    model.prefill([d[:n] for d, n in zip(documents, at, strict=True)], state)
    for kept in (rows, [5, 1, 0, 2], [2, 1]):
        state.select([rows.index(row) for row in kept])
        rows = kept
        for _ in range(12):
            logits, _ = model.step(torch.stack([documents[row][at[row]] for row in rows]), state)
            for i, row in enumerate(rows):
                assert worst(logits[i], expected[row][at[row]]) < EXACT
                at[row] += 1
