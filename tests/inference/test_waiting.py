"""Rows that wait for each other give what each gives alone, in whatever order they are computed."""

import pytest
import torch
from generationkit import CONFIGS, full, models, parametrized, text
from hypothesis import given
from hypothesis import strategies as st
from laws import one_in
from modelkit import tiny_config, tiny_model, worst

from hnet_cli.inference import waiting
from hnet_cli.inference.generate import generate
from hnet_cli.inference.waiting import Waiting

EXACT = 1e-10  # float64
CONFIGS = CONFIGS | {"three stages": tiny_config(("m1", ("T1", ("m1", ("T1",), "m1"), "T1"), "m1"))}
MODELS = models(CONFIGS)


@pytest.fixture(autouse=True, scope="module")
def _small_networks_are_waited_for():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(waiting, "LARGE", 0)
        yield


def depths(out):
    """(L,): at how many stages each position of a document begins a chunk."""
    where, depth = torch.arange(out.logits.shape[1]), torch.zeros(out.logits.shape[1], dtype=torch.int64)
    for stage in out.routing:
        where = where[stage.boundary_mask]
        depth[where] += 1
    return depth.tolist()


class Batch:
    """Documents that are read by a `Waiting` from different positions on."""

    def __init__(self, model, starts, lengths, seed):
        self.documents = [text(n + more, seed + row) for row, (n, more) in enumerate(zip(starts, lengths, strict=True))]
        self.expected = [full(model, document) for document in self.documents]
        self.depths = [depths(out) for out in self.expected]
        state = model.allocate_state(len(starts), max(map(len, self.documents)))
        model.prefill([d[:n] for d, n in zip(self.documents, starts, strict=True)], state)
        self.pace, self.at = Waiting(model, state), list(starts)
        self.idle = {row for row, more in enumerate(lengths) if more}

    def feed(self, rows):
        """One more byte for each row: those that were ready, and what they give is compared."""
        self.idle -= {*rows}
        tokens = torch.tensor([self.documents[row][self.at[row]] for row in rows], dtype=torch.int64)
        ready = self.pace.feed(rows, tokens)
        assert ready.rows == sorted({*ready.rows})
        for row, logits, depth in zip(ready.rows, ready.logits, ready.depth, strict=True):
            assert worst(logits, self.expected[row].logits[0, self.at[row]]) < EXACT
            assert depth == self.depths[row][self.at[row]]
            self.at[row] += 1
        self.idle |= {row for row in ready.rows if self.at[row] < len(self.documents[row])}
        return ready.rows


@parametrized(MODELS)
@one_in(8)
@given(
    rows=st.lists(st.tuples(st.integers(1, 20), st.integers(0, 14)), min_size=1, max_size=8),
    random=st.randoms(use_true_random=False),
    patience=st.sampled_from([0.0, 0.3, 0.9]),
)
def test_every_row_is_as_if_it_were_alone(model, rows, random, patience):
    """Rows begin and end anywhere; some are held back for a while, so that any may wait for any other."""
    batch = Batch(model, *zip(*rows, strict=True), seed=len(rows))
    while batch.idle or batch.pace.under_way:
        given = [row for row in sorted(batch.idle) if random.random() >= patience]
        under_way = batch.pace.under_way + len(given)
        assert bool(batch.feed(given)) == bool(under_way)
    assert batch.at == [len(document) for document in batch.documents]


def test_those_at_a_boundary_wait_until_many_do():
    batch = Batch(MODELS["adapters"], [5] * 8, [40] * 8, seed=1)
    together = []
    while len(batch.idle) + batch.pace.under_way == 8:
        fed, before = sorted(batch.idle), batch.pace.under_way
        boundary = {row for row in fed if batch.depths[row][batch.at[row]]}
        ready = {*batch.feed(fed)}
        if before + len(boundary) < 3:
            assert ready == {*fed} - boundary
        else:
            assert ready == {*range(8)}
            together.append(before + len(boundary))
    assert min(together) >= 3
    assert max(together) > 3


@pytest.mark.slow
def test_those_that_wait_inside_come_out_when_the_others_have_ended():
    model, inside = tiny_model(config=tiny_config(chunker=[{"kind": "fixed", "k": 3}, {"kind": "fixed", "k": 4}])), 0
    for steps in range(1, 5):
        batch = Batch(model, range(1, 21), [5] * 20, seed=3)
        for _ in range(steps):
            batch.feed(sorted(batch.idle))
        inside += bool(batch.pace.levels[1].waiting)
        while batch.pace.under_way:
            assert batch.feed([])
    assert inside


def test_all_that_wait_go_in_together_in_the_order_of_rows():
    """The last two are the first at a boundary, which for them is one of the second stage too."""
    model = tiny_model(config=tiny_config(chunker=[{"kind": "fixed", "k": 3}, {"kind": "fixed", "k": 4}]))
    batch = Batch(model, [2] * 6 + [12] * 2, [4] * 8, seed=5)
    assert batch.feed(list(range(8))) == list(range(6))
    assert batch.feed(list(range(6))) == list(range(8))


def test_as_many_come_out_as_went_in_but_not_the_same():
    """The last is the first at a boundary; then all are, the first of them at one of the second stage."""
    model = tiny_model(config=tiny_config(chunker=[{"kind": "fixed", "k": 3}, {"kind": "fixed", "k": 4}]))
    batch = Batch(model, [11] + [2] * 18 + [3], [4] * 20, seed=6)
    assert batch.feed(list(range(20))) == list(range(19))
    assert batch.feed(list(range(19))) == list(range(1, 20))
    assert batch.feed(list(range(1, 20)))


def test_nobody_waits_for_a_small_network(monkeypatch):
    monkeypatch.setattr(waiting, "LARGE", 1 << 22)
    batch = Batch(MODELS["adapters"], [5] * 8, [9] * 8, seed=1)
    for _ in range(9):
        assert batch.feed(list(range(8))) == list(range(8))


def test_one_row_never_waits():
    batch = Batch(MODELS["three stages"], [3], [30], seed=4)
    for _ in range(30):
        assert batch.feed([0]) == [0]


def test_nobody_is_ready_where_nobody_is_under_way():
    batch = Batch(MODELS["two stages"], [3, 4], [2, 2], seed=0)
    assert batch.feed([]) == []


@pytest.mark.parametrize("name", ["two stages, windows", "characters", "no stage"])
def test_sampling_does_not_depend_on_the_batch(name):
    """Drawn bytes, ends at different places."""
    prompts = [b"one", b"a second", b"", b"x" * 20, b"y", b"the last of them"]
    options = {"max_bytes": 25, "temperature": 2.0, "seed": 3, "eos": 0x41}
    together = [[] for _ in prompts]
    for each in generate(MODELS[name], prompts, **options):
        together[each.row].append(each)
    for row, prompt in enumerate(prompts):
        assert list(generate(MODELS[name], [prompt], first_row=row, **options)) == together[row]
