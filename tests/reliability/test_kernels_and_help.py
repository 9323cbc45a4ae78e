"""Every operation against float64 (R25), and help that answers at once (R32)."""

from __future__ import annotations

import resource
import statistics
import subprocess
import sys
from itertools import product
from typing import Any

import torch
from forms import trials

from hnet_cli.cli.app import app
from hnet_cli.kernels import HOST, OPERATIONS, REFERENCE
from hnet_cli.kernels.checking import compare, worst


def test_r25_operations_against_float64(tally: Any) -> None:
    """Values and every gradient, over documents of 1, 63, 64 and 65 bytes; on a GPU, `hnet doctor --check` does it.

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
            found = compare(operation, name, function, cpu, dtype, seed, lengths, state=state)
            cancels = operation == "ssd_scan" and found.where == "gradient of argument 2"
            done.count(found.error <= limits[cancels], f"{name} {operation} {dtype} {seed}: {found}")
            kind = f"{found.dtype}, decay rates" if cancels else found.dtype
            errors.setdefault(kind, []).append(found.error)
    done.figures |= {kind: f"{each[worst(each)]:.1e}" for kind, each in sorted(errors.items())}


def test_r32_help_answers_at_once(tally: Any) -> None:
    """Of `hnet` and of each command, in a process of its own that must not import torch."""
    done = tally("R32", "help of hnet and of every command: no torch, seconds of CPU time")
    code = "import sys; from hnet_cli.cli.app import run; code = run(sys.argv[1:]); print('torch' in sys.modules, code)"
    commands = [[], *([command.name or command.callback.__name__] for command in app.registered_commands)]
    seconds = []
    for command in commands[: trials(3, len(commands), len(commands))]:
        spent = resource.getrusage(resource.RUSAGE_CHILDREN)
        said = subprocess.run([sys.executable, "-c", code, *command, "--help"], capture_output=True, text=True)
        now = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(now.ru_utime + now.ru_stime - spent.ru_utime - spent.ru_stime)
        done.count(said.stdout.endswith("\nFalse 0\n") and not said.stderr, f"{command}: {said.stdout[-200:]}")
    done.figures |= {"median": round(statistics.median(seconds), 2), "slowest": round(max(seconds), 2)}
