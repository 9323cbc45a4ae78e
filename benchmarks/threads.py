"""Speed of training `1stage-nano` by threads and their way of waiting, alone and beside a busy process, in Markdown.

python benchmarks/threads.py [--busy 1] [--seconds 5]
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys

CODE = """
from hnet_cli.config.run import resolve
from hnet_cli.training.timing import seconds_per_byte
print(1 / seconds_per_byte(resolve("1stage-nano"), "cpu", {seconds}))
"""


def speed(policy: str, threads: int, seconds: float) -> float:
    """Bytes per second, in a process of its own."""
    environment = os.environ | {"OMP_WAIT_POLICY": policy, "OMP_NUM_THREADS": str(threads)}
    command = [sys.executable, "-c", CODE.format(seconds=seconds)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--busy", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=5.0)
    options = parser.parse_args()
    every = os.cpu_count() or 1
    print("| busy processes | threads | spinning | passive |\n|--:|--:|--:|--:|")
    for busy in sorted({0, options.busy}):
        others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(busy)]
        try:
            for threads in sorted({1, every}):
                cells = [f"{speed(policy, threads, options.seconds):,.0f}" for policy in ("ACTIVE", "PASSIVE")]
                print(f"| {busy} | {threads} | {' | '.join(cells)} |", flush=True)
        finally:
            for other in others:
                other.kill()
