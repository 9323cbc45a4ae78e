"""Training for several budgets (`train.budgets`): one model for several bytes per chunk.

As in DC-DiT (arXiv 2603.06351), which drops a share of the chunks of some batches, the router is trained as ever, for
the target ratio N at the threshold of 0.5; what it learns besides is to rank. Here every sequence draws a budget b, so
that a step has all of them and about the same number of chunks. In a sequence of budget b the likeliest positions are
boundaries, as many as make chunks b times as long; smaller budgets than 1 take positions below the threshold. Where
several stages learn, each makes its chunks b^(1/stages) times as long.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from hnet_cli.config.train import TrainConfig
from hnet_cli.data.loader import Batch
from hnet_cli.model.chunking import Shares


def drawn_budgets(batch: Batch, train: TrainConfig, step: int) -> np.ndarray:
    """The budget of each sequence, (B,): a pure function of seed, step, document and offset, so that it does not depend
    on micro-batches, ranks or a pause."""
    key = np.frombuffer(hashlib.sha256(f"{train.seed} budgets {step}".encode()).digest(), "<u8")
    mixed = batch.documents.astype(np.uint64) * key[0] + batch.offsets.astype(np.uint64) * key[1] + key[2]
    mixed = (mixed ^ (mixed >> np.uint64(32))) * np.uint64(0x9E3779B97F4A7C15)
    drawn: np.ndarray = np.array(train.budgets)[(mixed >> np.uint64(40)) % np.uint64(len(train.budgets))]
    return drawn


def boundary_shares(batch: Batch, train: TrainConfig, learned: list[bool], step: int) -> list[Shares] | None:
    """For each stage, of which some are `learned`, the share of each sequence; None without budgets."""
    if not train.budgets:
        return None
    return shares_of(drawn_budgets(batch, train, step).tolist(), train.ratios(step), learned)


def shares_of(budgets: Sequence[float], ratios: Sequence[float], learned: Sequence[bool]) -> list[Shares]:
    """The same for the budgets of sequences, at target ratios N per stage."""
    factors = [budget ** (1 / sum(learned)) for budget in budgets]
    return [
        [None if factor == 1 or not own else 1 / (ratio * factor) for factor in factors]
        for ratio, own in zip(ratios, learned, strict=True)
    ]
