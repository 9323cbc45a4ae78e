"""Log-probabilities of bytes: each counted once, whatever the windows, blocks and neighbours."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from modelkit import nats, tiny_config, tiny_model
from runkit import dataset, tiny

from hnet_cli.data.dataset import Dataset
from hnet_cli.data.loader import Windows
from hnet_cli.evaluation import compression
from hnet_cli.inference.scoring import COLUMNS, _Blocks, score, stretches
from hnet_cli.training.build import build_model
from hnet_cli.training.validation import validation

BOS = 254


@pytest.fixture(scope="module")
def model():
    return tiny_model(torch.float32).eval()


@given(st.integers(0, 300), st.integers(1, 80) | st.none(), st.integers(1, 80) | st.none())
def test_every_byte_counts_once_with_the_promised_context(size, context, stride):
    data = bytes(np.random.default_rng(size).integers(0, 250, size, dtype=np.uint8))
    counted = []
    found = list(stretches(data, 0, context, stride))
    assert found == list(stretches((data[at : at + 7] for at in range(0, size, 7)), 0, context, stride))
    for stretch in found:
        assert len(stretch.inputs) == len(stretch.targets)
        end = (counted[-1] + 1 if counted else 0) + len(stretch.targets) - stretch.skip
        begin = end - len(stretch.targets)
        assert stretch.targets == data[begin:end]
        assert stretch.inputs[1:] == data[begin : end - 1]
        assert stretch.inputs[:1] == (data[begin - 1 : begin] if begin else bytes([BOS]))
        for at in range(begin + stretch.skip, end):
            back = at - begin + (begin > 0)  # bytes read before this one
            assert back == at or context is not None
            assert context is None or back <= context
            assert context is None or back >= min(at, context - min(stride or context, context) + 1 - (back == at))
            counted.append(at)
    assert counted == list(range(size))


@given(st.binary(max_size=60), st.integers(1, 9), st.integers(1, 9))
def test_a_document_that_comes_in_blocks_is_read_alike(data, block, piece):
    parts = (data[at : at + piece] for at in range(0, len(data), piece))
    assert list(stretches(parts, 3, None, None, block)) == list(stretches(data, 3, None, None, block))


@pytest.mark.parametrize(("context", "stride"), [(16, 16), (16, 5), (None, None)])
def test_nats_are_those_of_the_model_asked_byte_by_byte(model, context, stride):
    data = b"The lazy dog, number 17."
    expected = 0.0
    for stretch in stretches(data, 0, context, stride):
        expected += sum(nats(model, stretch.inputs[:1], stretch.targets)[stretch.skip :])
    scored = score(model, [data], context, stride)
    assert scored.bytes.sum() == len(data)
    assert scored.nats.sum() == pytest.approx(expected, rel=1e-5)


def test_a_whole_document_costs_the_same_however_it_is_cut():
    """Also between others, which are read together; what is counted of the stages is the same too."""
    model = tiny_model(config=tiny_config(("m1", ("T1",), "m1"))).eval()
    words = np.random.default_rng(0).integers(97, 104, 7500, dtype=np.uint8)
    words[::7] = 32
    documents = [b"short", words.tobytes(), b"and another", words[:1500].tobytes(), b"end"]
    whole, *cut = [score(model, documents, None, block=block) for block in (1 << 20, 1 << 10, 7 << 10)]
    assert len(whole.owner) == 5
    for each in cut:
        assert len(each.owner) > 5
        assert each.per_document(each.nats).tolist() == pytest.approx(whole.per_document(whole.nats).tolist(), rel=1e-6)
        assert each.per_document(each.bytes).tolist() == whole.bytes.tolist()
        lost = (
            len(each.owner) - 5
        )  # of the column `firsts`: a chunk that begins a block was predicted in the one before
        assert np.abs(each.per_document(each.stages) - whole.stages)[:, :, :4].max() < 1e-6 * whole.nats.sum()
        assert (whole.stages - each.per_document(each.stages))[:, :, 5].max() <= lost


def test_neighbours_in_a_batch_change_nothing(model):
    documents = [b"one document", b"x", b"a longer one, of several windows in all", b"", b"end"]
    together = score(model, documents, 16, 8)
    alone = [score(model, [each], 16, 8) for each in documents if each]
    assert together.per_document(together.nats).tolist() == pytest.approx([each.nats.sum() for each in alone], rel=1e-5)
    assert together.per_document(together.bytes).tolist() == [12, 1, 39, 3]


def test_it_agrees_with_the_validation_of_training(tmp_path):
    torch.manual_seed(0)
    held_out = Dataset.open(dataset(tmp_path))
    trained = build_model(tiny()).eval()
    expected = validation(trained, Windows(held_out, "val", 64), [4.0])
    figures = compression.figures(score(trained, list(held_out.documents("val")), 64))
    assert figures["bpb"] == pytest.approx(expected["bpb"], rel=1e-5)
    assert figures["bytes"] == expected["bytes"]


def test_stages_and_enrichment_by_hand(model):
    data = b"Some words, and some more of them: chunks begin here or there."
    with torch.no_grad():
        out = model(torch.tensor([[BOS, *data[:-1]]]))
    cost = torch.nn.functional.cross_entropy(out.logits[0], torch.tensor(list(data)), reduction="none").double()
    scored = score(model, [data], None)
    at = torch.arange(len(data))
    for stage, routing in enumerate(out.routing):
        mask, prob = routing.boundary_mask, routing.boundary_prob
        own = dict(zip(COLUMNS, scored.stages[0, stage], strict=True))
        assert own["positions"] == len(at)
        assert own["probability"] == pytest.approx(float(prob.sum()), rel=1e-5)
        at = at[mask]
        assert own["boundaries"] == len(at)
        assert own["nats_after"] == pytest.approx(float(cost[at].sum()), rel=1e-4)
        assert own["firsts"] == (at > 0).sum()
        assert own["nats_first"] == pytest.approx(float(cost[at[at > 0] - 1].sum()), rel=1e-4)
    (row, *_) = compression.stages(scored, model.config)
    own = dict(zip(COLUMNS, scored.stages[0, 0], strict=True))
    mean = own["nats_after"] / own["boundaries"] / (scored.nats.sum() / len(data))
    assert row["enrichment"] == pytest.approx(mean)
    assert row["bytes_per_chunk"] == pytest.approx(len(data) / own["boundaries"])


def test_the_border_of_a_window_is_no_boundary(model):
    """It is one for the network, since it sees nothing before; it says nothing about what was learned."""
    data = b"abcdefgh" * 40
    whole, cut = score(model, [data], None), score(model, [data], 32)
    assert whole.stages[:, 0, 0].sum() == len(data)
    assert cut.stages[:, 0, 0].sum() == len(data) - (len(data) // 32 - 1)


@pytest.mark.parametrize(("context", "block"), [(None, 1 << 20), (None, 7), (12, 1 << 20)])
def test_of_rows_completions_count_after_what_fits_of_their_prompts(model, context, block):
    rows = {b"plural of ox\noxen\xff": 13, b"an\n\xff": 3, b"x": 0, b"p" + b"a completion that is long\xff": 1}
    expected = []
    for row, prompt in rows.items():
        total = 0.0
        for end in range(len(row), prompt, -(context or len(row))):
            begin = max(0, end - (context or len(row)))
            with torch.no_grad():
                logits = model(torch.tensor([[BOS, *row[begin : end - 1]]])).logits[0]
            each = torch.nn.functional.cross_entropy(logits, torch.tensor(list(row[begin:end])), reduction="none")
            total += float(each[max(0, prompt - begin) :].sum())
        expected.append(total)
    scored = score(model, rows, context, block=block, prompts=rows.values()).by_document()
    assert scored.bytes.tolist() == [len(row) - prompt for row, prompt in rows.items()]
    assert scored.nats == pytest.approx(expected, rel=1e-4)


def test_no_more_is_held_of_a_document_than_is_asked_for():
    held = []
    text = _Blocks(bytes([n % 250]) * 10 for n in range(1000))
    for end in range(10, 9000, 10):
        assert text.reach(end) == end
        assert text[end - 5 : end] == bytes([(end // 10 - 1) % 250]) * 5
        text.drop(end - 5)
        held.append(len(text.held))
    assert max(held) <= 15
    assert text.reach(1 << 20) == 10_000
