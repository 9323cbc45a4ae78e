"""`hnet eval`: what every byte costs, counted once whatever the windows, beside compressors, with its uncertainty."""

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from modelkit import tiny_config, tiny_model
from runkit import dataset, tiny

from hnet_cli.cli import app as cli
from hnet_cli.data.baselines import order_k
from hnet_cli.data.dataset import Dataset
from hnet_cli.errors import InputError, UsageError
from hnet_cli.evaluation import compression, report
from hnet_cli.evaluation.material import gather
from hnet_cli.evaluation.report import LEAST, share
from hnet_cli.evaluation.resampling import draws, ratio
from hnet_cli.evaluation.scoring import COLUMNS, Scores, loglikelihoods, score, stretches
from hnet_cli.modality import Document
from hnet_cli.modality import get as modality
from hnet_cli.training.build import build_model
from hnet_cli.training.validation import validation

BOS = 254


@pytest.fixture(scope="module")
def model():
    return tiny_model(torch.float32).eval()


def nats(model, given, wanted):
    """-ln P of each wanted byte after the given ones, one at a time: the plainest definition."""
    total = []
    for at in range(len(wanted)):
        with torch.no_grad():
            logits = model(torch.tensor([list(given + wanted[:at])])).logits[0, -1]
        total.append(-float(torch.log_softmax(logits.double(), -1)[wanted[at]]))
    return total


# -- windows -----------------------------------------------------------------------------------------------------------


@given(st.integers(0, 300), st.integers(1, 80) | st.none(), st.integers(1, 80) | st.none())
def test_every_byte_counts_once_with_the_promised_context(size, context, stride):
    data = bytes(np.random.default_rng(size).integers(0, 250, size, dtype=np.uint8))
    counted = []
    for stretch in stretches(data, 0, context, stride):
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


@pytest.mark.parametrize(("context", "stride"), [(16, 16), (16, 5), (None, None)])
def test_nats_are_those_of_the_model_asked_byte_by_byte(model, context, stride):
    data = b"The fox, the lazy dog and a number: 17."
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
    expected = validation(trained, held_out, 64, 10**9, [4.0])
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


def test_loglikelihoods_of_pairs(model):
    pairs = [(b"\xfeThe fox", b" jumps"), (b"\xfe", b"a"), (b"\xfex", b""), (b"mid", b"dle")]
    log, greedy = loglikelihoods(model, pairs)
    for (before, after), found in zip(pairs, log, strict=True):
        assert found == pytest.approx(-sum(nats(model, before, after)), rel=1e-5, abs=1e-9)
    assert greedy[2]
    with torch.no_grad():
        likeliest = bytes([int(model(torch.tensor([[BOS, 65]])).logits[0, -1].argmax())])
    assert loglikelihoods(model, [(b"\xfeA", likeliest)])[1].tolist() == [True]
    assert loglikelihoods(model, [(b"\xfeA", bytes([likeliest[0] ^ 1]))])[1].tolist() == [False]


# -- how sure ----------------------------------------------------------------------------------------------------------


def test_differences_are_paired(model):
    """Two nearly equal models on documents of very different difficulty: the difference is far surer than either."""
    random = np.random.default_rng(0)
    documents = [bytes(random.integers(0, 4 if n % 2 else 250, 60, dtype=np.uint8)) for n in range(30)]
    first = score(model, documents, 64)
    second = type(first)(first.owner, first.bytes, first.nats * 1.01 + random.normal(0, 0.01, 30), first.stages)
    found = compression.difference(first, second)
    width = np.diff(found["bpb_ci95"])[0]
    assert width < 0.2 * np.diff(compression.figures(first)["bpb_ci95"])[0]
    assert found["bpb"] == pytest.approx(0.01 * compression.figures(first)["bpb"], rel=0.1)
    assert found["share_of_draws_second_better"] == 0.0
    swapped = compression.difference(second, first)
    assert swapped["bpb"] == pytest.approx(-found["bpb"])
    assert np.array_equal(
        draws(np.stack([first.nats, first.bytes], 1), ratio), draws(np.stack([first.nats, first.bytes], 1), ratio)
    )


