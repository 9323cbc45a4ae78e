"""Correctness and speed of everything on a GPU, in one call of less than nine minutes, the most important first.

    python benchmarks/gpu.py [--out DIR] [--rest]

    machine      versions; rate of bf16 products and of copies in memory: the 100% of what follows
    compiled, kernels, parity, data: side by side: kernels are compiled on all cores while every operation and a whole
                 model are compared with the reference
    tune         the fastest configurations of the scan's kernels: `tuned.json`, as hnet_cli/kernels has it
    models       training bytes/s, MFU and peak memory beside an isotropic Transformer of equal FLOPs per byte
    generation   bytes/s at batch 1, 64, 8 of recorded steps (CUDA graphs), without our own kernels, then eager
    training     `small`, then a Transformer on BPE and an isotropic one on bytes of equal FLOPs per byte, by the tool's
                 own training on --data for equal seconds: bits per byte

`gpu.json` is written again after every figure. A section is a process with a limit of time; one that fails or hangs
leaves its error there and the next one begins. `--rest` goes on from the gpu.json that is there: what failed or is
missing in less than three minutes, then `ab`, choices of this tool against each other. Needs torch, numpy and PyYAML;
training needs pydantic and safetensors, and its BPE tokenizers: `--wheels DIR` installs those in DIR, mamba-ssm's too.
`--kernels FILE` unpacks kernels that gpu_warm.py compiled elsewhere. `--dry` runs all of it on a CPU with tiny models.

Routers of untrained models would cut nowhere: in models, generation and ab boundaries are at fixed random positions at
the rates of the paper (0.21 of the bytes; 0.357 and 0.145), with the router's gradient. FLOPs are counted as in the
paper's appendix B, three times the forward pass; MFU is their share of the rate of a product measured in this run.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import dataclasses
import functools
import json
import math
import os
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import Any

BEGAN = time.monotonic()
"""Importing torch and installing wheels counts."""
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from gpu_warm import CACHE, unpack  # noqa: E402

FRESH, REST = 530, 170
"""Seconds of a call."""
START = 25
"""Seconds that a training takes besides the ones it is given."""
AIMS = {
    "models 2stage-xl mfu": 0.42,
    "models 2stage-xl mfu_of_isotropic": 0.75,
    "training hnet bytes_per_s": 1.4e6,
    "generation batch_1 of_bound": 0.5,
}
"""Least figures wanted on an H100, by their place in the results."""
AIMS_H200 = AIMS | {"models 2stage-xl mfu": 0.48}


@dataclasses.dataclass
class Section:
    """One process: which work, on what, for at most how many seconds."""

    work: str
    part: str = ""
    limit: float = 60
    process: subprocess.Popen[bytes] | None = None
    found: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{self.work} {self.part}".strip()


def plan(o: argparse.Namespace) -> list[list[Section]]:
    """Groups of sections, one after the other; those of a group run side by side."""
    from gpu_sections import CHECKS, PARITY, TRAINED

    cores = 1 if o.dry else os.cpu_count() or 1
    shares = [f"{index}/{cores}" for index in range(cores)]
    side = {"compiled": shares, "kernels": CHECKS, "parity": PARITY, "data": [""]}
    groups = [[Section("machine")], [Section(work, part, 110) for work, parts in side.items() for part in parts]]
    groups += [[Section("tune", "", 60)], *([Section("models", name, 90)] for name in o.models)]
    groups += [[Section("generation", o.models[0], 100)], *([Section("training", name, FRESH)] for name in TRAINED)]
    if o.rest:
        groups.append([Section("ab", o.models[-1], 100)])
    return [[section for section in group if not o.only or section.work in o.only.split(",")] for group in groups]


def merge(into: dict[str, Any], new: dict[str, Any]) -> None:
    for key, value in new.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            merge(into[key], value)
        else:
            into[key] = value


def rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.4g}") if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: rounded(member) for key, member in value.items()}
    return [rounded(member) for member in value] if isinstance(value, list | tuple) else value


def write(path: Path, value: Any) -> None:
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(json.dumps(rounded(value), indent=1) + "\n", encoding="utf-8")
    partial.replace(path)


class Runner:
    """Runs sections and keeps the file of results whole."""

    def __init__(self, o: argparse.Namespace) -> None:
        self.o = o
        self.out, self.folder = Path(o.out), Path(o.folder)
        for folder in (self.out, self.folder):
            folder.mkdir(parents=True, exist_ok=True)
        self.log = self.out / "gpu.log"
        self.found: dict[str, Any] = {"date": time.strftime("%Y-%m-%d"), "dry": o.dry, "sections": {}}
        known = [path for path in (self.out / "gpu.json", self.folder / "gpu.json") if path.exists()]
        if o.rest and known:
            self.found = json.loads(known[0].read_text(encoding="utf-8"))

    def left(self) -> float:
        return self.o.seconds - (time.monotonic() - BEGAN)

    def aims(self) -> dict[str, Any]:
        """Figures that were measured, beside the least that is wanted of them."""
        aims = AIMS_H200 if "H200" in self.found.get("machine", {}).get("device", "") else AIMS
        measured = {name: functools.reduce(lambda at, key: at.get(key, {}), name.split(), self.found) for name in aims}
        return {name: {"found": measured[name], "aim": aim} for name, aim in aims.items() if measured[name]}

    def save(self) -> None:
        self.found["aims"] = self.aims()
        for folder in (self.out, self.folder):  # the second outlives a call whose --out is new every time
            write(folder / "gpu.json", self.found)

    def options(self, section: Section) -> dict[str, Any]:
        about, known = self.found.get("machine", {}), self.found.get("training", {})
        return vars(self.o) | {
            "part": section.part,
            "tflops": about.get("bf16_tflops"),
            "bandwidth": about.get("memory_tb_s"),
            "tuned": self.found.get("tuned", {}),
            "trained_on": known.get("data", {}).get("path"),
            "train_seconds": known.get("each_s"),
        }

    def run(self, group: list[Section], trainings: int) -> None:
        """All sections of the group at once, until each has ended or its time is over. `trainings`: how many are to
        share the time from now on."""
        began, limit = time.monotonic(), min(math.inf if self.o.dry else group[0].limit, self.left() - 3)
        if group[0].work == "training":
            equal = 2.0 if self.o.dry else max(5.0, self.left() / trainings - START)
            equal = self.found.setdefault("training", {}).setdefault("each_s", equal)
            limit = 0 if limit < equal + START / 2 else min(limit, equal + 2 * START)
        for section in group:
            if limit < 8:
                self.note(section, "no time was left", 0)
            elif self.o.inline:
                options = json.loads(json.dumps(self.options(section), default=str))
                work(section.work, argparse.Namespace(**options), section.found)
                self.note(section, section.found.pop("error", ""), time.monotonic() - began)
            else:
                self.start(section, self.options(section), len(group))
        running = [section for section in group if section.process]
        while running:
            time.sleep(0.05)
            for section in running:
                assert section.process
                over = time.monotonic() - began > limit
                if over:
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(section.process.pid, signal.SIGKILL)
                    section.process.wait()
                code = section.process.poll()
                self.absorb(section)
                if code is not None:
                    error = section.found.pop("error", "") or (f"ended with {code}; see gpu.log" if code else "")
                    self.note(section, f"stopped after {limit:.0f} s" if over else error, time.monotonic() - began)
            running = [section for section in running if section.name not in self.found["sections"]]

    def start(self, section: Section, options: dict[str, Any], beside: int) -> None:
        self.found["sections"].pop(section.name, None)
        fragment = self.fragment(section)
        fragment.unlink(missing_ok=True)
        given = fragment.with_suffix(".options")
        given.write_text(json.dumps(options, default=str), encoding="utf-8")
        environment = os.environ | ({"OMP_NUM_THREADS": "1"} if beside > 1 else {})
        command = [sys.executable, __file__, "--worker", section.work, str(given), str(fragment), str(os.getpid())]
        with open(self.log, "ab") as log:
            log.write(f"\n== {section.name}\n".encode())
            log.flush()
            section.process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, process_group=0)

    def fragment(self, section: Section) -> Path:
        return self.folder / (section.name.replace(" ", "-").replace("/", "-") + ".json")

    def absorb(self, section: Section) -> None:
        """Puts into the file what the section has found since the last time."""
        with contextlib.suppress(FileNotFoundError):
            found = json.loads(self.fragment(section).read_text(encoding="utf-8"))
            if found != section.found:
                section.found = found
                merge(self.found, {key: value for key, value in found.items() if key != "error"})
                self.save()

    def note(self, section: Section, error: str, seconds: float) -> None:
        merge(self.found, section.found)
        row = {"seconds": seconds, "ok": not error, "device": self.found.get("machine", {}).get("device")}
        row |= {"error": error} if error else {}
        self.found["sections"][section.name] = row
        if "operations" in self.found.get("kernels", {}):
            rows = [row for rows in self.found["kernels"]["operations"].values() for row in rows.values()]
            self.found["kernels"]["ok"] = all(row["ok"] for row in rows)
        self.save()
        if section.work == "tune" and self.found.get("tuned"):
            write(self.out / "tuned.json", self.found["tuned"])
        print(f"{section.name:24} {seconds:6.1f} s  {error.splitlines()[-1] if error else 'ok'}", flush=True)
        if section.work not in ("compiled", "kernels", "tune"):
            print(f"    {json.dumps(section.found)[:1000]}", flush=True)

    def all(self) -> int:
        groups = plan(self.o)
        done = {name for name, row in self.found["sections"].items() if row["ok"]} if self.o.rest else set()
        done -= {"machine"}  # it may be another one
        if "tune" in done:
            done |= {section.name for group in groups for section in group if section.work == "compiled"}
        groups = [[section for section in group if section.name not in done] for group in groups]
        for number, group in enumerate(groups):
            if group:
                self.run(group, sum(section.work == "training" for later in groups[number:] for section in later))
        for name, row in self.aims().items():
            print(f"{name}: {row['found']:.4g}, {'reached' if row['found'] >= row['aim'] else 'below'} {row['aim']:g}")
        print(self.out / "gpu.json")
        return int(not all(row["ok"] for row in self.found["sections"].values()))


def work(name: str, o: argparse.Namespace, found: dict[str, Any], save: Any = lambda: None) -> None:
    """Does a section; `found` holds what is known so far, and the error if there is one."""
    import gpu_sections

    try:
        gpu_sections.prepare_process(o)
        for piece in gpu_sections.WORK[name](o):
            merge(found, rounded(piece))
            save()
    except BaseException:
        found["error"] = traceback.format_exc()
        traceback.print_exc()
        save()


def worker(name: str, given: str, fragment: str, parent: str) -> int:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: no section outlives the command
    if os.getppid() != int(parent):
        return 1
    found: dict[str, Any] = {}
    options = argparse.Namespace(**json.loads(Path(given).read_text(encoding="utf-8")))
    work(name, options, found, lambda: write(Path(fragment), found))
    return int("error" in found)


def main() -> int:
    if sys.argv[1:2] == ["--worker"]:
        return worker(*sys.argv[2:])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default=os.environ.get("OUT") or str(ROOT / "build" / "gpu"))
    parser.add_argument("--rest", action="store_true", help="what failed or is missing, then A/B")
    parser.add_argument("--dry", action="store_true", help="tiny models on a CPU: to test this program")
    parser.add_argument("--inline", action="store_true", help="all in this process: for a debugger")
    parser.add_argument("--seconds", type=float, help=f"of the whole: {FRESH}, with --rest {REST}")
    parser.add_argument("--measure", type=float, default=6, help="seconds of measuring, each time")
    parser.add_argument("--only", help="sections, separated by commas")
    parser.add_argument("--models", nargs="+", default=["2stage-xl", "small"])
    parser.add_argument("--data", type=Path, help="a dataset or a file of text to train on")
    parser.add_argument("--kernels", type=Path, help="an archive of gpu_warm.py")
    parser.add_argument("--wheels", type=Path, help="a folder of wheels to install for this run")
    o = parser.parse_args()
    o.seconds, o.device = o.seconds or (3600 if o.dry else REST if o.rest else FRESH), "cpu" if o.dry else "cuda"
    o.folder = str(Path(o.out) / "work" if o.dry else CACHE.parent)
    # what one section has tuned the next one knows
    os.environ |= {"TRITON_CACHE_AUTOTUNING": "1", "TRITON_CACHE_DIR": str(CACHE)}
    if o.wheels:
        target = str(Path(o.folder) / "site")
        command = [sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-deps", "--target", target]
        subprocess.run([*command, *map(str, o.wheels.glob("*.whl"))], check=False)
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [target, os.environ.get("PYTHONPATH")]))
    if o.kernels:
        unpack(o.kernels)
    return Runner(o).all()


if __name__ == "__main__":
    sys.exit(main())
