"""Bits per byte of a model, and of baselines without a neural network on the same bytes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import zstandard

from hnet_cli.data.baselines import order_k, xz_bits, zstd_bits
from hnet_cli.evaluation.resampling import draws, mean_with_interval, ratio, with_interval
from hnet_cli.inference.scoring import COLUMNS, Scores
from hnet_cli.model import HNetConfig, HNetForCausalLM
from hnet_cli.model.withholding import observed, withheld

ORDERS = range(1, 7)
"""Orders of the adaptive model that are tried; the best is reported."""
ORDER_K_LIMIT = 4 << 20
"""Most bytes that the order-k models read. They are left out where there are more: a figure of other bytes than the
model's says nothing beside it."""


def figures(scores: Scores) -> dict[str, Any]:
    """bpb over all bytes, bpb_per_document (the mean over documents), nats_per_byte, perplexity, each with _ci95."""
    nats = scores.units(scores.nats, scores.bytes)
    return {
        **with_interval("bpb", scores.units(scores.bits, scores.bytes)),
        "bytes": int(scores.bytes.sum()),
        "documents": scores.documents,
        **mean_with_interval("bpb_per_document", scores.per_document(scores.bits) / scores.per_document(scores.bytes)),
        **with_interval("nats_per_byte", nats),
        **with_interval("perplexity", nats, lambda sums: np.exp(ratio(sums))),
    }


def difference(first: Scores, second: Scores) -> dict[str, Any]:
    """bpb of the second minus that of the first on the same bytes, paired by document or window; `relative`, the same
    over that of the first; `share_of_draws_second_better`. Raises ValueError for scores of different bytes."""
    if not np.array_equal(first.bytes, second.bytes):  # a model of tokens has no blocks of a document
        first, second = first.by_document(), second.by_document()
        if not np.array_equal(first.bytes, second.bytes):
            raise ValueError("the scores are of different bytes")
    units = first.units((second.nats - first.nats) / math.log(2), first.bytes)
    drawn = draws(units, ratio)
    return {
        **with_interval("bpb", units),
        **with_interval("relative", first.units(second.nats - first.nats, first.nats)),
        "share_of_draws_second_better": None if drawn is None else float((drawn < 0).mean()),
        "unit": first.unit,
    }


def stages(scores: Scores, config: HNetConfig) -> list[dict[str, Any]]:
    """Per stage: bytes_per_chunk against `target`, boundary_fraction (of the level's positions), mean_boundary_prob.

    `enrichment`: mean surprisal of the byte after a boundary (predicted once the chunk's first byte is read) over the
    mean of all, as in SOMBRERO; `enrichment_first`: the same of the byte that begins the chunk. None where no chunk
    begins in what counts, as in a few short completions.
    """

    def per(sums: np.ndarray) -> np.ndarray:
        return np.where(sums[..., 1] > 0, ratio(sums[..., :2]), np.nan)

    def relative(sums: np.ndarray) -> np.ndarray:
        return per(sums[..., :2]) / ratio(sums[..., 2:])

    ratios, all_bytes = config.target_ratios, (scores.nats, scores.bytes)
    result = []
    for stage in range(config.num_stages):
        column = dict(zip(COLUMNS, scores.stages[:, stage].T, strict=True))
        read = scores.stages[:, 0, 0]  # bytes without the forced boundaries
        result.append(
            {
                "target": math.prod(ratios[: stage + 1]) if ratios else None,
                **with_interval("bytes_per_chunk", scores.units(read, column["boundaries"]), per),
                **with_interval("boundary_fraction", scores.units(column["boundaries"], column["positions"])),
                **with_interval("mean_boundary_prob", scores.units(column["probability"], column["positions"])),
                **with_interval(
                    "enrichment", scores.units(column["nats_after"], column["boundaries"], *all_bytes), relative
                ),
                **with_interval(
                    "enrichment_first", scores.units(column["nats_first"], column["firsts"], *all_bytes), relative
                ),
            }
        )
    return [{key: None if value != value else value for key, value in stage.items()} for stage in result]


def worth(model: HNetForCausalLM, score: Callable[[], Scores]) -> list[dict[str, Any]]:
    """Per stage: `worth`, the bits per byte by which scoring the same bytes gets worse where every position is handed
    the mean of what the stage's chunks hand out, instead of that of its own chunk; paired by document or window.

    `score` scores the same bytes in each call, of which there is one more than stages.
    """
    with observed(model) as sums:
        whole = score()
    found = []
    for stage, handed in enumerate(sums):
        with withheld(model, stage, handed):
            bits = score().bits - whole.bits
        found.append(with_interval("worth", whole.units(bits, whole.bytes)))
    return found


