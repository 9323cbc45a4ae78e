"""The law of batches: pure functions of (dataset, split, seed, step) that predict every byte once."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from corpuskit import Lines, stored, tree
from hypothesis import example, given
from hypothesis import strategies as st
from laws import one_in
from rowkit import PAIRS, rows_dataset, rows_file

from hnet_cli import modality
from hnet_cli.data.dataset import Dataset
from hnet_cli.data.loader import Batch, Batches, Windows, shuffled
from hnet_cli.data.prepare.preparation import prepare
from hnet_cli.errors import InputError
from hnet_cli.model.config import BOS


class Upper(Lines):
    """Read in capitals; digits weigh half."""

    input_table = bytes(range(256)).upper()
    loss_weights = tuple(0.5 if chr(n).isdigit() else 1.0 for n in range(256))

    def cut(self, data: bytes, near: int) -> int:
        return near


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    root = tmp_path_factory.mktemp("loader")
    prepare([tree(root / "in", 24)], Lines(), root / "out", val=0.05, measure=False)
    return Dataset.open(root / "out")


@pytest.fixture(scope="module")
def weighted(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    root = tmp_path_factory.mktemp("weighted")
    (root / "x").write_bytes(b"one 1 two 22\n" * 400)
    prepare([root / "x"], Upper(), root / "out", val=0.103, measure=False)
    return Dataset.open(root / "out")


def pieces(dataset: Dataset, split: str, batch: Batch) -> list[tuple[int, int, int]]:
    """(document, offset, length) of each sequence, after checking it against the dataset byte by byte."""
    limits = {document: start for document, start, _ in dataset.ranges(split).tolist()}
    assert batch.cu_seqlens.dtype == np.int32
    assert batch.cu_seqlens[0] == 0
    assert batch.cu_seqlens[-1] == len(batch.targets) == len(batch.inputs)
    found = []
    for index, (document, offset) in enumerate(zip(batch.documents.tolist(), batch.offsets.tolist(), strict=True)):
        low, high = batch.cu_seqlens[index : index + 2]
        start = int(dataset.table[document, 0]) + offset
        raw = dataset.shards.read(start, start + int(high - low))
        table = dataset.input_table
        read = raw if table is None else raw.translate(table.tobytes())
        assert batch.targets[low:high].tobytes() == read
        assert batch.inputs[low + 1 : high].tobytes() == read[:-1]
        if offset == limits[document]:
            assert batch.inputs[low] == BOS
        else:
            before = dataset.shards.read(start - 1, start)
            assert batch.inputs[low] == (before if table is None else before.translate(table.tobytes()))[0]
        if dataset.loss_weights is not None:
            assert batch.weights is not None
            assert np.array_equal(batch.weights[low:high], dataset.loss_weights[np.frombuffer(raw, np.uint8)])
        found.append((document, offset, int(high - low)))
    return found


@pytest.mark.slow
@one_in(5)
@example(length=1, rows=64, seed=0)
@given(length=st.integers(20, 700), rows=st.integers(1, 9), seed=st.integers(0, 3))
def test_an_epoch_has_every_byte_once_but_a_tail(dataset: Dataset, length: int, rows: int, seed: int) -> None:
    batches = Batches(dataset, "val", sequence_length=length, rows=rows, seed=seed)
    total = dataset.nbytes("val")
    seen: Counter[tuple[int, int]] = Counter()
    visited = 0
    step = 0
    while visited < batches.windows_per_epoch:
        take = min(rows, batches.windows_per_epoch - visited)
        batch = batches.batch(step, (0, take))
        assert len(batch.targets) == take * length
        for document, offset, count in pieces(dataset, "val", batch):
            seen.update((document, offset + position) for position in range(count))
        visited += take
        step += 1
    assert set(seen.values()) == {1}
    assert total - length < len(seen) <= total
    assert len(seen) == total // length * length


@given(step=st.integers(0, 10**6), cut=st.integers(0, 6), seed=st.integers(0, 9))
def test_batches_are_pure_and_ranks_take_slices(dataset: Dataset, step: int, cut: int, seed: int) -> None:
    whole = Batches(dataset, sequence_length=100, rows=6, seed=seed)
    whole.batch(step + 500)  # earlier calls must not matter
    batch = whole.batch(step)
    fresh = Batches(Dataset.open(dataset.path), sequence_length=100, rows=6, seed=seed)
    assert np.array_equal(fresh.batch(step).inputs, batch.inputs)
    assert np.array_equal(fresh.batch(step).cu_seqlens, batch.cu_seqlens)
    parts = [fresh.batch(step, (a, b)).targets for a, b in ((0, cut), (cut, 6)) if a < b]
    assert np.array_equal(np.concatenate(parts), batch.targets)
    assert len(batch.targets) == 600
    pieces(dataset, "train", batch)


def test_seeds_and_epochs_differ(dataset: Dataset) -> None:
    def first(seed: int, step: int) -> bytes:
        return Batches(dataset, sequence_length=200, rows=8, seed=seed).batch(step).targets.tobytes()

    later = Batches(dataset, sequence_length=200, rows=8).windows_per_epoch
    assert len({first(0, 0), first(1, 0), first(0, 1), first(0, later)}) == 4


def test_small_splits_repeat_within_a_batch(weighted: Dataset) -> None:
    assert weighted.about["split_rule"] == "the end of the corpus"
    batch = Batches(weighted, "val", sequence_length=100, rows=40).batch(3)
    assert len(batch.targets) == 4000
    assert len(pieces(weighted, "val", batch)) >= 40
    with pytest.raises(InputError, match="less than one sequence"):
        Batches(weighted, "val", sequence_length=10**6, rows=1)


def test_input_table_weights_and_divided_documents(weighted: Dataset) -> None:
    assert sum(length != weighted.table[d, 1] for d, _, length in weighted.ranges("val").tolist()) == 1
    for split in weighted.splits:
        batch = Batches(weighted, split, sequence_length=50, rows=4).batch(0)
        pieces(weighted, split, batch)
        assert b"ONE" in batch.targets.tobytes()


@one_in(5)
@example(length=1, batch_bytes=100)
@given(length=st.integers(20, 300), batch_bytes=st.integers(1, 2000))
def test_windows_give_every_byte_once_in_order(dataset: Dataset, length: int, batch_bytes: int) -> None:
    parts, windows = [], Windows(dataset, "val", length)
    for batch in windows.batches(batch_bytes):
        assert len(batch.targets) <= max(batch_bytes, length)
        assert np.diff(batch.cu_seqlens).max() <= length
        pieces(dataset, "val", batch)
        parts.append(batch.targets.tobytes())
    assert b"".join(parts) == b"".join(dataset.documents("val")) == windows.read()
    assert windows.bytes == windows.of == dataset.nbytes("val")


@given(length=st.integers(5, 300), limit=st.integers(1, 9000))
def test_a_sample_has_whole_windows_from_everywhere(dataset: Dataset, length: int, limit: int) -> None:
    whole, sample = Windows(dataset, "val", length), Windows(dataset, "val", length, limit)
    assert b"".join(batch.targets.tobytes() for batch in sample.batches(700)) == sample.read()
    assert sample.bytes == len(sample.read()) <= limit
    if limit >= whole.of:
        assert sample.key == whole.key
        return
    assert sample.key == Windows(dataset, "val", length, limit).key != whole.key
    if sample.bytes < length == sample.table[0, 3]:
        return  # less than a window
    rows = [row.tolist() for row in whole.table]
    places = [rows.index(row.tolist()) for row in sample.table] if len(sample.table) > 1 else [0]
    assert places == sorted(set(places))
    gaps = np.diff([-1, *places, len(rows)])
    if len(places) > 1:  # one of every so many neighbours
        assert gaps.max() <= 2 * len(rows) / len(places) + 1
        assert sample.bytes >= limit - 2 * length * max(1, len(places) // 4)


def test_a_part_is_spread_over_the_windows(dataset: Dataset) -> None:
    whole = Windows(dataset, "val", 16)
    part = whole.part(5)
    rows = [whole.table.tolist().index(row) for row in part.table.tolist()]
    assert len(rows) == 5
    assert np.searchsorted(np.arange(1, 6) * len(whole.table) // 5, rows, side="right").tolist() == [*range(5)]
    assert part.bytes == part.table[:, 3].sum() == sum(batch.nbytes for batch in part.batches()) < whole.bytes
    assert whole.part(10**6).table.tolist() == whole.table.tolist()


def test_every_window_has_the_same_chance() -> None:
    from hnet_cli.data.loader import _spread

    hits = sum(np.bincount(_spread(1000, wanted), minlength=1000) for wanted in range(50, 500))
    assert hits.std() / hits.mean() < 0.15
    assert np.array_equal(_spread(7, 9), np.arange(7))


@given(count=st.integers(1, 3000), key=st.text(max_size=5))
def test_shuffled_is_a_permutation(count: int, key: str) -> None:
    order = shuffled(np.arange(count), count, key)
    assert np.array_equal(np.sort(order), np.arange(count))
    some = np.arange(0, count, 7)
    assert np.array_equal(shuffled(some, count, key), order[some])


def test_shuffled_looks_random() -> None:
    count = 20000
    for key in "abc":
        order = shuffled(np.arange(count), count, key)
        assert abs(np.corrcoef(order, np.arange(count))[0, 1]) < 0.03
        assert abs(np.corrcoef(order[1:], order[:-1])[0, 1]) < 0.03
        assert abs(np.abs(np.diff(order)).mean() / count - 1 / 3) < 0.01


def test_the_order_never_changes() -> None:
    """Runs are resumed by other versions than those that began them."""
    assert shuffled(np.arange(8), 1000, "0 windows 0").tolist() == [713, 566, 871, 944, 698, 567, 570, 614]


# -- rows of prompt and completion -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    longer = [("a prompt of some words " * 5 + "\n", "yes"), ("short\n", "a completion of many words " * 7)]
    return rows_dataset(tmp_path_factory.mktemp("rows"), [*PAIRS, *longer * 2])


@one_in(5)
@given(length=st.integers(24, 400), seed=st.integers(0, 3))
def test_rows_are_whole_or_cut_from_the_left(rows: Dataset, length: int, seed: int) -> None:
    """Every byte of a completion counts once in an epoch, in a sequence with what fits of the prompt before it."""
    windows = Batches(rows, sequence_length=length, rows=1, seed=seed).windows_per_epoch
    epoch = Batches(rows, sequence_length=length, rows=windows, seed=seed).batch(0)
    seen: Counter[tuple[int, int]] = Counter()
    assert epoch.weights is not None
    for low, high, document, offset in zip(
        *map(np.ndarray.tolist, (epoch.cu_seqlens[:-1], epoch.cu_seqlens[1:], epoch.documents, epoch.offsets)),
        strict=True,
    ):
        start, _, _, minus, *_ = rows.table[document].tolist()
        targets = epoch.targets[low:high].tobytes()
        assert targets == rows.shards.read(start + offset, start + offset + high - low)
        assert epoch.inputs[low:high].tobytes() == bytes([BOS]) + targets[:-1]
        counts = np.arange(offset, offset + high - low) >= -minus
        assert np.array_equal(epoch.weights[low:high], counts)
        assert counts.any()
        assert high - low == length or (offset == 0 and high - low < length)
        seen.update((document, at) for at in (np.flatnonzero(counts) + offset).tolist())
    train = rows.ranges("train")[:]
    assert set(seen.values()) == {1}
    assert len(seen) == epoch.counted == (train[:, 2] + rows.table[train[:, 0], 3]).sum()


def test_a_window_holds_the_rows_that_end_in_it(rows: Dataset) -> None:
    batches = Batches(rows, sequence_length=100, rows=4, seed=1)
    together = batches.batch(3)
    parts = [batches.batch(3, (at, at + 1)) for at in range(4)]
    assert np.array_equal(together.targets, np.concatenate([part.targets for part in parts]))
    assert all(0 < len(part.targets) < 200 for part in parts)


def test_windows_of_rows_count_completions(rows: Dataset) -> None:
    whole = Windows(rows, "val", 64)
    documents = rows.table[rows.ranges("val")[:, 0]]
    assert whole.bytes == whole.of == (documents[:, 1] + documents[:, 3]).sum()
    marks = np.frombuffer(whole.counted(), bool)
    weights = np.concatenate([batch.weights for batch in whole.batches(100) if batch.weights is not None])
    assert np.array_equal(marks, weights > 0)
    assert marks.sum() == whole.bytes
    some = Windows(rows, "val", 64, 60)
    assert 0 < some.bytes < whole.bytes
    assert some.of == whole.of


def test_what_counts_is_the_same_by_place_in_the_shards(rows: Dataset) -> None:
    end = rows.about["bytes"]
    marks = rows.counting(0, end)
    assert marks.count(1) == int((rows.table[:, 1] + rows.table[:, 3]).sum())
    for start in (0, 1, 17, end - 5):
        assert rows.counting(start, min(start + 40, end)) == marks[start : start + 40]
    document = np.arange(len(rows.table))
    weights = rows.weights(np.frombuffer(stored(rows), np.uint8), document, 0 * document, rows.table[:, 1])
    assert weights is not None
    assert weights.astype(np.uint8).tobytes() == marks


def test_weights_of_letters_and_of_prompts_are_multiplied(tmp_path: Path) -> None:
    pairs = [("ACGTac" * 20 + f"{'ACGT' * n}", "ACgtAC") for n in range(30)]
    file = rows_file(tmp_path / "rows.jsonl", pairs)
    prepare([file], modality.get("dna"), tmp_path / "out", val=0.1, measure=False)
    dataset = Dataset.open(tmp_path / "out")
    batch = Batches(dataset, sequence_length=300, rows=1).batch(0)
    assert batch.weights is not None
    assert batch.weights[:120].max() == 0
    end = int(batch.cu_seqlens[1])
    assert batch.weights[end - 7 : end].tolist() == pytest.approx([1, 1, 0.1, 0.1, 1, 1, 1])
