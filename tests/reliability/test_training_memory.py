"""Memory and work of segmentation of long files (R27), of training where every byte is a boundary (R28), and over many
steps (R29)."""

from __future__ import annotations

import gc
import gzip
import io
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import SMALLER, hnet
from forms import FORM, trials
from runkit import TWO_STAGES, tiny
from torch.utils.flop_counter import FlopCounterMode

from hnet_cli.cli.app import run
from hnet_cli.config.run import RunConfig, resolve
from hnet_cli.inference.windows import windows
from hnet_cli.modality import Document
from hnet_cli.model import HNetForCausalLM, RoutingOutput
from hnet_cli.training import budget
from hnet_cli.training.build import build_model
from hnet_cli.training.loop import train
from hnet_cli.training.losses import losses

CONFIGS = {"nano": resolve("nano"), "two stages": tiny(*TWO_STAGES, "name=two stages")}
each_config = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
TEXT = (Path(__file__).parents[2] / "hnet_cli/starters/quickstart.txt").read_bytes()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    """A run of one step."""
    run = tmp_path_factory.mktemp("model") / "run"
    train(tiny(*TWO_STAGES, "train.steps=1", "train.eval_every=0"), data, run)
    return run


def test_r27_memory_of_segment_is_flat(
    tally: Any, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command on a file and on one ten times as long; except in the long form its blocks are made small, so that
    the shorter file fills them too."""
    done = tally("R27", "peak memory of segment on a file and on a tenth of it, two stages")
    size = trials(25_000, 100_000, 1_200_000)
    if FORM != "long":
        for name in ("inference.segment.SCORED_BYTES", "inference.intake.READ_BYTES", "modalities._utf8.PIECE"):
            monkeypatch.setattr(f"hnet_cli.{name}", 1 << 14)
    peaks = []
    for factor in (1, 10):
        file = tmp_path / "x.txt"
        file.write_bytes((TEXT * (1 + factor * size // len(TEXT)))[: factor * size])
        words = ["segment", file, "--model", model, "--format", "plain", "--overwrite", "--out", tmp_path / "out"]
        process = hnet(*words, stderr=tmp_path / "stderr")
        done.count(process.wait(3600) == 0, process.error)
        peaks.append(process.memory / 2**20)
    done.figures |= {"MB": 10 * size / 10**6, "peak MiB": round(peaks[1]), "growth": round(peaks[1] - peaks[0], 1)}
    done.count(peaks[1] - peaks[0] <= 16, f"{peaks} MiB")


def test_r27_how_a_file_is_read_changes_no_boundary(
    tally: Any, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = tally("R27", "segment reading 1 KiB, 64 KiB or 1 MiB at once, or standard input: the same output")
    data, outputs = TEXT[: trials(6000, 60_000, 200_000)], set()
    (tmp_path / "x.txt").write_bytes(data)
    (tmp_path / "x.txt.gz").write_bytes(gzip.compress(data))
    for name, block in (*(("x.txt", 1 << size) for size in (10, 16, 20)), ("x.txt.gz", 1 << 10), ("-", 1 << 10)):
        for place in ("storage.streams.READ_BYTES", "inference.intake.READ_BYTES", "inference.windows.READ_BYTES"):
            monkeypatch.setattr(f"hnet_cli.{place}", block)
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BufferedReader(io.BytesIO(data))))
        path, out = name if name == "-" else str(tmp_path / name), tmp_path / f"out {name} {block}"
        code = run(["segment", path, "--model", str(model), "--modality", "text", "--format", "tsv", "--out", str(out)])
        _, *lines = out.read_text().splitlines()
        outputs.add("\n".join(line.split("\t", 2)[-1] for line in lines))  # but for the names
        done.count(code == 0 and len(lines) > 100 and len(outputs) == 1, f"{name} read {block} bytes at once")


def boundaries_everywhere(config: RunConfig) -> HNetForCausalLM:
    """A model whose routers put a boundary between equal neighbours, so at every position of one repeated byte."""
    torch.manual_seed(0)
    model = build_model(config)
    with torch.no_grad():
        for name, module in model.named_modules():
            if name.endswith("routing_module"):
                module.k_proj_layer.weight.copy_(-module.q_proj_layer.weight)
    return model


def forward(model: HNetForCausalLM, config: RunConfig, rows: int) -> tuple[torch.Tensor, list[RoutingOutput]]:
    """The loss of `rows` rows of one repeated byte."""
    length = config.train.sequence_length
    ids, offsets = torch.full((rows * length,), ord("a")), torch.arange(0, rows * length + 1, length, dtype=torch.int32)
    part, routing = losses(model, ids, ids, offsets, None, 1.0, config.train, 0)
    return part.total, routing


@each_config
def test_r28_memory_is_what_the_plan_announces(tally: Any, config: RunConfig) -> None:
    """Bytes that autograd saves for the backward pass, every storage once."""
    done = tally("R28", "memory of a step in which every byte is a boundary, against the plan", config.name)
    model, rows = boundaries_everywhere(config), config.train.rows // config.train.pieces
    parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    saved: list[torch.Tensor] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        saved.append(tensor)  # alive, so that no address is given out twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        _, routing = forward(model, config, rows)
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in saved}
    measured = sum(size for address, size in storages.items() if address not in parameters)
    announced = budget.needs(config).worst_activations
    everywhere = all(bool(stage.boundary_mask.all()) for stage in routing)
    done.count(everywhere and measured <= announced, f"{measured:,} bytes of {announced:,} announced")
    estimate = announced - budget.BASE_MEMORY
    done.count(measured <= 1.15 * estimate, f"{measured:,} bytes kept, {estimate:,} estimated")
    done.figures["share of the estimate"] = round(measured / estimate, 2)


@each_config
def test_r28_twice_the_bytes_are_at_most_2_3_times_the_work(tally: Any, config: RunConfig) -> None:
    done = tally("R28", "operations (long form: time) of a step over 2n and n bytes of one value", config.name)
    model = boundaries_everywhere(config)

    def work(rows: int) -> float:
        if FORM == "long":
            times = []
            for _ in range(9):
                began = time.process_time()
                forward(model, config, rows)[0].backward()
                times.append(time.process_time() - began)
            return min(times)
        with FlopCounterMode(display=False) as counter:
            forward(model, config, rows)[0].backward()
        return counter.get_total_flops()

    for rows in (1, 2, 4, 8)[: trials(1, 3, 4)]:
        ratio = work(2 * rows) / work(rows)
        done.count(ratio <= 2.3, f"{2 * rows} rows are {ratio:.2f} times {rows} rows")
        done.figures[f"{2 * rows} rows to {rows}"] = round(ratio, 2)


def test_r28_segment_is_linear_in_a_repeated_byte(tally: Any) -> None:
    done = tally("R28", "operations (long form: time) of segment over 2n and n bytes of one value")
    model = boundaries_everywhere(resolve("nano")).eval()

    def work(size: int) -> float:
        began = time.process_time()
        with FlopCounterMode(display=False) as counter:
            starts = sum(len(w.starts) for w in windows(model, [Document(b"a" * size, "a", "a")]))
        assert starts == size
        return time.process_time() - began if FORM == "long" else counter.get_total_flops()

    for size in (4096, 65536, 1 << 20)[: trials(1, 2, 3)]:
        ratio = work(2 * size) / work(size)
        done.count(ratio <= 2.3, f"{2 * size} bytes are {ratio:.2f} times {size} bytes")
        done.figures[f"{2 * size} bytes to {size}"] = round(ratio, 2)


def test_r29_memory_and_open_files_do_not_grow(tally: Any, data: Path, tmp_path: Path) -> None:
    """With validations, samples and checkpoints on the way; caches fill in the first fifth of the steps. Over a hundred
    steps the allocator goes up and down by more than 1%, so the short form notices only leaks of 0.5 MB a step."""
    steps = trials(100, 2000, 10_000)
    done = tally("R29", "resident memory and open files over the steps of a run")
    resident, files = [], []

    def listen(kind: str, record: dict[str, Any]) -> None:
        if kind == "step" and record["step"] % 10 == 0:
            gc.collect()
            resident.append(int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE"))
            files.append(len(os.listdir("/proc/self/fd")))

    every = [f"train.{what}_every={steps // trials(2, 5, 5)}" for what in ("eval", "checkpoint")]
    smaller = SMALLER if FORM == "short" else []
    train(tiny(*smaller, f"train.steps={steps}", *every, "train.samples=true"), data, tmp_path / "run", listen=listen)
    fifth = len(resident) // 5
    before, after = np.median(resident[fifth : 2 * fifth]), np.median(resident[-fifth:])
    growth = after / before - 1
    done.n = steps - 1
    most = 40 * 2**20 if FORM == "short" else 0.01 * before
    done.count(after - before <= most, f"resident memory grew by {100 * growth:.2f}%, from {before:,.0f} bytes")
    settled = files[fifth:]
    done.count(max(settled) == min(settled), f"between {min(settled)} and {max(settled)} open files")
    done.figures["growth in percent"] = round(100 * growth, 2)