def baselines(
    documents: Sequence[bytes],
    train: bytes | None = None,
    letters: bytes = b"",
    counting: tuple[bytes, bytes] | None = None,
) -> dict[str, Any]:
    """Bits per byte of the documents without a neural network.

    `xz` (-9e) and `zstd` (-19) read all documents as one stream; `xz_each_document` and `zstd_each_document` each by
    itself. `order_k_adaptive` is an order-k byte model that learns while it reads, the best k of `ORDERS` in hindsight.
    `order_k` is one counted on `train` (only there: k chosen on a part of it held aside) and then fixed. `uniform` is
    log2 of the number of `letters`, where the documents are of an alphabet. All are of all bytes of the documents;
    or, with `counting` (`dataset.counting` of `train` and of the documents), the order-k models' of what counts: a
    compressor has no figure of a part.
    """
    joined = b"".join(documents)
    letters = b"" if joined.translate(None, letters) else letters
    result = _compressed(documents, letters) if counting is None else {}
    if len(joined) > ORDER_K_LIMIT:
        return result
    counts = np.frombuffer(counting[1], bool) if counting else np.ones(len(joined), bool)
    tried = {k: adaptive_order_k(joined, k, len(letters) or 256, counts) for k in ORDERS}
    best = min(tried, key=lambda k: tried[k])
    result |= {"order_k_adaptive": tried[best], "k_adaptive": best, "order_k_bytes": int(counts.sum())}
    if train:
        k, bits_per_byte = order_k(train, joined, len(letters) or 256, counting)
        result |= {"order_k": bits_per_byte, "k": k, "order_k_train_bytes": len(train)}
    return result


def _compressed(documents: Sequence[bytes], letters: bytes) -> dict[str, Any]:
    """The figures of compressors, and of the uniform distribution."""
    joined = b"".join(documents)
    sizes = np.array([len(document) for document in documents])
    zstd_short = zstandard.ZstdCompressor(level=19, write_content_size=False).compress
    result: dict[str, Any] = {"xz": xz_bits(joined) / len(joined), "zstd": zstd_bits(joined) / len(joined)}
    for name, bits_of in (
        ("xz_each_document", xz_bits),
        ("zstd_each_document", lambda data: 8 * len(zstd_short(data))),
    ):
        bits = np.array([bits_of(document) for document in documents])
        result |= with_interval(name, np.stack([bits, sizes], 1))
    return result | ({"uniform": math.log2(len(letters))} if letters else {})


def adaptive_order_k(data: bytes, order: int, letters: int = 256, counts: np.ndarray | None = None) -> float:
    """Bits per byte of a model that has seen, at each byte, only the bytes before it: interpolated Witten-Bell as in
    `baselines.order_k`, from the uniform distribution over `letters` bytes up to `order`. `counts`
    (n,) bool: the bytes whose bits are taken; None: all."""
    codes = np.frombuffer(data, np.uint8).astype(np.uint64)
    probability = np.full(len(codes), 1 / letters)
    for k in range(min(order + 1, len(codes))):
        gram = np.zeros(len(codes) - k, np.uint64)
        for back in range(k, -1, -1):
            gram = (gram << np.uint64(8)) | codes[k - back : len(codes) - back]
        context, times, kinds = _counts_before(gram)
        mixed = (times + kinds * probability[k:]) / np.maximum(context + kinds, 1)
        probability[k:] = np.where(context > 0, mixed, probability[k:])
    return float(-np.log2(probability if counts is None else probability[counts]).mean())


def _counts_before(gram: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For every position, counts over the positions before it, (n,) int64 each: occurrences of its context, of its
    n-gram, and of different bytes after the context. The last byte is lowest in `gram`."""
    order, context_rank = _ranked(gram >> np.uint64(8))
    gram_order, gram_rank = _ranked(gram)
    context, times, kinds = (np.empty(len(gram), np.int64) for _ in range(3))
    context[order], times[gram_order] = context_rank, gram_rank
    new = times[order] == 0  # first occurrence of this byte after this context
    running = np.cumsum(new) - new
    kinds[order] = running - running[np.arange(len(gram)) - context_rank]
    return context, times, kinds


def _ranked(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A stable sorting order, and for each sorted value the number of equal ones before it; (n,) int64."""
    order = np.argsort(values, kind="stable")
    ordered, at = values[order], np.arange(len(values))
    first = np.r_[True, ordered[1:] != ordered[:-1]]
    return order, at - np.maximum.accumulate(np.where(first, at, 0))