def test_a_model_that_reads_whole_documents_is_compared_with_one_that_reads_blocks(model):
    documents = [b"a document of several blocks " * 9, b"and another " * 7]
    whole, blocks = (score(model, documents, None, block=block) for block in (None, 64))
    assert len(whole.owner) < len(blocks.owner)
    dearer = Scores(whole.owner, whole.bytes, whole.nats * [1.1, 1.2], whole.stages)
    found = compression.difference(blocks, dearer)
    expected = (whole.nats * [0.1, 0.2]).sum() / whole.bytes.sum() / math.log(2)
    assert found["bpb"] == pytest.approx(expected, rel=1e-4)
    assert compression.difference(dearer, blocks)["bpb"] == pytest.approx(-expected, rel=1e-4)


# -- what needs no model -----------------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(st.binary(min_size=1, max_size=60).map(lambda raw: bytes(byte % 3 for byte in raw)), st.integers(0, 3))
def test_the_adaptive_model_is_the_definition(data, order):
    """Interpolated Witten-Bell, counted anew before every byte."""
    bits = 0.0
    for at, byte in enumerate(data):
        p = 1 / 256
        for k in range(order + 1):
            if at < k:
                break
            context = data[at - k : at]
            after = [data[i] for i in range(k, at) if data[i - k : i] == context]
            if after:
                kinds = len(set(after))
                p = (after.count(byte) + kinds * p) / (len(after) + kinds)
        bits -= math.log2(p)
    assert compression.adaptive(data, order) == pytest.approx(bits / len(data))


def test_baselines_see_the_same_bytes():
    words = np.random.default_rng(0).choice(["fox", "dog", "lazy", "brown"], 6000)
    documents = [" ".join(words[at : at + 200]).encode() for at in range(0, 6000, 200)]
    train = b" ".join(documents)
    found = compression.baselines(documents, train)
    assert found["xz"] < found["xz_each_document"]
    assert found["xz_each_document_ci95"][0] < found["xz_each_document"] < found["xz_each_document_ci95"][1]
    assert found["order_k"] == order_k(train, b"".join(documents))[1]
    assert found["order_k_adaptive"] < found["xz"]
    assert found["order_k_bytes"] == sum(map(len, documents))
    assert "order_k" not in compression.baselines(documents)


# -- what is evaluated -------------------------------------------------------------------------------------------------


def test_a_dataset_beyond_the_limit_gives_whole_documents_from_everywhere(tmp_path):
    files = []
    for number in range(40):
        files.append(tmp_path / f"{number:02}.txt")
        files[-1].write_text(f"document {number:02} " * 30)
    data = dataset(tmp_path / "set", *files[:10], val_inputs=[str(each) for each in files[10:]])
    everything = gather([str(data)], modality("text"), None)
    assert len(everything.documents) == 30
    some = gather([str(data)], modality("text"), 2000)
    assert some.bytes == 2000
    assert [len(each.data) for each in some.documents[:-1]] == [360] * 5
    assert {each.data for each in some.documents[:-1]} <= {each.data for each in everything.documents}
    assert [each.name for each in some.documents] == [each.name for each in gather([str(data)], None, 2000).documents]
    assert some.train is not None


def test_the_bytes_said_to_be_chosen_are_those_chosen(tmp_path):
    (tmp_path / "fox.txt").write_text("é" * 80, encoding="utf-8")
    some = gather([str(tmp_path / "fox.txt")], modality("text"), 101)
    assert some.bytes == 100  # no character is cut
    assert some.chosen.endswith(": the first 100 bytes")


def test_material_that_does_not_fit_is_refused(tmp_path):
    data = dataset(tmp_path)
    with pytest.raises(InputError, match="holds text"):
        gather([str(data)], modality("dna"), None)
    with pytest.raises(UsageError, match="beside it"):
        gather([str(data), str(data)], modality("text"), None)
    (tmp_path / "empty.txt").write_text("")
    with pytest.raises(InputError, match="nothing to evaluate"):
        gather([str(tmp_path / "empty.txt")], modality("text"), None)


