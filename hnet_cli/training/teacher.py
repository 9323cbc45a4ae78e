"""What a retrofitted H-Net learns from: the tokenizer and the embedding table of the Transformer it was made of.

The main network is that Transformer's stack (paper, appendix F). It does what it was trained to do if it reads the same
sequence as before: its mark for the beginning, then one embedding per token. A token is complete only where the next
one begins, so the chunk that begins at the first byte of token k stands for token k-1, and the main network's output
there is the prediction of token k. The first position of a sequence is always a boundary and stands for the mark.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from hnet_cli import storage
from hnet_cli.data.loader import Batch
from hnet_cli.data.tokens import Tokenizer
from hnet_cli.errors import DamagedError, InputError
from hnet_cli.kernels.packing import send
from hnet_cli.model import RoutingOutput
from hnet_cli.model.config import BOS
from hnet_cli.storage import shown

TOKENIZER, TABLE = "teacher-tokenizer.json", "teacher.safetensors"
FILES = (TOKENIZER, TABLE)
CUT = 16
"""Bytes at the end of a sequence whose tokens what follows might change; no loss is taken there."""


@dataclass
class Lesson:
    """What the teacher says of T packed bytes."""

    boundary: Tensor
    """(T,) bool: where a chunk should begin."""
    judged: Tensor
    """(T,) bool: where that is certain and not given anyway."""
    where: Tensor
    """(K,) int64: those positions, and"""
    embedding: Tensor
    """(K, D): the embedding of the token before each of them."""
    scale: float
    """Mean squared length of an embedding."""

    def losses(self, routing: RoutingOutput, embedding: Tensor | None) -> Tensor:
        """(3,): the binary cross-entropy of the boundary probabilities; the squared distance of what the main network
        reads from the embeddings, over `scale`, at the boundaries that both have; the share of right boundaries."""
        p, judged = routing.boundary_prob, self.judged.to(routing.boundary_prob.dtype)
        right = torch.where(self.boundary, p, 1 - p).clamp_min(1e-6)
        entropy = -(right.log() * judged).sum() / judged.sum().clamp_min(1)
        accuracy = ((routing.boundary_mask == self.boundary) * judged).sum() / judged.sum().clamp_min(1)
        distance = p.new_zeros(())
        if embedding is not None:
            both = routing.boundary_mask.index_select(0, self.where)
            chunk = routing.boundary_mask.cumsum(0).index_select(0, self.where) - 1
            read = embedding.index_select(0, chunk)
            apart = (read.to(p.dtype) - self.embedding.to(p.dtype)).square().sum(-1)
            distance = (apart * both).sum() / both.sum().clamp_min(1) / self.scale
        return torch.stack([entropy, distance, accuracy.to(p.dtype)])


class Teacher:
    """The teacher of a folder that `hnet retrofit` wrote, or of a run that began with one."""

    def __init__(self, folder: Path) -> None:
        """Raises InputError where there is none, DamagedError, EnvironmentLimit without the library `tokenizers`."""
        if not (folder / TABLE).exists():
            raise InputError(
                f"{shown(folder)} has no teacher: no {TABLE}",
                "boundary and embedding losses need train.start, a folder of `hnet retrofit`",
            )
        storage.verify_folder(folder, FILES)
        self.tokenizer = Tokenizer((folder / TOKENIZER).read_text(encoding="utf-8"), folder / TOKENIZER)
        try:
            with safe_open(folder / TABLE, "pt") as file:
                self.table: Tensor = file.get_tensor("embeddings")
        except (SafetensorError, OSError) as error:
            raise DamagedError(f"{folder / TABLE} is damaged: {error}") from error
        self.scale = float(self.table.float().square().sum(-1).mean())

    def lesson(self, batch: Batch, device: torch.device) -> Lesson:
        """Of the bytes that the model reads in a batch.

        Each sequence is read by itself, as the teacher would be given it: what comes before is not known to either.
        """
        edges = batch.cu_seqlens.tolist()
        marked = batch.inputs[batch.cu_seqlens[:-1]] == BOS
        text = batch.inputs.tobytes()
        sequences = [text[a + int(mark) : b] for (a, b), mark in zip(pairwise(edges), marked, strict=True)]
        boundary, judged = np.zeros(len(text), bool), np.ones(len(text), bool)
        before = []
        for (a, b), mark, tokens in zip(pairwise(edges), marked, self.tokenizer.encode(sequences), strict=True):
            starts = a + int(mark) + np.cumsum(self.tokenizer.lengths[tokens[:-1]])
            boundary[a] = boundary[starts] = True
            judged[a] = judged[max(a, b - CUT) : b] = False
            before += [np.array([self.tokenizer.bos]), tokens[: len(starts)]]
        ids = np.concatenate(before)
        marks, sure, where = (
            send(torch.from_numpy(each), device) for each in (boundary, judged, np.flatnonzero(boundary))
        )
        return Lesson(marks, sure, where, send(self.table[torch.from_numpy(ids)], device), self.scale)


def keep(source: Path, run: Path) -> None:
    """Keep the teacher of a folder in a run, so that the run needs that folder no longer.

    Raises InputError, DamagedError or StorageError.
    """
    if not (source / TABLE).exists():
        Teacher(source)
    storage.verify_folder(source, FILES)
    with storage.staged_folder(run / "teacher", overwrite=True, manifest={"kind": "teacher"}) as folder:
        for name in FILES:
            with storage.NewFile(folder / name) as new, open(source / name, "rb") as old:
                while block := old.read(1 << 24):
                    new.write(block)
