"""The laws of mixtures: shares are met, batches are pure, and a source is read as if it were alone."""

from __future__ import annotations

import shutil
from collections import Counter
from dataclasses import astuple, fields
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from corpuskit import Lines, text, tree
from hypothesis import example, given
from hypothesis import strategies as st
from laws import one_in
from rowkit import rows_dataset
from runkit import dataset as prepared

from hnet_cli.config.sources import DataSource
from hnet_cli.data.dataset import Dataset
from hnet_cli.data.loader import Batch, Batches, Windows
from hnet_cli.data.mixture import MOST_UNITS, HeldOut, MixedBatches, Mixture, _tree, _units
from hnet_cli.data.prepare.preparation import prepare
from hnet_cli.errors import InputError, UsageError


class Upper(Lines):
    """Read in capitals."""

    name = "upper"
    input_table = bytes(range(256)).upper()


class Weighted(Lines):
    """Digits weigh half."""

    name = "weighted"
    loss_weights = tuple(0.5 if chr(n).isdigit() else 1.0 for n in range(256))


LENGTH = 50


@pytest.fixture(scope="module")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> list[Dataset]:
    """Three of lines, of different sizes; predicting the digits of the last weighs less."""
    root, made = tmp_path_factory.mktemp("mixture"), []
    for number, files in enumerate((12, 5, 2)):
        folder = root / f"in{number}"
        folder.mkdir()
        for file in range(files):
            (folder / f"{file}.txt").write_bytes(text(100 * number + file))
        plugin = Weighted() if number == 2 else Lines()
        prepare([folder], plugin, root / "abc"[number], val=0.1, measure=False)
        made.append(Dataset.open(root / "abc"[number]))
    return made


def equal(one: Batch, other: Batch) -> bool:
    return all(
        (a is None and b is None) or (a is not None and b is not None and a.dtype == b.dtype and np.array_equal(a, b))
        for a, b in zip(astuple(one), astuple(other), strict=True)
    )


def rows_of(batch: Batch) -> list[bytes]:
    return [row.tobytes() for row in batch.targets.reshape(-1, LENGTH)]


class Divided(Mixture):
    """The rule of rows alone, without datasets."""

    def __init__(self, weights: list[float]) -> None:
        self._units = _units(weights)
        self._tree = _tree(self._units, [str(n) for n in range(len(weights))])


# -- whose row it is ---------------------------------------------------------------------------------------------------


@example(weights=[8, 1])
@example(weights=[1e-6, 0.9, 1, 1.6, 2.7, 4.4])
@given(weights=st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=7))
def test_shares_are_met_at_every_row(weights: list[float]) -> None:
    mixture, rows = Divided(weights), np.arange(700)
    sources, numbers = mixture.divide(rows)
    counts = np.cumsum(np.eye(len(weights), dtype=np.int64)[sources], 0)
    assert np.array_equal(counts[rows, sources] - 1, numbers)  # each source's rows are numbered without a gap
    away = np.abs(counts - np.outer(rows + 1, np.array(mixture._units) / sum(mixture._units))).max()
    assert away <= {1: 0, 2: 0.5}.get(len(weights), 1 if len(weights) == 3 else 1.7)


@given(weights=st.lists(st.floats(0.01, 100), min_size=2, max_size=5), start=st.integers(0, 2**60))
def test_rows_are_divided_alike_wherever_one_begins(weights: list[float], start: int) -> None:
    mixture, rows = Divided(weights), start + np.arange(40)
    together = mixture.divide(rows)
    alone = [mixture.divide(rows[n : n + 1]) for n in range(40)]
    for column in range(2):
        assert np.array_equal(together[column], np.concatenate([each[column] for each in alone]))
    assert (together[1] <= rows).all()
    assert (together[1] >= 0).all()


@given(st.lists(st.floats(1e-9, 1e15) | st.integers(1, 10**15), min_size=1, max_size=64))
def test_weights_become_whole_numbers(weights: list[float]) -> None:
    units = _units(weights)
    assert all(unit >= 1 for unit in units)
    assert sum(units) <= MOST_UNITS
    shares = np.array(weights) / np.sum(weights)
    assert np.abs(np.array(units) / sum(units) - shares).max() < 1e-6


def test_weights_mean_what_people_write() -> None:
    assert _units([8.0, 1.0]) == [8, 1] == _units([0.8, 0.1]) == _units([16, 2])
    assert _units([0.7, 0.2, 0.1]) == [7, 2, 1]
    assert Divided([8, 1]).divide(np.arange(18))[0].tolist() == [0, 0, 0, 0, 1, 0, 0, 0, 0] * 2


# -- batches -----------------------------------------------------------------------------------------------------------