@given(st.lists(st.integers(1, 500), min_size=1, max_size=12), st.integers(1, 1500))
def test_shares_are_equal_as_far_as_they_go(lengths, limit):
    kept = [len(each.data) for each in share([Document(b"x" * n, "", "") for n in lengths], limit)]
    assert 0 < sum(kept) <= limit
    if sum(lengths) <= limit:
        assert kept == lengths
    elif limit >= LEAST * len(lengths):
        cap = max(kept)
        assert kept == [min(n, cap) for n in lengths]
        assert sum(min(n, cap + 1) for n in lengths) > limit


def test_of_very_many_documents_some_give_their_share():
    """A corpus of names, one on a line: less than a byte of each would be no figure at all."""
    kept = share([Document(b"x" * 10, str(n), "") for n in range(1000)], 500)
    assert [each.name for each in kept] == [str(n) for n in range(0, 1000, 32)]
    assert all(len(each.data) == 10 for each in kept)
    assert len(share([Document(b"x" * 10, "", "")] * 1000, 1)) == 1


# -- the command -------------------------------------------------------------------------------------------------------


def hnet(capsys, *arguments):
    code = cli.run([str(each) for each in arguments])
    out, err = capsys.readouterr()
    return code, out, err


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("texts")
    files = []
    for number in range(9):
        files.append(folder / f"{number}.txt")
        files[-1].write_text(
            "".join(f"It was the best of times, the worst of times, {i}.\n" for i in range(number + 4))
        )
    return files


def test_the_contract_of_the_json(capsys, texts, monkeypatch):
    monkeypatch.setattr(report, "SAMPLE_BYTES", 32)
    code, out, err = hnet(capsys, "eval", "starter:text", *texts, "--json", "--context", 256, "--noise")
    assert code == 0, err
    found = json.loads(out)
    assert found["bytes"] == sum(each.stat().st_size for each in texts)
    assert found["documents"] == 9
    assert found["definition"]["context"] == found["definition"]["stride"] == 256
    assert {"xz", "zstd", "order_k_adaptive"} <= found["baselines"].keys()
    assert {"bytes_per_chunk", "target", "boundary_fraction", "mean_boundary_prob"} <= found["stages"][0].keys()
    assert found["stages"][0]["edges"]["word"]["f1"] > found["stages"][0]["edges"]["word"]["trivial"]["random"]["f1"]
    assert found["noise"].keys() == {"clean", "AntSpeak", "Drop", "RandomCase", "Repeat", "UpperCase"}
    assert 0 <= found["validity"]["valid"] <= 1

    def check(value):
        if isinstance(value, dict):
            for name, each in value.items():
                if name.endswith("_ci95") and each is not None:
                    assert each[0] <= value[name.removesuffix("_ci95")] <= each[1], name
                check(each)
        elif isinstance(value, list):
            for each in value:
                check(each)

    check(found)


def test_the_strands_are_paired_place_by_place():
    """The windows of the other strand stand in reverse; each pair here costs the same: the mean is sure."""
    owner, sizes = np.repeat([0, 1], [4, 6]), np.full(10, 64)
    nats = np.random.default_rng(0).uniform(50, 100, 10)
    other = np.concatenate([(200 - nats)[:4][::-1], (200 - nats)[4:][::-1]])
    one, mirrored = (Scores(owner, sizes, each, np.zeros((10, 0, 6))) for each in (nats, other))
    found = report._strands(one, mirrored)
    assert found["mean"] == pytest.approx(100 / 64 / math.log(2))
    assert found["mean_ci95"] == pytest.approx([found["mean"]] * 2)
    assert found["forward_ci95"][0] < found["forward"] < found["forward_ci95"][1]


def test_samples_are_drawn_where_they_take_no_longer_than_the_rest(capsys, texts, monkeypatch):
    monkeypatch.setattr(report, "QUICK", 0)  # the model is a large one
    monkeypatch.setattr(report, "SAMPLE_BYTES", 4)
    drawn = 4 * report.SAMPLES
    found = {}
    for limit in (drawn, drawn - 1):
        code, out, _ = hnet(capsys, "eval", "starter:text", texts[0], "--json", "--max-bytes", limit)
        assert code == 0
        found[limit] = json.loads(out)["validity"]
    assert found[drawn]["bytes_each"] == 4
    assert found[drawn - 1] is None
    few = (texts[0], "--max-bytes", drawn - 1)
    _, out, _ = hnet(capsys, "eval", "starter:text", *few)
    assert "No samples were drawn" in out
    _, out, _ = hnet(capsys, "eval", "starter:text", *few, "--samples")
    assert "Samples drawn without rules (32 of 4 bytes)" in out


