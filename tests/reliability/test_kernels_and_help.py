"""Every operation against float64 (R25), and help that answers at once (R32)."""

from __future__ import annotations

import resource
import statistics
import subprocess
import sys
from typing import Any

import torch
from forms import trials

from hnet_cli.cli import app
from hnet_cli.kernels import host, reference
from hnet_cli.kernels.checking import BOUNDS, compare

OPERATIONS = (
    "ssd_scan",
    "ssd_step",
    "causal_conv",
    "attention",
    "ema_scan",
    "add_rms_norm",
    "gated_rms_norm",
    "swiglu",
)


def test_r25_operations_against_float64(tally: Any) -> None:
    """Values and every gradient, over documents of 1, 63, 64 and 65 bytes; on a GPU, `hnet doctor --check` does it.

    In bfloat16 the decay rate's gradient, a sum over all positions, is farther off than the rest.
    """
    worst: dict[str, float] = {}
    done = tally("R25", "operations on a CPU against float64: values and gradients, RMS of the difference")
    for dtype, bound in ((torch.float32, 1e-5), (torch.bfloat16, BOUNDS[torch.bfloat16])):
        for seed in range(trials(1, 10, 50)):
            for operation in OPERATIONS:
                for module in (reference, host):
                    if function := getattr(module, operation, None):
                        name = module.__name__.rpartition(".")[2]
                        cpu, lengths = torch.device("cpu"), [1, 63, 64, 65]
                        found = compare(operation, name, function, cpu, dtype, seed, lengths)
                        done.count(found.error <= bound, f"{name} {operation} {dtype} {seed}: {found}")
                        which = "decay rate in bfloat16" if found.where == "gradient of argument 2" and \
                            operation == "ssd_scan" and dtype == torch.bfloat16 else found.dtype  # fmt: skip
                        worst[which] = max(worst.get(which, 0), found.error)
    done.figures |= {kind: f"{error:.0e}" for kind, error in worst.items()}


def test_r32_help_answers_at_once(tally: Any) -> None:
    """Of `hnet` and of each command, in a process of its own that must not import torch."""
    done = tally("R32", "help of hnet and of every command: no torch, seconds of CPU time")
    code = "import sys; from hnet_cli.cli import run; code = run(sys.argv[1:]); print('torch' in sys.modules, code)"
    commands = [[], *([command.name or command.callback.__name__] for command in app.registered_commands)]
    seconds = []
    for command in commands[: trials(3, len(commands), len(commands))]:
        spent = resource.getrusage(resource.RUSAGE_CHILDREN)
        said = subprocess.run([sys.executable, "-c", code, *command, "--help"], capture_output=True, text=True)
        now = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(now.ru_utime + now.ru_stime - spent.ru_utime - spent.ru_stime)
        done.count(said.stdout.endswith("\nFalse 0\n") and not said.stderr, f"{command}: {said.stdout[-200:]}")
    done.figures |= {"median": round(statistics.median(seconds), 2), "slowest": round(max(seconds), 2)}
