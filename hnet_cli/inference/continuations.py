"""Log-probabilities of continuations: what follows given bytes, and what else could follow.

On a CPU what several continuations have before them is read once: the state that it leaves goes on once for each. They
may leave a text at any of its places, as the variants of a gene do: the text is read once to its end, every branch from
where it leaves the text.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, groupby, pairwise
from typing import NamedTuple

import numpy as np
import torch

from hnet_cli.inference.scoring import Stretch, batch_bytes_of, carried_block, judge, passes
from hnet_cli.inference.windows import BOS, ids_of
from hnet_cli.model import HNetForCausalLM
from hnet_cli.model.state import GenerationState

MOST_ROWS = 128
"""Rows that one state goes on in, each with memory of its own, which bytes of a pass do not bound."""
NEAR = 32
"""Bytes that a branch may read of the text itself, so that branches close to each other leave it together."""


def goes_on(model: HNetForCausalLM) -> bool:
    """True where one state goes on several times, rather than be computed again: for a model of bytes on a CPU.
    Elsewhere more calls cost more than the reading; and tokens depend on what follows."""
    return model.tokenizer is None and model.embeddings.weight.device.type == "cpu"


def loglikelihoods(model: HNetForCausalLM, pairs: Sequence[tuple[bytes, bytes]]) -> tuple[np.ndarray, np.ndarray]:
    """ln P(continuation | before) of every pair, (n,) float64, and whether greedy decoding yields it, (n,) bool.

    `before` begins with BOS at the beginning of a document and is never empty. An empty continuation has ln P = 0.
    Longer ones than a pass are read in blocks, as in `scoring.score`. What successive pairs have before them in common
    is read once where the model `goes_on`. Raises NumericalError.
    """
    sharing = goes_on(model)
    alone: list[_Owned] = []
    together: list[list[_Owned]] = []
    for before, group in groupby(enumerate(pairs), lambda item: item[1][0]):
        owners: dict[bytes, list[int]] = {}
        for owner, (_, continuation) in group:
            owners.setdefault(continuation, []).append(owner)
        owners.pop(b"", None)
        owned = [_Owned(before, *each) for each in owners.items()]
        if sharing and len(owned) > 1:
            together.append(owned)
        else:
            alone += owned
    logs, greedy = np.zeros(len(pairs)), np.ones(len(pairs), bool)
    for each, nats, likeliest in chain(_read_alone(model, alone), _read_together(model, together)):
        logs[each.owners] -= nats
        greedy[each.owners] &= likeliest
    return logs, greedy


class _Owned(NamedTuple):
    """The request of one or several pairs."""

    before: bytes
    continuation: bytes
    owners: list[int]
    """Indices of the pairs."""


_Sums = tuple[_Owned, float, bool]
"""Nats of a continuation or a block of it, and whether greedy decoding yields it."""


def _read_alone(model: HNetForCausalLM, wanted: Sequence[_Owned]) -> Iterator[_Sums]:
    """Each with its own `before`."""
    block = carried_block(model)

    def items() -> Iterator[Stretch]:
        for number, (before, continuation, _) in enumerate(wanted):
            whole, skip = before + continuation, len(before) - 1
            if block is None or len(whole) <= block:
                yield Stretch(whole[:-1], whole[1:], skip, number, before[:1] == BOS)
                continue
            for at in range(0, len(whole) - 1, block):
                targets = whole[at + 1 : at + 1 + block]
                inner = min(max(0, skip - at), len(targets))
                yield Stretch(whole[at : at + len(targets)], targets, inner, number, at == 0, carried=True)

    for part in passes(model, items()):
        for stretch, low, high in zip(part.stretches, part.offsets[:-1], part.offsets[1:], strict=True):
            counted = slice(low + stretch.skip, high)
            yield wanted[stretch.owner], float(part.nats[counted].sum()), bool(part.likeliest[counted].all())


def _read_together(model: HNetForCausalLM, groups: Sequence[Sequence[_Owned]]) -> Iterator[_Sums]:
    """Groups with the same `before`: the first of a group is the text, the others leave it where it begins."""
    tracks = []
    for (before, first, _), *others in groups:
        tracks.append(Track(before + first, [Branch(len(before), each.continuation) for each in others]))
    for group, (text, branches) in zip(groups, read_tracks(model, tracks), strict=True):
        low = len(group[0].before) - 1
        for each, judged in zip(group, [Judged(text.nats[low:], text.likeliest[low:]), *branches], strict=True):
            yield each, float(judged.nats.sum()), bool(judged.likeliest.all())


class Branch(NamedTuple):
    """Bytes that are read in place of the rest of a text."""

    at: int
    """Their first byte is in place of text[at]; from 1 to the length of the text."""
    continuation: bytes
    """Not empty."""


class Track(NamedTuple):
    """A text and its branches."""

    text: bytes
    """Begins with BOS at the beginning of a document; its first byte is not predicted."""
    branches: Sequence[Branch]
    """At least one; their places ascend."""


class Judged(NamedTuple):
    """Successive bytes under the model."""

    nats: np.ndarray
    """(n,) float64: -ln P of each."""
    likeliest: np.ndarray
    """(n,) bool: no byte is more likely."""

    @classmethod
    def joined(cls, parts: Sequence[Judged]) -> Judged:
        return cls(*map(np.concatenate, zip(*parts, strict=True)))


def read_tracks(model: HNetForCausalLM, tracks: Iterable[Track]) -> Iterator[tuple[Judged, list[Judged]]]:
    """The bytes of each text but its first, and those of each of its branches. Raises NumericalError.

    Texts are read side by side, as many as fit into a pass with the longest of their branches, by a model of bytes.
    """
    batch: list[Track] = []
    size, most = 0, batch_bytes_of(model)
    for track in tracks:
        own = len(track.text) + max(len(branch.continuation) for branch in track.branches)
        if batch and (size + own > most or len(batch) == MOST_ROWS // 2):
            yield from _read_side_by_side(model, batch)
            batch, size = [], 0
        batch.append(track)
        size += own
    if batch:
        yield from _read_side_by_side(model, batch)


class _Fork(NamedTuple):
    """A place of a text from which its state goes on several times."""

    at: int
    branches: list[Branch]


def _plan(branches: Sequence[Branch], most: int, most_rows: int) -> list[_Fork]:
    """The places where branches leave their text, with about `most` bytes and at most `most_rows` of them, or one
    branch each."""
    found: list[_Fork] = []
    size = 0
    for branch in branches:
        size += len(branch.continuation)
        if not found or branch.at - found[-1].at > NEAR or size > most or len(found[-1].branches) == most_rows:
            found.append(_Fork(branch.at, []))
            size = len(branch.continuation)
        found[-1].branches.append(branch)
    return found


@torch.inference_mode()
def _read_side_by_side(model: HNetForCausalLM, tracks: Sequence[Track]) -> Iterator[tuple[Judged, list[Judged]]]:
    """One pass up to the first fork of every text, then one for each fork: it reads on in the texts to the next and, in
    rows of their own, the branches."""
    most, most_rows = batch_bytes_of(model) // len(tracks), max(1, MOST_ROWS // len(tracks) - 1)
    plans = [_plan(track.branches, most, most_rows) for track in tracks]
    heads = [track.text[: plan[0].at] for track, plan in zip(tracks, plans, strict=True)]
    state = model.allocate_state(len(tracks), sys.maxsize)
    logits = model.lm_head.weight.new_zeros(len(tracks), model.config.vocab_size)
    judged, logits = _read_on(model, state, logits, heads, heads)
    texts = [[Judged(each.nats[1:], each.likeliest[1:])] for each in judged]  # nothing predicts the first byte
    branches: list[list[Judged]] = [[] for _ in tracks]
    live = list(range(len(tracks)))
    for turn in range(max(map(len, plans))):
        rows: list[int] = []  # those of the texts; those of their branches follow them
        places: list[int] = []
        read: list[bytes] = []
        targets: list[bytes] = []
        for place, index in enumerate(live):
            text, fork, *following = tracks[index].text, *plans[index][turn : turn + 2]
            end = following[0].at if following else len(text)
            instead = [text[fork.at : at] + continuation for at, continuation in fork.branches]
            rows.append(len(places))
            places += [place] * (1 + len(instead))
            read += [text[fork.at : end if following else -1], *(each[:-1] for each in instead)]
            targets += [text[fork.at : end], *instead]
        state.select(places)
        judged, logits = _read_on(model, state, logits[places], read, targets)
        for index, row in zip(live, rows, strict=True):
            fork = plans[index][turn]
            texts[index].append(judged[row])
            for branch, (nats, likeliest) in zip(fork.branches, judged[row + 1 :], strict=False):
                low = branch.at - fork.at
                branches[index].append(Judged(nats[low:], likeliest[low:]))
        kept = [row for index, row in zip(live, rows, strict=True) if turn + 1 < len(plans[index])]
        live = [index for index in live if turn + 1 < len(plans[index])]
        if live:
            state.select(kept)
            logits = logits[kept]
    for parts, found in zip(texts, branches, strict=True):
        yield Judged.joined(parts), found


def _read_on(
    model: HNetForCausalLM,
    state: GenerationState,
    logits: torch.Tensor,
    read: Sequence[bytes],
    targets: Sequence[bytes],
) -> tuple[list[Judged], torch.Tensor]:
    """Read on in every row of `state`, in blocks: the targets, and the logits (R, V) of the byte after what is read.

    `logits`, (R, V): of the next byte. `targets` of each row: what it reads, or that and one byte more.
    """
    device, block = logits.device, batch_bytes_of(model)
    parts = [[Judged(np.empty(0), np.empty(0, bool))] for _ in read]

    def note(rows: Iterable[int], table: torch.Tensor, found: Sequence[bytes]) -> None:
        nats, likeliest = judge(table.float(), ids_of(b"".join(found), device))
        ends = np.cumsum(list(map(len, found)))[:-1]
        for row, *judged in zip(rows, np.split(nats, ends), np.split(likeliest, ends), strict=True):
            parts[row].append(Judged(*judged))

    for low in range(0, max(map(len, read)), block):
        now = [each[low : low + block] for each in read]
        found = [each[low : low + len(part)] for each, part in zip(targets, now, strict=True)]
        table = torch.cat([logits, model.extend(now, state).logits])
        ends = np.cumsum([len(logits), *map(len, now)])
        predicting = [[row, *range(start, end)] for row, (start, end) in enumerate(pairwise(ends))]
        note(range(len(now)), table[[place for each in predicting for place in each[:-1]]], found)
        logits = table[[each[-1] for each in predicting]]
    last = [row for row, (each, target) in enumerate(zip(read, targets, strict=True)) if len(target) > len(each)]
    if last:
        note(last, logits[last], [targets[row][-1:] for row in last])
    return [Judged.joined(each) for each in parts], logits
