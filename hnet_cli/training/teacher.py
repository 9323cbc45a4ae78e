"""The teacher of a retrofitted H-Net: tokenizer and embedding table of the Transformer it was made from.

The main network is that Transformer's stack (paper, appendix F). It works as trained if it reads the same sequence as
before: its BOS token, then one embedding per token. A token is complete only where the next
one begins, so the chunk that begins at the first byte of token k stands for token k-1, and the main network's output
there is the prediction of token k. The first position of a sequence is always a boundary and stands for BOS.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from hnet_cli import storage
from hnet_cli.checkpoints.safetensors_file import open_safetensors
from hnet_cli.data.loader import Batch
from hnet_cli.data.tokens import Tokenizer
from hnet_cli.errors import DamagedError, InputError
from hnet_cli.kernels.packing import send
from hnet_cli.model import RoutingOutput
from hnet_cli.model.config import BOS
from hnet_cli.storage import HeldFile, shown

TOKENIZER, TABLE = "teacher-tokenizer.json", "teacher.safetensors"
FILES = (TOKENIZER, TABLE)
CUT = 16
"""Bytes at the end of a sequence without a loss: the bytes that follow might change their tokens."""


@dataclass
class Lesson:
    """The targets for T packed bytes."""

    boundary: Tensor
    """(T,) bool: positions where a chunk should begin."""
    judged: Tensor
    """(T,) bool: positions whose boundary is certain and not forced."""
    starts: Tensor
    """(K,) int64: positions where `boundary` is true."""
    certain: Tensor
    """(K,) bool: those of `starts` that bytes to come cannot change."""
    embedding: Tensor
    """(K, D): the embedding of the token before each of `starts`."""
    scale: float
    """Mean squared length of an embedding."""

    def losses(self, routing: RoutingOutput, embedding: Tensor | None) -> Tensor:
        """(3,): binary cross-entropy of the boundary probabilities; squared distance of `embedding`, the main network's
        inputs, from the embeddings, over `scale`, at common boundaries; share of right boundaries."""
        p, judged = routing.boundary_prob, self.judged.to(routing.boundary_prob.dtype)
        right = torch.where(self.boundary, p, 1 - p).clamp_min(1e-6)
        entropy = -(right.log() * judged).sum() / judged.sum().clamp_min(1)
        accuracy = ((routing.boundary_mask == self.boundary) * judged).sum() / judged.sum().clamp_min(1)
        distance = p.new_zeros(())
        if embedding is not None:
            both = routing.boundary_mask.index_select(0, self.starts) & self.certain
            chunk = routing.boundary_mask.cumsum(0).index_select(0, self.starts) - 1
            read = embedding.index_select(0, chunk)
            apart = (read.to(p.dtype) - self.embedding.to(p.dtype)).square().sum(-1)
            distance = (apart * both).sum() / both.sum().clamp_min(1) / self.scale
        return torch.stack([entropy, distance, accuracy.to(p.dtype)])


class Teacher:
    """The teacher of a folder that `hnet retrofit` wrote, or of a run that began with one."""

    def __init__(self, folder: Path) -> None:
        """Raises InputError if there is none, DamagedError, EnvironmentLimit without the library `tokenizers`."""
        if not (folder / TABLE).exists():
            raise InputError(
                f"{shown(folder)} has no teacher: no {TABLE}",
                "boundary and embedding losses need train.start, a folder of `hnet retrofit`",
            )
        table = HeldFile(folder / TABLE)
        table.verify(storage.verify_folder(folder, (TOKENIZER,))["files"].get(TABLE, {"size": 0}))
        self.tokenizer = Tokenizer(storage.read_text(folder / TOKENIZER, storage.TOKENIZER), folder / TOKENIZER)
        embeddings = open_safetensors(table).get("embeddings")
        if embeddings is None or len(embeddings.shape) != 2 or embeddings.shape[0] < self.tokenizer.size:
            raise DamagedError(f"{shown(folder / TABLE)} is damaged: it does not hold an embedding of every token")
        self.table: Tensor = embeddings.read()
        self.scale = float(self.table.float().square().sum(-1).mean())

    def lesson(self, batch: Batch, device: torch.device) -> Lesson:
        """The targets for the bytes that the model reads in a batch.

        Each sequence is tokenized by itself, as the teacher would read it: neither knows the bytes before.
        """
        edges = batch.cu_seqlens.tolist()
        has_bos = batch.inputs[batch.cu_seqlens[:-1]] == BOS
        text = batch.inputs.tobytes()
        sequences = [text[a + int(bos) : b] for (a, b), bos in zip(pairwise(edges), has_bos, strict=True)]
        boundary, known = np.zeros(len(text), bool), np.ones(len(text), bool)
        previous = []
        for (a, b), bos, tokens in zip(pairwise(edges), has_bos, self.tokenizer.encode(sequences), strict=True):
            starts = a + int(bos) + np.cumsum(self.tokenizer.lengths[tokens[:-1]])
            boundary[a] = boundary[starts] = True
            known[max(a + 1, b - CUT) : b] = False
            previous += [np.array([self.tokenizer.bos]), tokens[: len(starts)]]
        judged = known.copy()
        judged[batch.cu_seqlens[:-1]] = False
        ids = np.concatenate(previous)
        embedding = send(self.table[torch.from_numpy(ids)], device)
        arrays = (boundary, judged, np.flatnonzero(boundary), known[boundary])
        boundaries, mask, starts, certain = (send(torch.from_numpy(array), device) for array in arrays)
        return Lesson(boundaries, mask, starts, certain, embedding, self.scale)


def keep(source: Path, run: Path) -> None:
    """Copy the teacher of a folder into a run, which then no longer needs that folder.

    Raises InputError, DamagedError or StorageError.
    """
    if not (source / TABLE).exists():
        Teacher(source)
    storage.verify_folder(source, FILES)
    with storage.staged_folder(run / "teacher", overwrite=True, manifest={"kind": "teacher"}) as folder:
        for name in FILES:
            with storage.NewFile(folder / name) as new, storage.open_file(source / name) as old:
                while block := old.read(1 << 24):
                    new.write(block)
