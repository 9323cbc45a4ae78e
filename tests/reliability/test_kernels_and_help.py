"""Every operation against float64 (R25), and help that answers at once (R32)."""

from __future__ import annotations

import statistics
from itertools import product
from typing import Any

import torch
from commands import fresh
from forms import trials

from hnet_cli.cli.app import app
from hnet_cli.kernels import HOST, OPERATIONS, REFERENCE
from hnet_cli.kernels.checking import compare, worst


def test_r25_operations_against_float64(tally: Any) -> None:
    """Values and gradients, over documents of 1, 63, 64 and 65 bytes; on a GPU, `hnet doctor --check` does it.

    The gradient of the decay rates is a sum over all positions in which much cancels: it is farther off, as a share of
    what is left, and has a row of its own.
    """
    errors: dict[str, list[float]] = {}
    done = tally("R25", "operations on a CPU against float64: values and gradients, RMS of the difference")
    bounds = {torch.float32: (1e-5, 1e-4), torch.bfloat16: (1e-2, 2e-1)}
    cpu, lengths = torch.device("cpu"), [1, 63, 64, 65]
    backends = (("reference", REFERENCE, OPERATIONS), ("host", HOST.kernels, HOST.operations))
    for seed in range(trials(1, 10, 50)):
        for (dtype, limits), operation, (name, kernels, known) in product(bounds.items(), OPERATIONS, backends):
            if operation not in known:
                continue
            function, state = getattr(kernels, operation), kernels.ssd_state
            result = compare(operation, name, function, cpu, dtype, seed, lengths, state=state)
            cancels = operation == "ssd_scan" and result.where == "gradient of argument 2"
            done.count(result.error <= limits[cancels], f"{name} {operation} {dtype} {seed}: {result}")
            kind = f"{result.dtype}, decay rates" if cancels else result.dtype
            errors.setdefault(kind, []).append(result.error)
    done.figures |= {kind: f"{values[worst(values)]:.1e}" for kind, values in sorted(errors.items())}


def test_r32_help_answers_at_once(tally: Any) -> None:
    """Help of `hnet` and of each command, in a process of its own that must not import torch."""
    done = tally("R32", "help of hnet and of every command: no torch, seconds of CPU time")
    commands = [[], *([command.name or command.callback.__name__] for command in app.registered_commands)]
    times = []
    for command in commands[: trials(3, len(commands), len(commands))]:
        stdout, stderr, seconds = fresh(*command, "--help")
        times.append(seconds)
        done.count(stdout.endswith("\nFalse 0\n") and not stderr, f"{command}: {stdout[-200:]}")
    done.figures |= {"median": round(statistics.median(times), 2), "slowest": round(max(times), 2)}
