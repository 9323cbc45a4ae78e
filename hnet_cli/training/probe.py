"""Chunks and a continuation of the same bytes at every evaluation: the lines of a run's `samples.jsonl`.

The probe is the beginning of the validation split, of a mixture's sources an equal part each. Changes of its chunks
between evaluations show whether a router has settled; a continuation of it shows what the model has learned.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from hnet_cli import modality
from hnet_cli.data.dataset import Dataset, prompt_lengths
from hnet_cli.data.mixture import Mixture
from hnet_cli.errors import HNetError, NumericalError
from hnet_cli.inference.generate import generate
from hnet_cli.model import HNetForCausalLM
from hnet_cli.model.config import BOS, EOS
from hnet_cli.report.stages import StageFigures

PROBE_BYTES, RECORDED_BYTES, PROMPT_BYTES, GENERATED_BYTES = 4096, 512, 48, 200
"""Bytes that are routed, of these in the record, given as a prompt, and generated."""


@dataclass(frozen=True)
class Decisions:
    """Decisions of the routers on the probe's n bytes, at S stages."""

    depth: str
    """A digit per byte: the number of stages of which a chunk begins there; S where a document begins."""
    probability: np.ndarray
    """(S, n) float32: p of each byte that is a position of the stage, else NaN; 1 where a document begins."""


class Probe:
    """The first bytes of the validation split, at most `PROBE_BYTES`, in their documents.

    Of a mixture, an equal part of each source: recorded are the first bytes of each, prompts are of the first.
    """

    def __init__(self, data: Mixture | Dataset) -> None:
        mixture = Mixture.of(data)
        number, pieces, recorded = len(mixture.datasets), list[bytes](), list[np.ndarray]()
        for dataset in mixture.datasets:
            own = _beginning(dataset, PROBE_BYTES // number)
            recorded.append(sum(map(len, pieces)) + np.arange(min(RECORDED_BYTES // number, sum(map(len, own)))))
            pieces += own
        dataset = mixture.datasets[0]
        self.data = b"".join(pieces)
        self.recorded = np.concatenate(recorded)
        """(n,) int64: the bytes that are recorded."""
        ends = np.cumsum([len(piece) for piece in pieces])
        self.first = np.concatenate([[0], ends[:-1]])
        """(B,) int64: offsets of the documents."""
        table = dataset.input_table
        self.input_table = None if table is None else table.tobytes()
        self._cu_seqlens = np.concatenate([[0], ends + np.arange(1, len(pieces) + 1)])
        self._input = np.insert(dataset.translate(np.frombuffer(self.data, np.uint8)), self.first, BOS)
        try:
            self.automaton: modality.Automaton | None = modality.get(dataset.modality).automaton()
        except HNetError:  # its plugin is not installed here
            self.automaton = None
        prompt = self.data[:PROMPT_BYTES]
        if dataset.prompted:
            first = int(dataset.ranges("val")[0, 0])
            prompt = self.data[: min(int(prompt_lengths(dataset.table[first])), len(pieces[0]))]
        legal = self.automaton is None or self.automaton.run(prompt.translate(self.input_table)) >= 0
        self.prompt = prompt if legal else b""

    @torch.no_grad()
    def decide(self, model: HNetForCausalLM, whole: bool = False) -> Decisions:
        """Route the probe, every document whole and from its beginning, in one pass of the encoders; or of the `whole`
        model, the only way for one that is sharded among ranks."""
        device = model.embeddings.weight.device
        ids, offsets = torch.from_numpy(self._input).to(device).long(), torch.from_numpy(self._cu_seqlens).to(device)
        at = np.arange(len(self._input))
        depth = np.zeros(len(self._input), np.uint8)
        probability = np.full((model.config.num_stages, len(self._input)), np.nan, np.float32)
        decided = model(ids, cu_seqlens=offsets, until=None if whole else "routing").routing
        for stage, routing in enumerate(decided):
            probability[stage, at] = routing.boundary_prob.float().cpu().numpy()
            at = at[routing.boundary_mask.cpu().numpy()]
            depth[at] += 1
        marks = self._cu_seqlens[:-1]
        depth, probability = np.delete(depth, marks), np.delete(probability, marks, 1)
        depth[self.first], probability[:, self.first] = model.config.num_stages, 1
        return Decisions("".join(map(str, depth.tolist())), probability)

    def flips(self, before: str, now: str, stages: int) -> dict[str, float]:
        """The entries of `StageFigures.flips`: of the bytes that stage s decided both times, the share that changed.

        `before` and `now` are the `Decisions.depth` of two evaluations. The first byte of a document is no decision.
        A stage without common decisions is left out.
        """

        def depths(digits: str) -> np.ndarray:
            return np.delete(np.frombuffer(digits.encode(), np.uint8) - ord("0"), self.first)

        old, new, shares = depths(before), depths(now), dict[str, float]()
        for s in range(stages):
            both = (old >= s) & (new >= s)
            if both.any():
                shares |= StageFigures(flips=float(np.mean((old > s)[both] != (new > s)[both]))).flat(s)
        return shares

    def record(
        self,
        model: HNetForCausalLM,
        decisions: Decisions,
        seed: int | None,
        enough: Callable[[], bool] = lambda: False,
    ) -> dict[str, Any]:
        """The bytes shown with their chunks, and a continuation of the first of them drawn from `seed` (None: none),
        which ends early where it is `enough`.

        "probe": {"base64", "depth": [..], "probability": [[.. per byte, null where it is no position], .. per stage]};
        "sample": {"prompt", "base64", "depth"}, left out where the logits are not finite. Leaves torch's random state
        alone.
        """
        shown = [
            [None if np.isnan(p) else round(float(p), 4) for p in row[self.recorded]] for row in decisions.probability
        ]
        probe = {
            "base64": b64encode(np.frombuffer(self.data, np.uint8)[self.recorded].tobytes()).decode(),
            "depth": [int(decisions.depth[at]) for at in self.recorded],
            "probability": shown,
        }
        if seed is None or model.tokenizer is not None:  # tokens continue a prompt in tokens, not in bytes
            return {"probe": probe}
        try:
            steps = []
            for step in generate(
                model,
                [self.prompt],
                max_bytes=GENERATED_BYTES,
                seed=seed,
                automaton=self.automaton,
                input_table=self.input_table,
                eos=EOS,
            ):
                steps.append(step)
                if enough():
                    break
        except NumericalError:
            return {"probe": probe}
        sample = {
            "prompt": b64encode(self.prompt).decode(),
            "base64": b64encode(bytes(step.byte for step in steps)).decode(),
            "depth": [step.depth for step in steps],
        }
        return {"probe": probe, "sample": sample}


def _beginning(dataset: Dataset, most: int) -> list[bytes]:
    """The first documents of the validation split as stored, at most so many bytes."""
    pieces: list[bytes] = []
    for document, begin, length in dataset.ranges("val").tolist():
        at = int(dataset.table[document, 0]) + begin
        pieces.append(dataset.shards.read(at, at + min(length, most)))
        most -= len(pieces[-1])
        if not most:
            break
    return pieces
