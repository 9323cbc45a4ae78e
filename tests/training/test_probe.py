"""The same bytes at every evaluation: what is recorded is what `segment` and `sample` would say."""

from base64 import b64decode

import numpy as np
import pytest
import torch
from modelkit import tiny_config, tiny_model
from runkit import dataset

from hnet_cli import modality
from hnet_cli.data.dataset import Dataset
from hnet_cli.data.mixture import Mixture
from hnet_cli.inference.windows import windows
from hnet_cli.modality import Document
from hnet_cli.training.probe import PROBE_BYTES, Probe


@pytest.fixture(scope="module")
def model():
    return tiny_model(torch.float32, config=tiny_config())


@pytest.fixture(scope="module")
def probe(tmp_path_factory):
    """Dataset of many short documents with characters of several bytes."""
    folder = tmp_path_factory.mktemp("probe")
    lines = [f'{{"text": "Zeile {i}: für Æther, 文本 {"ab" * (i % 7)}"}}\n' for i in range(2000)]
    (folder / "lines.jsonl").write_text("".join(lines), encoding="utf-8")
    return Probe(Dataset.open(dataset(folder, folder / "lines.jsonl")))


def documents(probe):
    ends = [*probe.first[1:], len(probe.data)]
    return [probe.data[a:b] for a, b in zip(probe.first, ends, strict=True)]


def test_decisions_are_those_of_segment(probe, model):
    assert len(probe.data) == PROBE_BYTES
    assert len(probe.first) > 50
    decisions = probe.decide(model)
    depth = np.array([int(digit) for digit in decisions.depth])
    told = [Document(data, str(i), str(i)) for i, data in enumerate(documents(probe))]
    for window, first in zip(windows(model, told), probe.first, strict=True):
        mine = depth[first : first + len(window.data)]
        assert np.flatnonzero(mine).tolist() == window.starts.tolist()
        for s in range(2):
            begun = window.starts[~np.isnan(window.probability[:, s])]
            assert np.flatnonzero(mine > s).tolist() == begun.tolist()
            expected = window.probability[~np.isnan(window.probability[:, s]), s]
            assert decisions.probability[s, first + begun] == pytest.approx(expected, abs=1e-6)
    inner = ~np.isnan(decisions.probability[1])
    assert np.array_equal(inner, depth >= 1)


def test_flips_are_counted_among_common_decisions(probe):
    def depths(*digits):
        whole = np.zeros(len(probe.data), int)
        free = np.setdiff1d(np.arange(len(probe.data)), probe.first)
        whole[probe.first] = 2
        whole[free[: len(digits)]] = digits
        return "".join(map(str, whole))

    free = len(probe.data) - len(probe.first)
    before, now = depths(0, 1, 1, 2, 2), depths(1, 1, 2, 2, 0)
    flips = probe.flips(before, now, 2)
    assert flips == {"stage0_flips": pytest.approx(2 / free), "stage1_flips": pytest.approx(1 / 3)}
    assert set(probe.flips(before, before, 2).values()) == {0.0}
    assert probe.flips(depths(0), depths(1), 2) == {"stage0_flips": pytest.approx(1 / free)}


@pytest.mark.slow
def test_a_record_can_be_repeated_and_disturbs_nothing(probe, model):
    model.train()
    torch.manual_seed(5)
    state = torch.get_rng_state()
    decisions = probe.decide(model)
    record = probe.record(model, decisions, seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
    assert record == probe.record(model, probe.decide(model), seed=3)
    assert record["sample"] != probe.record(model, decisions, seed=4)["sample"]
    begun = b64decode(record["sample"]["prompt"]) + b64decode(record["sample"]["base64"])
    assert probe.data.startswith(b64decode(record["sample"]["prompt"]))
    begun.decode("utf-8")
    assert len(begun) > 100
    for p, depth in zip(record["probe"]["probability"][1], record["probe"]["depth"], strict=True):
        assert (p is not None) == (depth >= 1)


def test_a_model_whose_logits_are_not_finite_gives_no_sample(probe):
    broken = tiny_model(torch.float32, config=tiny_config())
    with torch.no_grad():
        broken.lm_head.weight[7] = torch.inf
    assert set(probe.record(broken, probe.decide(broken), seed=0)) == {"probe"}


def test_bases_are_read_in_upper_case_and_continued_as_bases(tmp_path):
    (tmp_path / "a.fa").write_text(">chr1\n" + "ACGTacgtac" * 300 + "\n")
    probe = Probe(Dataset.open(dataset(tmp_path, tmp_path / "a.fa", kind="dna")))
    model = tiny_model(torch.float32, config=tiny_config())
    record = probe.record(model, probe.decide(model), seed=0)
    assert set(b64decode(record["sample"]["base64"])) <= set(b"ACGT")
    assert set(b64decode(record["probe"]["base64"])) & set(b"acgt")
    assert modality.get("dna").automaton().run(b64decode(record["sample"]["base64"])) >= 0


def test_without_its_plugin_any_byte_may_follow(probe, model, tmp_path):
    data = Dataset.open(dataset(tmp_path))
    data.modality = "of another machine"
    assert Probe(data).automaton is None
    assert "sample" in Probe(data).record(model, Probe(data).decide(model), seed=0)


def test_every_source_of_a_mixture_has_its_part(sources, model):
    mixture = Mixture.open(sources)
    probe = Probe(mixture)
    held_out = [b"".join(dataset.documents("val")) for dataset in mixture.datasets]
    assert probe.data == b"".join(data[: PROBE_BYTES // 2] for data in held_out)
    decisions = probe.decide(model)
    record = probe.record(model, decisions, seed=0, enough=lambda: True)
    assert b64decode(record["probe"]["base64"]) == b"".join(data[:256] for data in held_out)
    whole = [int(digit) for digit in decisions.depth]
    second = min(PROBE_BYTES // 2, len(held_out[0]))
    assert record["probe"]["depth"] == whole[:256] + whole[second : second + 256]
    assert record["probe"]["depth"][256] == 2  # a document begins there
    assert len(record["probe"]["probability"][0]) == 512
