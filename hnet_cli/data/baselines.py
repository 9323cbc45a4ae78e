"""Baselines for a model: bits per byte of xz and zstd on the held-out bytes, and of an order-k model of the rest.

A figure stands beside a model's only where both are of the same bytes: `beside` measures on a sample of a split. Of
rows of prompt and completion only the completions count: a compressor has no figure of these, the order-k model has.
"""

from __future__ import annotations

import contextlib
import lzma
import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from hnet_cli import modality, storage
from hnet_cli.data.dataset import Dataset
from hnet_cli.data.figures import named
from hnet_cli.data.loader import Windows
from hnet_cli.errors import BusyError, HNetError, StorageError

VAL_LIMIT = 2 << 20
TRAIN_LIMIT = 8 << 20
"""Most bytes of each split that are measured on and trained on."""
_STRETCHES = 64
_BUCKET = 1 << 20
"""N-grams counted at once, to bound memory."""
METHOD = 2
"""Version of the figures; those of another are measured anew rather than shown beside."""
CACHE = ".baselines.json"
"""Beside the dataset: figures of its samples."""
_MOST_KEPT = 32


def sample(
    read: Callable[[int, int], bytes], ranges: Iterable[tuple[np.ndarray, np.ndarray]], total: int, limit: int
) -> bytes:
    """At most `limit` bytes, read by `read(start, end)`, of ascending ranges: all, or evenly spread stretches.

    The ranges come in parts, int64 arrays (starts, ends); `total`: bytes in all of them.
    """
    wanted = (
        [(0, total)] if total <= limit else [(i * total // _STRETCHES, limit // _STRETCHES) for i in range(_STRETCHES)]
    )
    parts, passed = [], 0
    for starts, ends in ranges:
        joins = np.flatnonzero(starts[1:] != ends[:-1])
        starts, ends = starts[np.r_[0, joins + 1]], ends[np.r_[joins, len(ends) - 1]]
        reached = passed + np.cumsum(ends - starts)
        passed = int(reached[-1])
        later = []
        for position, count in wanted:
            run = int(np.searchsorted(reached, position, side="right"))
            while count > 0 and run < len(starts):
                at = int(ends[run] - (reached[run] - position))
                take = min(count, int(ends[run]) - at)
                parts.append(read(at, at + take))
                position, count, run = position + take, count - take, run + 1
            if count > 0:
                later.append((position, count))
        wanted = later
        if not wanted:
            break
    return b"".join(parts)


def baselines(
    train: bytes, val: bytes, letters: bytes = b"", counted: tuple[bytes, ...] | None = None
) -> dict[str, Any]:
    """Bits per byte on `val`: {"xz", "zstd", "order_k", "k", "bytes", "method"}, and "uniform" over `letters`.

    Both are cut to the limits above. xz and zstd see `val` alone; the order-k model is counted on `train`, k chosen on
    a part of it held aside. `letters`: the alphabet, where there is one; not used if `val` has other bytes. `counted`:
    `dataset.counting` of both, for rows of prompt and completion, which have the order-k model's figure only; nothing
    where no byte counts.
    """
    train, val = train[:TRAIN_LIMIT], val[:VAL_LIMIT]
    if counted and not any(counted[1][:VAL_LIMIT]):
        return {}
    letters = b"" if val.translate(None, letters) else letters
    k, bits = order_k(train, val, len(letters) or 256, counted)
    if counted:
        return {"order_k": round(bits, 4), "k": k, "bytes": sum(counted[1][:VAL_LIMIT]), "method": METHOD}
    found: dict[str, Any] = {
        "xz": round(xz_bits(val) / len(val), 4),
        "zstd": round(zstd_bits(val) / len(val), 4),
        "order_k": round(bits, 4),
        "k": k,
        "bytes": len(val),
        "method": METHOD,
    }
    return found | ({"uniform": round(math.log2(len(letters)), 4)} if letters else {})


def beside(windows: Windows, limit: int = TRAIN_LIMIT) -> dict[str, Any]:
    """`baselines` on exactly the bytes of some windows; nothing for a dataset without, or more than `VAL_LIMIT` bytes.

    `limit`: most bytes of the training split that the order-k model is counted on.
    Taken from the dataset where they are of the whole split, else measured once (seconds) and kept beside it, if that
    can be written to.
    """
    dataset, known = windows.dataset, windows.dataset.about.get("baselines")
    if not isinstance(known, dict) or not known or not 0 < windows.bytes <= VAL_LIMIT:
        return {}
    if windows.split == "val" and windows.bytes == windows.of == known.get("bytes") and known.get("method") == METHOD:
        return dict(known)
    file, kept = dataset.path / CACHE, dict[str, Any]()
    with contextlib.suppress(OSError, HNetError):
        kept = storage.read_json(file)
    key = f"{windows.key} {METHOD} {limit}"
    found = kept.pop(key, None)
    if not isinstance(found, dict) or found.get("bytes") != windows.bytes or len(named(found)) < 2 - dataset.prompted:
        counted = (train_sample(dataset, limit, dataset.counting), windows.counted()) if dataset.prompted else None
        found = baselines(train_sample(dataset, limit), windows.read(), _letters(dataset.modality), counted)
        kept = dict(list(kept.items())[1 - _MOST_KEPT :]) | {key: found}
        with contextlib.suppress(BusyError, StorageError):
            storage.write_json(file, kept)
    return found


def _letters(name: str) -> bytes:
    with contextlib.suppress(HNetError):  # the plugin is not installed
        return modality.get(name).letters()
    return b""


def train_sample(dataset: Dataset, limit: int = TRAIN_LIMIT, read: Callable[[int, int], bytes] | None = None) -> bytes:
    """At most `limit` bytes spread over the training split, as the model reads them; empty without one. `read`: what
    takes the place of a stretch of the shards."""
    if "train" not in dataset.splits or not dataset.nbytes("train"):
        return b""
    ranges = dataset.ranges("train")[:]
    starts = dataset.table[ranges[:, 0], 0] + ranges[:, 1]
    parts = [(starts, starts + ranges[:, 2])]
    if read is not None:
        return sample(read, parts, dataset.nbytes("train"), limit)
    stored = sample(dataset.shards.read, parts, dataset.nbytes("train"), limit)
    return dataset.translate(np.frombuffer(stored, np.uint8)).tobytes()


def zstd_bits(data: bytes) -> int:
    """Bits of `data` compressed as by `zstd -19 --long`, without the size of the content in the header."""
    import zstandard

    window = min(27, max(10, len(data).bit_length()))
    parameters = zstandard.ZstdCompressionParameters.from_level(
        19, window_log=window, enable_ldm=True, write_content_size=False
    )
    return 8 * len(zstandard.ZstdCompressor(compression_params=parameters).compress(data))


def xz_bits(data: bytes) -> int:
    """Bits of `data` compressed as by `xz -9e`, without the container: its LZMA2 stream alone.

    The container's header, index and checksum (about 60 bytes) say nothing about the data. Counted, they would make xz
    easier to beat the shorter the data is: 4.160 instead of 4.003 bits per byte of 3,000 bytes of text, and far more
    on single documents. Older datasets recorded the size with the container.
    """
    # Preset 9 has a dictionary of 64 MiB, which takes 700 MB; one as long as the data compresses just as well.
    dictionary = min(1 << 26, max(4096, 1 << len(data).bit_length()))
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "dict_size": dictionary}]
    return 8 * len(lzma.compress(data, format=lzma.FORMAT_RAW, filters=filters))


