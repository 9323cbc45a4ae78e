"""Generation by recordings: what is replayed is what the model would compute, whatever rows are at a boundary."""

import contextlib
import math
import weakref

import pytest
import torch
from generationkit import CONFIGS, full, models, parametrized, text
from hypothesis import given
from hypothesis import strategies as st
from laws import one_in
from modelkit import tiny_config, tiny_model, worst
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from hnet_cli.inference.generate import generate
from hnet_cli.inference.graphs import GraphSteps, PlainSteps, cuda_graphs, steps
from hnet_cli.inference.waiting import InStep

EXACT = 1e-10  # float64
CONFIGS = CONFIGS | {
    "one stage": tiny_config(("m1t1", ("T1M1",), "t1m1"), window=6),
    "three stages": tiny_config(("m1", ("T1", ("m1", ("T1",), "m1"), "T1"), "m1")),
}
MODELS = models(CONFIGS)
each_model = parametrized(MODELS)


class Tape(TorchDispatchMode):
    """CUDA graphs on a CPU: record operations with their tensors and replay them.

    Python does not run again, so what it decided is fixed; a value read on the host is an error.
    """

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func.overloadpacket is not torch.ops.aten._local_scalar_dense, "the host reads in a recording"
        out = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, out))
        return out

    def replay(self):
        made = {}

        def current(x):
            return made.get(id(x), x)

        for func, args, kwargs, recorded in self.calls:
            out = func(*tree_map(current, args), **tree_map(current, kwargs))
            old, new = tree_leaves(recorded), tree_leaves(out)
            made |= {id(a): b for a, b in zip(old, new, strict=True) if isinstance(a, torch.Tensor)}


def tapes(model, state):
    """Recordings of which each was made of a run whose effects are taken back, as a capture has none."""
    count = []

    def capture(run):
        tensors = [t for t in holders(stepper) if isinstance(t, torch.Tensor)]
        saved = [t.clone() for t in tensors]
        with Tape() as tape:
            run()
        for tensor, value in zip(tensors, saved, strict=True):
            tensor.copy_(value)
        count.append(len(tape.calls))
        return tape.replay

    stepper = GraphSteps(model, state, capture)
    return stepper, count


def holders(stepper):
    """Every tensor that outlives a step."""
    yield stepper.tokens
    yield from stepper.output.values()
    for level in stepper.levels:
        yield from level.buffers.values()
        yield level.prob
        yield from vars(level.state).values()
        for stack in level.state.layers.values():
            for layer in stack:
                yield from vars(layer).values()
                yield from vars(getattr(layer, "ssm", layer)).values()


def check_probabilities(model, probs, expected, positions):
    for row, (out, position) in enumerate(zip(expected, positions, strict=True)):
        reached = True
        for router, stage, whole in zip(model.routers, probs, out.routing, strict=True):
            if not reached:
                assert math.isnan(stage[row])
                continue
            assert abs(stage[row] - whole.boundary_prob[position]) < EXACT
            reached = bool(whole.boundary_mask[position])
            assert router.is_boundary(stage[row]) == reached
            position = int(whole.boundary_mask[: position + 1].sum()) - 1


@each_model
@pytest.mark.parametrize(
    ("first", "batch", "count"), [(58, 1, 8), (1, 3, 7), pytest.param(1, 8, 8, marks=pytest.mark.slow)]
)
def test_replays_equal_the_full_pass(model, first, batch, count):
    """Ragged rows; one past the 64 positions at which caches grow, after which all is recorded anew."""
    prompts = [first + 7 * row % 24 for row in range(batch)]
    documents = [text(n + count, 10 * batch + row) for row, n in enumerate(prompts)]
    expected = [full(model, document) for document in documents]
    state = model.allocate_state(batch, 200)
    model.prefill([d[:n] for d, n in zip(documents, prompts, strict=True)], state)
    stepper, recorded = tapes(model, state)
    for t in range(count):
        tokens = torch.stack([d[n + t] for d, n in zip(documents, prompts, strict=True)])
        logits, probs = stepper.step(tokens)
        check_probabilities(model, probs, expected, [n + t for n in prompts])
        for row, (n, out) in enumerate(zip(prompts, expected, strict=True)):
            assert worst(logits[row], out.logits[0, n + t]) < EXACT
    assert recorded
    assert state.lengths == [n + count for n in prompts]


