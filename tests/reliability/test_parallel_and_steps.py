"""One function, computed in many ways, gives the same values (R24)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from forms import trials
from modelkit import tiny_config, tiny_model, worst

from hnet_cli.checkpoints.find import load
from hnet_cli.model import HNetForCausalLM

TEXT = (Path(__file__).parents[2] / "hnet_cli/starters/quickstart.txt").read_bytes()
MODELS = {
    "one stage, trained": lambda: load("starter:novels"),
    "two stages, trained": lambda: load("starter:text"),
    "two stages": lambda: tiny_model(torch.float32, config=tiny_config(window=64)),
}
each_model = pytest.mark.parametrize("name", MODELS)


def texts(total: int, seed: int) -> list[torch.Tensor]:
    """Excerpts of the bundled text of very different lengths, `total` bytes in all."""
    random = np.random.default_rng(seed)
    shares = (0.4, 0.3, 0.17, 0.1, 0.03)
    at = random.integers(0, len(TEXT) - total, len(shares))
    return [torch.tensor(list(b"\xfe" + TEXT[a : a + int(total * s)])) for a, s in zip(at, shares, strict=True)]


@torch.no_grad()
def packed(model: HNetForCausalLM, documents: list[torch.Tensor]) -> tuple[list[torch.Tensor], list[list[int]]]:
    """One packed pass: the logits of each document, and at how many stages a chunk begins at each of its bytes."""
    lengths = [len(document) for document in documents]
    offsets = torch.tensor([0, *np.cumsum(lengths).tolist()])
    out = model(torch.cat(documents), cu_seqlens=offsets)
    depth, at = torch.zeros(len(torch.cat(documents)), dtype=torch.int64), torch.arange(sum(lengths))
    for stage in out.routing:
        at = at[stage.boundary_mask]
        depth[at] += 1
    return list(out.logits.split(lengths)), [part.tolist() for part in depth.split(lengths)]


def difference(logits: torch.Tensor, right: torch.Tensor) -> float:
    """The largest difference as a share of the largest logit: logits of trained models reach 20, where float32 itself
    rounds by 1e-6."""
    return worst(logits, right) / float(right.abs().max())


@each_model
def test_r24_steps_equal_the_parallel_pass(tally: Any, name: str) -> None:
    """In float32 as a share of the largest logit, in float64 as they are. The figures also say how far the float32 pass
    is from the float64 one: rounding that no order of summation avoids."""
    done = tally("R24", "prefill and steps against the parallel pass, ragged rows, bytes compared", name)
    model, far = MODELS[name](), dict[str, float]()

    def note(what: str, value: float) -> None:
        far[what] = max(far.get(what, 0.0), value)

    for seed in range(trials(1, 1, 5)):
        documents = texts(trials(400, 10_000, 10_000), seed)
        passes = {}
        for dtype in (torch.float32, torch.float64):
            passes[dtype], depths = packed(model.to(dtype), documents)
            for row, byte, logits, chunks in stepped(model, documents):
                wanted = passes[dtype][row][byte]
                off, share = worst(logits, wanted), difference(logits, wanted)
                good = share <= 1e-5 if dtype == torch.float32 else off <= 1e-10
                done.count(good, f"{dtype}, document {row}, byte {byte}: logits differ by {off:.1e}")
                note(f"{str(dtype)[6:]} apart", off)
                if dtype == torch.float32:
                    note("as a share", share)
                if chunks is not None:
                    right = depths[row][byte]
                    done.count(chunks == right, f"document {row}, byte {byte}: {chunks} chunks begin, not {right}")
        for ours, exact in zip(passes[torch.float32], passes[torch.float64], strict=True):
            note("float32 pass from float64", worst(ours, exact))
            note("largest logit", float(exact.abs().max()))
    done.figures |= {what: f"{value:.1e}" if value < 1 else round(value) for what, value in far.items()}


def stepped(
    model: HNetForCausalLM, documents: list[torch.Tensor]
) -> Iterator[tuple[int, int, torch.Tensor, int | None]]:
    """(document, byte, logits there, at how many stages a chunk begins there) from the end of a prompt of a tenth on,
    all documents beside each other until the last one ends; chunks are known of bytes that are stepped over."""
    prompts = [max(1, len(document) // 10) for document in documents]
    state = model.allocate_state(len(documents), max(map(len, documents)))
    logits = model.prefill([d[:n] for d, n in zip(documents, prompts, strict=True)], state)
    rows, chunks = list(range(len(documents))), [None] * len(documents)
    for t in range(max(map(len, documents))):
        for i, row in enumerate(rows):
            yield row, prompts[row] + t - 1, logits[i], chunks[i]
        going = [i for i, row in enumerate(rows) if prompts[row] + t < len(documents[row])]
        if not going:
            return
        if len(going) < len(rows):
            state.select(going)
            rows = [rows[i] for i in going]
        logits, routing = model.step(torch.stack([documents[row][prompts[row] + t] for row in rows]), state)
        chunks = torch.stack([stage.boundary_mask for stage in routing]).sum(0).tolist()


@each_model
def test_r24_a_prompt_may_be_cut_at_every_byte(tally: Any, name: str) -> None:
    done = tally("R24", "prompts cut at every byte of a document, then steps", name)
    model = MODELS[name]()
    document = texts(trials(250, 1000, 1000), 7)[0]
    (wanted,), _ = packed(model, [document])
    cuts = list(range(1, len(document) - 3))
    state = model.allocate_state(len(cuts), len(document))
    logits = model.prefill([document[:cut] for cut in cuts], state)
    for ahead in range(4):
        for row, cut in enumerate(cuts):
            off = difference(logits[row], wanted[cut + ahead - 1])
            done.count(off <= 1e-5, f"cut at {cut}, {ahead} bytes later: logits differ by {off:.1e}")
        if ahead < 3:
            logits, _ = model.step(torch.stack([document[cut + ahead] for cut in cuts]), state)


@each_model
def test_r24_neighbours_in_a_pack_change_nothing(tally: Any, name: str) -> None:
    done = tally("R24", "documents packed with strangers against each alone", name)
    model, random, largest = MODELS[name](), np.random.default_rng(3), dict[torch.dtype, float]()
    for dtype, limit in ((torch.float32, 1e-5), (torch.float64, 1e-10)):
        model.to(dtype)
        for trial in range(trials(2, 40, 200)):
            documents = texts(int(random.integers(200, 3000)), trial)
            order = random.permutation(len(documents)).tolist()
            together, depths = packed(model, [documents[i] for i in order])
            for i, logits, depth in zip(order, together, depths, strict=True):
                (alone,), (depth_alone,) = packed(model, [documents[i]])
                off = difference(logits, alone)
                largest[dtype] = max(largest.get(dtype, 0), off)
                done.count(off <= limit and depth == depth_alone, f"{dtype}, trial {trial}, document {i}: {off:.1e}")
    done.figures |= {f"difference in {str(dtype)[6:]}": f"{value:.1e}" for dtype, value in largest.items()}
