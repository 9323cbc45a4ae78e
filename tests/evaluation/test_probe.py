"""Probes: what vectors tell is found, whole groups stay out, and each mistake in the file of labels is named."""

import random
import sys

import numpy as np
import pytest
import torch
from modelkit import tiny_model

from hnet_cli.errors import EnvironmentLimit, InputError
from hnet_cli.evaluation import probe
from hnet_cli.evaluation.probe import Items, Label, collect, is_numbers, layers_of, read_labels
from hnet_cli.inference.embed import Wanted, embed_bytes
from hnet_cli.modality import Document

MODEL = tiny_model(torch.float32)


@pytest.fixture(autouse=True)
def few_fits(monkeypatch):
    monkeypatch.setattr(probe, "GRID", (1e-2, 1.0))
    monkeypatch.setattr(probe, "FOLDS", 3)
    monkeypatch.setattr(probe, "INNER_FOLDS", 2)


def items(values, data=None, groups=10):
    """Items that go round the groups."""
    labels = [Label(f"{n}", None, None, str(value), f"g{n % groups}") for n, value in enumerate(values)]
    return Items(labels, data or [b"item"] * len(labels))


def fitting(values, **options):
    pytest.importorskip("sklearn")
    return probe._Fitting(items(values, **options))


def signal(values, noise=0.3, seed=0):
    random = np.random.default_rng(seed)
    return np.asarray(values)[:, None] * random.normal(size=8) + noise * random.normal(size=(len(values), 8))


@pytest.mark.slow
def test_a_linear_signal_is_found_and_noise_is_not():
    classes = np.random.default_rng(1).integers(0, 2, 80)
    fit = fitting(classes)
    found, nothing = (fit.figures(fit(x, probe._scaler)) for x in (signal(classes), signal(0 * classes)))
    assert found["accuracy"] > 0.95
    assert found["accuracy_ci95"][0] > 0.8
    assert nothing["macro_f1"] < 0.7
    difference = fit.difference(fit(signal(classes), probe._scaler), fit(signal(0 * classes), probe._scaler))
    assert difference["macro_f1_ci95"][0] > 0
    most = fit.figures(fit(signal(classes), None))
    assert most["accuracy"] == pytest.approx(max(classes.mean(), 1 - classes.mean()))


def test_numbers_are_regressed():
    numbers = np.random.default_rng(2).normal(size=80).round(3)
    fit = fitting(numbers)
    found, mean = fit.figures(fit(signal(numbers), probe._scaler)), fit.figures(fit(signal(numbers), None))
    assert found["r2"] > 0.9
    assert found["spearman"] > 0.9
    assert mean["r2"] <= 0.01
    order = np.argsort(np.argsort(numbers))
    rho = np.corrcoef(order, np.argsort(np.argsort(fit(signal(numbers), probe._scaler))))[0, 1]
    assert found["spearman"] == pytest.approx(rho, abs=1e-3)


def test_what_a_group_has_of_its_own_helps_nobody():
    """The vector says which group an item is in, and each has one class: of no use for a group never seen."""
    groups = np.arange(80) % 10
    fit = fitting(groups % 2)
    assert fit.figures(fit(np.eye(10)[groups], probe._scaler))["accuracy"] <= 0.6
    for train, test in fit.folds:
        assert not set(fit.groups[train]) & set(fit.groups[test])
    assert sorted(np.concatenate([test for _, test in fit.folds])) == list(range(80))


def test_scaling_and_vocabulary_are_of_the_training_rows():
    seen = []

    class Watch:
        def fit_transform(self, x):
            seen.append(set(x[:, 0].astype(int)))
            return x

        def transform(self, x):
            assert not seen[-1] & set(x[:, 0].astype(int))
            return x

    fit = fitting(np.arange(40) % 2)
    fit(np.stack([np.arange(40), np.ones(40)], 1), Watch)
    assert len(seen) == len(fit.folds) * (1 + probe.INNER_FOLDS)


@pytest.mark.parametrize(
    ("values", "groups"),
    [
        ([f"{n}a" for n in range(12)], 6),  # every class has one item
        (["a", "b"] * 2 + ["c"] * 8, 3),
        (["a", "b", "a"] + ["b"] * 9, 12),
        ([1e30 * (n / 12 - 0.4) for n in range(12)], 6),
        ([5e-324 * n + 0.5 for n in range(12)], 6),
        (["1e300", "-1e300"] * 6, 6),  # classes: no float32
    ],
)
def test_labels_however_they_are_distributed(values, groups):
    fit = fitting(values, groups=groups)
    fit.names, fit.groups = np.unique([0] * (len(values) - groups) + list(range(groups)), return_inverse=True)
    fit.folds = list(fit._split(np.arange(len(values)), 3))
    x = signal(np.arange(len(values)))
    for figures in (fit.figures(fit(x, probe._scaler)), fit.difference(fit(x, probe._scaler), fit(x, None))):
        assert all(np.isfinite(value) for value in figures.values() if isinstance(value, float))


def test_pieces_of_a_long_document_are_one(tmp_path):
    """Divided where it is read, without a gap; not over a gap, nor into another file of the name."""
    data = bytes(range(97, 117)) * 3
    cuts = [(0, 20), (20, 40), (41, 60)]
    documents = [Document(data[a:b], "a", "a", "", a) for a, b in cuts] + [Document(data, "a", "other/a", "", 0)]
    regions = [(None, None), (5, 10), (15, 25), (20, 40), (0, 40), (35, 45), (41, 60), (45, 70), (50, None)]
    more = [Document(b"rest", name, name) for name in "bcd"]
    labels = [Label("a", start, end, str(n % 2), f"g{n}") for n, (start, end) in enumerate(regions)]
    labels += [Label(name, None, None, "1", name) for name in "bcd"]
    found = collect(labels, documents + more, None, None)
    expected = {(None, None): data[:40], (35, 45): data[35:45], (50, None): data[50:]}  # the second from the other file
    kept = [region for region in regions if region != (45, 70)]
    assert found.data[:-3] == [expected.get(region, data[slice(*region)]) for region in kept]
    assert found.left_out == {"not wholly in a document": 1}
    short = collect(labels, documents + more, None, 30 * len(labels))
    assert short.data[0] == data[:30]