def test_the_table_says_what_was_counted(capsys, texts):
    code, out, _ = hnet(capsys, "eval", "starter:text", "--data", texts[0], "--context", 128, "--stride", 64,
                        "--no-samples")  # fmt: skip
    assert code == 0
    assert f"{texts[0].stat().st_size:,} bytes, each counted once, of 1 document;" in out
    assert "at most 128 bytes before it" in out
    assert "at least 65" in out
    assert "Intervals: none, for fewer than 8" in out or "bootstrap over windows" in out


def test_two_models_are_compared_on_the_same_bytes(capsys, texts):
    code, out, err = hnet(capsys, "eval", "starter:text", "starter:code", *texts, "--json", "--no-samples",
                          "--modality", "text")  # fmt: skip
    assert code == 0, err
    found = json.loads(out)
    first, second = found["models"]
    assert found["difference"]["bpb"] == pytest.approx(second["bpb"] - first["bpb"])
    assert found["difference"]["bpb"] > 0
    assert found["difference"]["relative"] == pytest.approx(second["bpb"] / first["bpb"] - 1)
    assert first["bytes"] == second["bytes"]


def test_models_that_read_differently_are_not_compared_unasked(capsys, texts):
    code, _, err = hnet(capsys, "eval", "starter:text", "starter:dna", texts[0])
    assert code == 2
    assert "starter:dna of dna" in err
    assert "--modality" in err


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        ("starter:text FILE --scores x", 2, "--scores goes with --vcf"),
        ("starter:text FILE --label AF", 2, "--label goes with --vcf"),
        ("starter:text FILE --fasta x", 2, "--fasta goes with --vcf or --annotation"),
        ("starter:text FILE --limit 3", 2, "--limit goes with --task"),
        ("starter:text FILE --context 0 --stride 4", 2, "--stride"),
        ("nowhere", 3, "there is no model at nowhere"),
    ],
)
def test_options_that_would_do_nothing_are_refused(capsys, texts, options, code, said):
    line = [str(texts[0]) if word == "FILE" else word for word in options.split()]
    ended, out, err = hnet(capsys, "eval", *line)
    assert (ended, out) == (code, "")
    assert said in err


def test_a_run_is_evaluated_on_its_own_dataset(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    from runkit import SETTINGS

    dataset(tmp_path)
    options = [part for setting in SETTINGS for part in ("--set", setting)]
    assert hnet(capsys, "train", "--data", "dataset", "--run", "runs/x", "--preset", "nano", *options)[0] == 0
    code, out, err = hnet(capsys, "eval", "runs/x", "--json", "--no-samples")
    assert code == 0, err
    found = json.loads(out)
    assert found["definition"]["bytes_counted"].startswith("held-out split of dataset: all")
    assert "order_k" in found["baselines"]


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["starter:text"], 2, "nothing to evaluate"),
        (["nowhere", "x.txt"], 3, "no model at nowhere"),
        (["starter:text", "starter:text", "starter:text"], 2, "3 models"),
        (["starter:text", "missing.txt"], 3, "does not exist"),
        (["starter:text", "x.txt", "--context", "8", "--stride", "9"], 2, "left out"),
        (["starter:text", "--vcf", "x.vcf"], 2, "--fasta"),
        (["starter:text", "--gold", "missing.conllu"], 3, "does not exist"),
        (["starter:dna", "--gold", "x.txt"], 2, "no gold files"),
        (["starter:text", "--annotation", "x.txt", "x.txt"], 2, "no annotation"),
        (["starter:text", "--task", "x.txt"], 3, "x.txt"),
    ],
)
def test_mistakes_are_one_line(capsys, tmp_path, monkeypatch, arguments, code, says):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.txt").write_text("Just some words.\nAnd a line.\n")
    found, out, err = hnet(capsys, "eval", *arguments)
    assert found == code, err
    assert says in err
    assert len(err.strip().splitlines()) <= 2
    assert out == ""