def order_k(
    train: bytes, val: bytes, letters: int = 256, counting: tuple[bytes, ...] | None = None
) -> tuple[int, float]:
    """The best order k and the bits per byte of `val` under the model of that order counted on `train`. `counting`: a 1
    for each byte of both that a figure is of; all bytes are context.

    Interpolated Witten-Bell: P_j(x | c) = (n(cx) + t(c) P_{j-1}(x)) / (n(c) + t(c)) with t(c) the number of different
    bytes seen after c, down to the uniform distribution over `letters` bytes. Written by hand: libraries of n-gram
    models count words and hold all counts in memory. Each order's n-grams are integers, sorted, in buckets of bounded
    size.
    """
    held_aside = min(len(train) // 16, 1 << 19)
    counted = np.frombuffer(train, np.uint8, len(train) - held_aside)
    asked = np.frombuffer(train[len(train) - held_aside :] + val, np.uint8)
    marks = np.ones(len(asked), bool)
    if counting is not None:
        marks = np.frombuffer(counting[0][len(counting[0]) - held_aside :] + counting[1], bool)
    is_val = np.arange(len(asked)) >= held_aside
    dense = np.zeros(256, np.uint64)
    alphabet = np.unique(np.concatenate([np.unique(counted), np.unique(asked)]))
    dense[alphabet] = np.arange(len(alphabet), dtype=np.uint64)
    width = max(1, (len(alphabet) - 1).bit_length())
    probability = np.full(len(asked), 1 / letters)
    best: tuple[float, int, float] | None = None
    for order in range(min(6 if width > 3 else 24 // width, 62 // width - 1) + 1):
        _refine(probability, counted, asked, dense, order, width)
        bits = -np.log2(probability)
        chosen_by = bits[marks & ~is_val]
        aside = float(chosen_by.mean()) if len(chosen_by) else float(order)
        if best is None or aside < best[0]:
            best = aside, order, float(bits[marks & is_val].mean())
        elif aside > best[0] * 1.02:
            break
    assert best is not None
    return best[1], best[2]


def _refine(
    probability: np.ndarray, counted: np.ndarray, asked: np.ndarray, dense: np.ndarray, order: int, width: int
) -> None:
    """Turn the probabilities of order - 1 into those of `order`, in place. The first `order` bytes keep theirs."""
    if len(counted) <= order or len(asked) <= order:
        return
    bits = np.uint64(width)
    buckets = -(-len(counted) // _BUCKET) if order else 1
    known_parts = _bucketed(counted, dense, order, width, buckets, count=True)
    asked_parts = _bucketed(asked, dense, order, width, buckets, count=False)
    while known_parts:
        known, numbers = map(np.concatenate, zip(*known_parts.pop(), strict=True))
        wanted, where = map(np.concatenate, zip(*asked_parts.pop(), strict=True))
        if not len(known) or not len(wanted):
            continue
        by_value = np.argsort(known)
        known, numbers = known[by_value], numbers[by_value]
        by_value = np.argsort(wanted)
        where, wanted = where[by_value], wanted[by_value]
        # Only different questions are looked up; the answers are differences of sums over the sorted n-grams.
        new = np.r_[True, wanted[1:] != wanted[:-1]]
        answer = np.cumsum(new) - 1
        wanted = wanted[new]
        context = wanted >> bits
        left, right = (np.searchsorted(known, wanted, side=side) for side in ("left", "right"))
        low = np.searchsorted(known, context << bits, side="left")
        high = np.searchsorted(known, (context + np.uint64(1)) << bits, side="left")
        numbers_before = np.r_[0, np.cumsum(numbers)]
        kinds_before = np.r_[0, 1, 1 + np.cumsum(known[1:] != known[:-1])]
        kinds = (kinds_before[high] - kinds_before[low])[answer]
        seen = (numbers_before[high] - numbers_before[low])[answer]
        count = (numbers_before[right] - numbers_before[left])[answer]
        mixed = (count + kinds * probability[where]) / np.maximum(seen + kinds, 1)
        probability[where] = np.where(seen > 0, mixed, probability[where])


def _bucketed(
    data: np.ndarray, dense: np.ndarray, order: int, width: int, buckets: int, *, count: bool
) -> list[list[tuple[np.ndarray, np.ndarray]]]:
    """The (order + 1)-grams of `data` as integers (uint64), last byte lowest, with counts or end positions (int32).

    In buckets by a hash of the context: all n-grams of one context are in one bucket.
    """
    parts: list[list[tuple[np.ndarray, np.ndarray]]] = [[] for _ in range(buckets)]
    for begin in range(order, len(data), _BUCKET):
        end = min(begin + _BUCKET, len(data))
        codes = np.zeros(end - begin, np.uint64)
        for back in range(order, -1, -1):
            codes <<= np.uint64(width)
            codes |= dense[data[begin - back : end - back]]
        homes = ((codes >> np.uint64(width)) * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(40)
        homes = (homes % np.uint64(buckets)).astype(np.uint8)
        for bucket in range(buckets):
            inside = np.flatnonzero(homes == bucket)
            grams, numbers = np.unique(codes[inside], return_counts=True) if count else (codes[inside], begin + inside)
            parts[bucket].append((grams, numbers.astype(np.int32)))
    return parts