def test_one_dataset_is_read_as_ever(datasets: list[Dataset]) -> None:
    """Runs that were begun before there were mixtures go on."""
    for dataset in datasets:
        mixture = Mixture.of(dataset)
        assert mixture.key == dataset.fingerprint
        one = MixedBatches(mixture, sequence_length=LENGTH, rows=7, seed=3)
        alone = Batches(dataset, sequence_length=LENGTH, rows=7, seed=3)
        for step in (0, 1, 400):
            assert equal(one.batch(step), alone.batch(step))
            assert equal(one.batch(step, (2, 5)), alone.batch(step, (2, 5)))
        for limit in (None, 300):
            held_out, windows = HeldOut.choose(mixture, 64, limit), Windows(dataset, "val", 64, limit)
            assert (held_out.key, held_out.bytes, held_out.total) == (windows.key, windows.bytes, windows.of)


def test_every_source_gives_its_own_windows_in_its_own_order(datasets: list[Dataset]) -> None:
    mixture, seen = Mixture(datasets, [5, 2, 1]), {number: list[bytes]() for number in range(3)}
    batches = MixedBatches(mixture, sequence_length=LENGTH, rows=6, seed=1)
    for step in range(40):
        batch = batches.batch(step)
        sources, _ = mixture.divide(np.arange(6 * step, 6 * step + 6))
        for source, row in zip(sources.tolist(), rows_of(batch), strict=True):
            seen[source].append(row)
    assert [len(rows) for rows in seen.values()] == [150, 60, 30]
    for number, rows in seen.items():
        alone = Batches(datasets[number], sequence_length=LENGTH, rows=len(rows), seed=1).batch(0)
        assert rows_of(alone) == rows
    assert batches.epochs(40) == pytest.approx(
        [len(seen[n]) / (datasets[n].nbytes("train") // LENGTH) for n in range(3)]
    )


@one_in(5)
@given(step=st.integers(0, 10**6), cuts=st.lists(st.integers(0, 9), max_size=4), seed=st.integers(0, 3))
def test_any_division_among_ranks_gives_the_same_batch(
    datasets: list[Dataset], step: int, cuts: list[int], seed: int
) -> None:
    batches = MixedBatches(Mixture(datasets, [3, 1, 0.5]), sequence_length=LENGTH, rows=9, seed=seed)
    whole, borders = batches.batch(step), sorted({0, 9, *cuts})
    parts = [batches.batch(step, pair) for pair in pairwise(borders)]
    for name in ("inputs", "targets", "documents", "offsets"):
        assert np.array_equal(np.concatenate([getattr(part, name) for part in parts]), getattr(whole, name))
    weights = [np.ones(len(p.targets)) if p.weights is None else p.weights for p in parts]
    assert np.array_equal(np.concatenate(weights), np.ones(450) if whole.weights is None else whole.weights)
    lengths = np.concatenate([np.diff(part.cu_seqlens) for part in parts])
    assert np.array_equal(lengths, np.diff(whole.cu_seqlens))
    again = MixedBatches(Mixture.open(batches.mixture.sources), sequence_length=LENGTH, rows=9, seed=seed)
    assert equal(again.batch(step), whole)


def test_sequences_are_what_their_numbers_say(datasets: list[Dataset]) -> None:
    """Documents are numbered through the sources; weights are those of each one's modality."""
    batch = MixedBatches(Mixture(datasets, [1, 1, 1]), sequence_length=LENGTH, rows=12).batch(2)
    first = np.cumsum([0, *(len(dataset.table) for dataset in datasets)])
    of = np.searchsorted(first, batch.documents, side="right") - 1
    assert set(of.tolist()) == {0, 1, 2}
    assert batch.weights is not None
    for n, (source, document) in enumerate(zip(of.tolist(), batch.documents.tolist(), strict=True)):
        low, high = batch.cu_seqlens[n : n + 2].tolist()
        dataset = datasets[source]
        at = int(dataset.table[document - first[source], 0] + batch.offsets[n])
        stored = dataset.shards.read(at, at + high - low)
        assert batch.targets[low:high].tobytes() == stored
        assert batch.inputs[low + 1 : high].tobytes() == stored[:-1]
        half = np.array([0.5 if source == 2 and chr(byte).isdigit() else 1.0 for byte in stored], np.float32)
        assert np.array_equal(batch.weights[low:high], half)
    assert {field.name for field in fields(batch)} == {
        *("inputs", "targets", "weights", "cu_seqlens", "documents", "offsets", "lengths")
    }


def test_the_order_of_the_sources_does_not_matter(datasets: list[Dataset]) -> None:
    a, b, c = datasets
    one, other = Mixture([a, b, c], [4, 1, 1]), Mixture([c, a, b], [1, 4, 1])
    assert one.key == other.key
    assert HeldOut.choose(one, 64, 900).key == HeldOut.choose(other, 64, 900).key
    for step in (0, 7):
        batches = [MixedBatches(m, sequence_length=LENGTH, rows=8).batch(step) for m in (one, other)]
        assert np.array_equal(batches[0].targets, batches[1].targets)


def test_without_weights_sizes_decide(datasets: list[Dataset]) -> None:
    mixture = Mixture(datasets)
    sizes = [dataset.nbytes("train") for dataset in datasets]
    assert mixture.shares == pytest.approx([size / sum(sizes) for size in sizes])
    assert mixture.key == " ".join(sorted(dataset.fingerprint for dataset in datasets))
    windows = sum(size // LENGTH for size in sizes)
    batches = MixedBatches(mixture, sequence_length=LENGTH, rows=windows)
    assert batches.epochs(1) == pytest.approx([1, 1, 1], abs=0.01)
    seen = Counter(mixture.divide(np.arange(windows))[0].tolist())
    assert [seen[n] for n in range(3)] == pytest.approx([size // LENGTH for size in sizes], abs=2)


# -- refusals ----------------------------------------------------------------------------------------------------------


def test_what_cannot_be_mixed(datasets: list[Dataset], tmp_path: Path) -> None:
    copy = shutil.copytree(datasets[0].path, tmp_path / "copy")
    with pytest.raises(UsageError, match="hold the same data"):
        Mixture([datasets[0], Dataset.open(copy)])
    prepare([tree(tmp_path / "in", 4)], Upper(), tmp_path / "upper", val=0.2, measure=False)
    with pytest.raises(UsageError, match=r"\(lines\) and .*upper \(upper\) cannot be mixed"):
        Mixture([datasets[0], Dataset.open(tmp_path / "upper")])
    with pytest.raises(InputError, match=r"train split of .*c has .* less than one"):
        MixedBatches(Mixture(datasets), sequence_length=8000, rows=1)


def test_names_tell_the_sources_apart(datasets: list[Dataset], tmp_path: Path) -> None:
    assert Mixture(datasets).names == ["a", "b", "c"]
    for number, folder in enumerate(("one/text", "two/text")):
        shutil.copytree(datasets[number].path, tmp_path / folder)
    sources = [DataSource(path=str(tmp_path / folder), weight=1) for folder in ("one/text", "two/text")]
    assert Mixture.open(sources).names == ["one/text", "two/text"]


def test_validations_read_as_much_of_each_source_as_there_is(datasets: list[Dataset]) -> None:
    mixture = Mixture(datasets, [98, 1, 1])
    held_out = HeldOut.choose(mixture, 64, 1800)
    least = min(dataset.nbytes("val") for dataset in datasets)
    sizes = [part.bytes for part in held_out.parts]
    assert sum(sizes) == held_out.bytes <= 1800
    assert min(sizes) >= min(least, 600) - 64
    assert HeldOut.choose(mixture, 64).bytes == held_out.total == mixture.nbytes("val")
    assert held_out.key != HeldOut.choose(Mixture(datasets, [97, 1, 1]), 64, 1800).key


def test_rows_of_prompt_and_completion_can_be_mixed_with_text(tmp_path: Path) -> None:
    """Every window is its source's own, whatever its length."""
    rows = rows_dataset(tmp_path / "rows")
    text = Dataset.open(prepared(tmp_path / "text"))
    mixed = MixedBatches(Mixture([rows, text], [1, 3]), sequence_length=64, rows=8)
    batch = mixed.batch(1)
    assert np.array_equal(mixed.batch(1, (3, 6)).targets, batch.targets[slice(*_bytes_of(mixed, 1, 3, 6))])
    sources, numbers = mixed.mixture.divide(np.arange(8, 16))
    own = [mixed.parts[s].visited(numbers[n : n + 1]) for n, s in enumerate(sources.tolist())]
    assert sources.tolist().count(0) == 2
    assert batch.targets.tobytes() == b"".join(each.targets.tobytes() for each in own)
    assert batch.inputs.tobytes() == b"".join(each.inputs.tobytes() for each in own)
    weights = [np.ones(len(each.targets)) if each.weights is None else each.weights for each in own]
    assert batch.weights is not None
    assert np.array_equal(batch.weights, np.concatenate(weights))
    assert batch.documents[np.diff(batch.cu_seqlens) == 64].min() >= len(rows.table)


def _bytes_of(mixed: MixedBatches, step: int, first: int, last: int) -> tuple[int, int]:
    sizes = [len(mixed.batch(step, (n, n + 1)).targets) for n in range(last)]
    return sum(sizes[:first]), sum(sizes)