def test_labelled_pieces_are_bounded(monkeypatch):
    monkeypatch.setattr(probe, "MOST_TAKEN", 100)
    labels = [Label("a", 0, 30 + n, str(n % 2), f"g{n % 3}") for n in range(9)]
    documents = [Document(b"x" * 50, "a", "a")]
    assert len(collect(labels, documents, None, 90).data) == 9
    with pytest.raises(InputError, match="more than 100 bytes"):
        collect(labels, documents, None, None)


def test_a_probe_of_a_model():
    pytest.importorskip("sklearn")
    luck = random.Random(0)
    data = [bytes(luck.choices(b"ACGT", (5, 1, 1, 1) if n % 2 else (1, 5, 1, 1), k=30)) for n in range(36)]
    done = []
    found = probe.probe(MODEL, items(["ab"[n % 2] for n in range(36)], data, groups=9), b"ACGT", done.append)
    assert (found["items"], found["groups"], found["bytes"], found["n"]) == (36, 9, 36 * 30, 5)
    assert done[-1] == 36 * 30
    assert list(found["layers"]) == ["encoder 0", "encoder 1", "main 1", "decoder 1", "decoder 0"]
    assert found["vectors"] == "decoder 0"
    assert found["baselines"]["ngrams"]["accuracy"] > 0.9
    assert found["baselines"]["majority"]["accuracy"] <= 0.6
    assert found["layers"]["encoder 0"]["accuracy"] > 0.8
    last = found["layers"]["decoder 0"]["macro_f1"]
    assert found["difference"]["macro_f1"] == pytest.approx(last - found["baselines"]["ngrams"]["macro_f1"])


def test_vectors_are_those_of_embed():
    data = [b"The quick brown fox", b"x", b"A" * 70]
    for layer, own in zip(
        layers_of(MODEL), probe.vectors(MODEL, data, layers_of(MODEL), lambda done: None), strict=True
    ):
        expected = embed_bytes(MODEL, data, Wanted(stage=layer.stage, layer=layer.name)).vectors
        np.testing.assert_allclose(own, expected, rtol=1e-4, atol=1e-5)


ROWS = "name\tstart\tend\tlabel\tplace\na\t0\t5\tx\tone\nb\t2\t6\ty\ttwo\na\t5\t9\tx\tthree\n"


def test_regions_are_in_the_coordinates_of_the_record(tmp_path):
    (tmp_path / "l.tsv").write_text(ROWS + "a\t1\t4\ty\tfour\na\t8\t12\ty\tfour\nc\t0\t3\ty\tfour\n")
    documents = [Document(b"acgtacgt", "a", "g.fa"), Document(b"TTTT", "a", "g.fa", offset=10)]
    documents.append(Document(b"ccccGGGG", "deep/b", "x.tar:deep/b"))
    found = collect(
        read_labels(tmp_path / "l.tsv", "place"), documents[:1] + documents, bytes.maketrans(b"a", b"A"), 18
    )
    assert found.data == [b"Acg", b"ccG", b"cgt"]
    assert found.left_out == {"not wholly in a document": 2, "no such document": 1}
    assert found.first["no such document"] == "c"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("name\tlabel\nx\ty\n", "no column 'place'"),
        (ROWS.replace("start", "begin"), "no column 'start'"),
        (ROWS + "a\t1\n", "line 5: 2 cells of 5"),
        (ROWS + "a\t0\t9\t\tone\n", "line 5"),
        (ROWS + "a\t9\t9\tx\tone\n", "line 5: start and end"),
        (ROWS + "a\t-1\t9\tx\tone\n", "line 5: start and end"),
        (ROWS + "a\t0\t5\tx\ttwo\n", "line 5: the same place is in two groups"),
        (ROWS.replace("three", "one"), "2 groups in column 'place'"),
        (ROWS.replace("y", "x"), "one value in column 'label'"),
        ("name\tlabel\tplace\n" + "".join(f"n{i}\tc{i}\tg{i}\n" for i in range(101)), "101 classes"),
        ("", "is empty"),
    ],
)
def test_each_mistake_in_the_labels_is_named(tmp_path, text, says):
    (tmp_path / "l.tsv").write_text(text)
    with pytest.raises(InputError, match=says):
        read_labels(tmp_path / "l.tsv", "place")


def test_labels_of_nothing_are_an_error(tmp_path):
    (tmp_path / "l.tsv").write_text(ROWS)
    labels = read_labels(tmp_path / "l.tsv", "place")
    with pytest.raises(InputError, match="no document is labelled: there is no 'a'"):
        collect(labels, [Document(b"data", "z", "z")], None, None)
    with pytest.raises(InputError, match="1 group in"):
        collect(labels, [Document(b"data data", "b", "b")], None, None)


@pytest.mark.parametrize(
    ("values", "numbers"),
    [
        (["0", "1"], False),
        (["0.5", "1"], True),
        (["a", "1"], False),
        (["nan", "0.5"], False),
        (map(str, range(20)), True),
    ],
)
def test_numbers_are_told_from_classes(values, numbers):
    assert is_numbers(values) == numbers


def test_without_scikit_learn_it_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(EnvironmentLimit, match="scikit-learn"):
        probe._Fitting(items([0, 1, 0]))