@pytest.mark.parametrize("name", ["two stages, windows", "no stage"])
def test_rows_that_are_given_up(name):
    """Some at a time, so that those that are left are moved together in between; an order of their own."""
    model, batch, kept, count = MODELS[name], 8, [[0, 1, 2, 4, 5, 6, 7], [6, 0, 2, 3, 4], [4, 0], [1]], 7
    documents = [text(60, row) for row in range(batch)]
    expected = [full(model, document) for document in documents]
    at = [5 + row for row in range(batch)]
    state = model.allocate_state(batch, 60)
    model.prefill([d[:n] for d, n in zip(documents, at, strict=True)], state)
    stepper, _ = tapes(model, state)
    rows = list(range(batch))
    for wanted in kept:
        for _ in range(count):
            logits, probs = stepper.step(torch.stack([documents[row][at[row]] for row in rows]))
            for i, row in enumerate(rows):
                assert worst(logits[i], expected[row].logits[0, at[row]]) < EXACT
            check_probabilities(model, probs, [expected[row] for row in rows], [at[row] for row in rows])
            for row in rows:
                at[row] += 1
        stepper.select(wanted)
        rows = [rows[i] for i in wanted]


@one_in(5)
@given(st.integers(0, 999))
def test_nothing_that_was_recorded_moves(seed):
    """A tensor that is put elsewhere would leave a recording reading the old place."""
    model = MODELS["two stages, windows"]
    state = model.allocate_state(3, 60)
    model.prefill([text(4, seed), text(1, seed + 1), text(9, seed + 2)], state)
    stepper = GraphSteps(model, state)
    stepper.step(text(3, seed))
    stepper.step(text(3, seed + 1))
    before = [t.data_ptr() for t in holders(stepper) if isinstance(t, torch.Tensor)]
    for step in range(20):
        stepper.step(text(3, seed + step))
    after = [t.data_ptr() for t in holders(stepper) if isinstance(t, torch.Tensor)]
    assert {*before} - {0} <= {*after}  # 0: not made yet


def test_a_recording_that_fails_costs_speed_only():
    def capture(run):
        raise RuntimeError("CUDA error: operation not permitted when stream is capturing")

    model, document = MODELS["two stages"], text(30, 3)
    state = model.allocate_state(1, 30)
    model.prefill([document[:4]], state)
    stepper = GraphSteps(model, state, capture)
    stepper.step(document[4][None])
    with pytest.warns(UserWarning, match="could not be recorded.*not permitted"):
        stepper.step(document[5][None])
    for token in document[6:]:
        logits, _ = stepper.step(token[None])
    assert "not permitted" in stepper.failure
    assert worst(logits[0], full(model, document).logits[0, -1]) < EXACT


def test_errors_are_those_of_the_model():
    model = MODELS["one stage"]
    state = model.allocate_state(2, 6)
    model.prefill([text(5, 0), text(2, 1)], state)
    stepper = GraphSteps(model, state)
    with pytest.raises(ValueError, match=r"tokens must be \(2,\)"):
        stepper.step(text(1, 0))
    stepper.step(text(2, 0))
    with pytest.raises(ValueError, match="room"):
        stepper.step(text(2, 0))


def test_the_memory_that_recordings_share_outlives_them(monkeypatch):
    """The allocator refuses a pool whose last graph is gone: after rows were given up all recordings begin anew."""

    class Graph:
        def __init__(self):
            alive.add(self)

        def replay(self):
            pass

    alive, streams = weakref.WeakSet(), []
    fakes = {
        "graph_pool_handle": object,
        "CUDAGraph": Graph,
        "current_stream": lambda: "own",
        "set_stream": streams.append,
        "graph": lambda graph, **_: contextlib.nullcontext(),
    }
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    capture = cuda_graphs()
    for _ in range(3):
        capture(lambda: None)
    assert len(alive) == 1
    with pytest.raises(ZeroDivisionError):
        capture(lambda: 1 / 0)
    assert streams == ["own"] * 4


def test_what_is_chosen_without_a_gpu():
    model = MODELS["one stage"]
    assert isinstance(steps(model, model.allocate_state(1, 9)), PlainSteps)


def test_sampling_by_recordings(monkeypatch):
    """`hnet sample` on a GPU: the same bytes, rows that end included."""
    model = tiny_model(config=tiny_config(("m1", ("T1",), "m1")))
    prompts = [b"one", b"a second", b"", b"x" * 20]

    def run():
        sampled = generate(model, prompts, max_bytes=40, seed=3, eos=0x41)
        return sorted(((s.row, s.byte, s.depth) for s in sampled), key=lambda each: each[0])

    expected = run()
    made = []

    def recorded(model, state):
        stepper, count = tapes(model, state)
        made.append(count)
        return InStep(model, stepper, state.batch_size)

    monkeypatch.setattr("hnet_cli.inference.generate.paces", recorded)
    assert run() == expected
    assert made[0]
