"""Bits per byte of a model and of what needs no model, on the same bytes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import zstandard

from hnet_cli.data.baselines import order_k, xz_bits
from hnet_cli.evaluation.resampling import draws, ratio, with_interval
from hnet_cli.evaluation.scoring import COLUMNS, Scores
from hnet_cli.model import HNetConfig

ORDERS = range(1, 7)
"""Of the adaptive models that are tried, the best is reported."""
ADAPTIVE_LIMIT = 4 << 20
"""Bytes that these and the order-k model of the training split are asked about, at most: the first."""


def figures(scores: Scores) -> dict[str, Any]:
    """bpb over all bytes, bpb_per_document (the mean over documents), nats_per_byte, perplexity, each with _ci95."""
    units = scores.units(scores.nats / math.log(2), scores.bytes)
    bits = scores.per_document(np.stack([scores.nats / math.log(2), scores.bytes], 1))
    each = np.stack([bits[:, 0] / bits[:, 1], np.ones(len(bits))], 1)
    nats = scores.units(scores.nats, scores.bytes)
    return {
        **with_interval("bpb", units),
        "bytes": int(scores.bytes.sum()),
        "documents": scores.documents,
        **with_interval("bpb_per_document", each),
        **with_interval("nats_per_byte", nats),
        **with_interval("perplexity", nats, lambda sums: np.exp(ratio(sums))),
    }


def difference(first: Scores, second: Scores) -> dict[str, Any]:
    """bpb of the second minus that of the first on the same bytes, paired by document or window; `relative`, the same
    over that of the first; `share_of_draws_second_better`."""
    if not np.array_equal(first.bytes, second.bytes):  # a model of tokens has no blocks of a document
        first, second = first.by_document(), second.by_document()
    units = first.units((second.nats - first.nats) / math.log(2), first.bytes)
    drawn = draws(units, ratio)
    share = None if drawn is None else float((drawn < 0).mean())
    relative = first.units(second.nats - first.nats, first.nats)
    return {
        **with_interval("bpb", units),
        **with_interval("relative", relative),
        "share_of_draws_second_better": share,
        "unit": first.unit,
    }


def stages(scores: Scores, config: HNetConfig) -> list[dict[str, Any]]:
    """Per stage: bytes_per_chunk against `target`, boundary_fraction (of the level's positions) and mean_boundary_prob;
    `enrichment`: mean surprisal of the byte after a boundary (predicted once the chunk's first byte is read) over the
    mean of all, as in SOMBRERO; `enrichment_first`: the same of the byte that begins the chunk."""
    result = []
    columns = {name: scores.stages[:, :, index] for index, name in enumerate(COLUMNS)}
    for stage in range(config.num_stages):
        own = {name: values[:, stage] for name, values in columns.items()}
        outer = columns["positions"][:, 0]  # as `bytes`, without the forced boundaries

        def enriched(sums: np.ndarray) -> np.ndarray:
            return ratio(sums[..., :2]) / ratio(sums[..., 2:])

        ratios = config.target_ratios
        result.append(
            {
                **with_interval("bytes_per_chunk", scores.units(outer, own["boundaries"])),
                "target": math.prod(ratios[: stage + 1]) if ratios else None,
                **with_interval("boundary_fraction", scores.units(own["boundaries"], own["positions"])),
                **with_interval("mean_boundary_prob", scores.units(own["probability"], own["positions"])),
                **with_interval(
                    "enrichment",
                    scores.units(own["nats_after"], own["boundaries"], scores.nats, scores.bytes),
                    enriched,
                ),
                **with_interval(
                    "enrichment_first",
                    scores.units(own["nats_first"], own["firsts"], scores.nats, scores.bytes),
                    enriched,
                ),
            }
        )
    return result


def baselines(documents: Sequence[bytes], train: bytes | None = None) -> dict[str, Any]:
    """Bits per byte of the documents without a neural network.

    `xz` (-9e) and `zstd` (-19) read all documents as one stream; `xz_each_document` and `zstd_each_document` each by
    itself. `order_k_adaptive` is an order-k byte model that learns while it reads, the best k of `ORDERS` in hindsight.
    `order_k` is one counted on `train` (only there: k chosen on a part of it held aside) and then fixed.
    """
    joined = b"".join(documents)
    sizes = np.array([len(document) for document in documents])
    long_window = zstandard.ZstdCompressor(
        compression_params=zstandard.ZstdCompressionParameters.from_level(
            19, window_log=min(27, max(10, len(joined).bit_length())), enable_ldm=True
        )
    )
    short = zstandard.ZstdCompressor(level=19, write_content_size=False)
    result: dict[str, Any] = {
        "xz": xz_bits(joined) / len(joined),
        "zstd": 8 * len(long_window.compress(joined)) / len(joined),
    }
    for name, bits_of in (
        ("xz_each_document", xz_bits),
        ("zstd_each_document", lambda data: 8 * len(short.compress(data))),
    ):
        bits = np.array([bits_of(document) for document in documents])
        result |= with_interval(name, np.stack([bits, sizes], 1))
    asked = joined[:ADAPTIVE_LIMIT]
    tried = {k: adaptive(asked, k) for k in ORDERS}
    best = min(tried, key=lambda k: tried[k])
    result |= {"order_k_adaptive": tried[best], "k_adaptive": best}
    if train:
        k, bits_per_byte = order_k(train, asked)
        result |= {"order_k": bits_per_byte, "k": k, "order_k_train_bytes": len(train)}
    return result | {"order_k_bytes": len(asked)}


def adaptive(data: bytes, order: int) -> float:
    """Bits per byte of a model that has seen, at each byte, just the bytes before it: interpolated Witten-Bell as in
    `data.baselines.order_k`, from the uniform distribution up to `order`."""
    codes = np.frombuffer(data, np.uint8).astype(np.uint64)
    probability = np.full(len(codes), 1 / 256)
    for k in range(order + 1):
        if len(codes) <= k:
            break
        gram = np.zeros(len(codes) - k, np.uint64)
        for back in range(k, -1, -1):
            gram = (gram << np.uint64(8)) | codes[k - back : len(codes) - back]
        seen, times, kinds = _before(gram)
        mixed = (times + kinds * probability[k:]) / np.maximum(seen + kinds, 1)
        probability[k:] = np.where(seen > 0, mixed, probability[k:])
    return float(-np.log2(probability).mean())


def _before(gram: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For every position, counted over the positions before it: how often its context occurred, how often its n-gram
    did, and how many different bytes followed the context. (n,) int64 each. The last byte is lowest in `gram`."""
    order = np.argsort(gram, kind="stable")
    times = _rank(gram[order])
    counts = np.empty(len(gram), np.int64)
    counts[order] = times
    context = gram >> np.uint64(8)
    order = np.argsort(context, kind="stable")
    ranked = context[order]
    seen = np.empty(len(gram), np.int64)
    seen[order] = _rank(ranked)
    new = (counts[order] == 0).astype(np.int64)  # the first time this byte follows this context
    running = np.cumsum(new) - new
    first = np.flatnonzero(np.r_[True, ranked[1:] != ranked[:-1]])
    base = np.repeat(running[first], np.diff(np.r_[first, len(ranked)]))
    kinds = np.empty(len(gram), np.int64)
    kinds[order] = running - base
    return seen, counts, kinds


def _rank(ordered: np.ndarray) -> np.ndarray:
    """How many equal values stand before each in a sorted array."""
    first = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
    lengths = np.diff(np.r_[first, len(ordered)])
    return np.arange(len(ordered)) - np.repeat(first, lengths)
