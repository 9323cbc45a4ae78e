"""Everything a GPU can show, in one command of less than nine minutes: python benchmarks/gpu.py [--out DIR]

Needs torch, numpy and pyyaml; what else it finds (triton, mamba-ssm, flash-attn) it uses and checks. Each section is a
process of its own with a limit of time: one that fails, hangs or breaks the GPU's context costs nothing but its
figures, its last words stand in the file and the next one begins. The results are written again after every section.

    warm         kernels are compiled on all cores, then tuned: only after that a minute measures anything
    machine      versions; rate of bf16 matrix products and of copies in memory: the 100% of what follows
    kernels      every fast operation against the reference in float64, forward and backward, fp32 and bf16, documents
                 of 1, 63, 64, 65 and thousands of positions, the scan with every configuration that tuning may choose;
                 if one is wrong, once more with another ptxas
    parity       a whole model: device against CPU reference, packed = alone = stepped = replayed
    models       training bytes/s, share of the matrix rate (MFU) and peak memory, each beside an isotropic Transformer
                 of equal FLOPs per byte; where the time of a step goes; how often the host waits
    generation   bytes/s of recorded steps (CUDA graphs) at batch 1, 8, 64 beside the plain loop
    loader       bytes/s of batches beside the fastest training
    training     with --train-seconds: `small` and an isotropic Transformer on --data, by the tool's own training

The most important sections come first; what no time is left for says so, and another run makes up for it, such as
`--only warm,models --models 1stage-xl`. Routers of untrained models would cut nowhere: boundaries are at fixed random
positions, at the rates of the paper (0.21 of the bytes; 0.357 and 0.145), with the router's gradient. FLOPs are counted
as in the paper's appendix B, three times the forward pass; of the isotropic Transformer all attention is within 1,024
bytes, which favours it. `--quick --device cpu` runs all of it with tiny models, as a test.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
os.environ.setdefault("TRITON_CACHE_AUTOTUNING", "1")  # what one section has tuned the next one knows

import torch  # noqa: E402
from gpu_sections import CHECKS, PARITY, WORK  # noqa: E402
from gpu_warm import one_configuration  # noqa: E402

MODELS = ("2stage-xl", "small", "1stage-l", "2stage-l", "1stage-xl")


# -- the command -------------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Section:
    """One process: which work, on what, for at most how long."""

    work: str
    part: str = ""
    limit: float = 60.0

    @property
    def name(self) -> str:
        return f"{self.work} {self.part}".strip()


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
        return {key: rounded(each) for key, each in value.items()}
    return [rounded(each) for each in value] if isinstance(value, list | tuple) else value


@dataclasses.dataclass
class Running:
    """A section that has been started."""

    section: Section
    process: subprocess.Popen[bytes]
    fragment: Path
    began: float


class Runner:
    """Runs sections one after the other and keeps the file of results whole."""

    def __init__(self, o: argparse.Namespace) -> None:
        self.o, self.began = o, time.monotonic()
        self.out = Path(o.out)
        self.out.mkdir(parents=True, exist_ok=True)
        self.file, self.log = self.out / "gpu.json", self.out / "gpu.log"
        self.log.write_text("", encoding="utf-8")
        self.found: dict[str, Any] = {"date": time.strftime("%Y-%m-%d"), "quick": o.quick, "sections": {}}
        self.environment = dict(os.environ)
        self.untuned = False
        """Whether every kernel of the scan has to do with one configuration."""

    def left(self) -> float:
        return self.o.seconds - (time.monotonic() - self.began)

    def within(self, limit: float) -> float:
        """So many seconds, or what is left; of a test on a slow machine no limit is the point."""
        return 600.0 if self.o.quick else min(limit, self.left() - 5)

    def write(self) -> None:
        partial = self.file.with_suffix(".partial")
        partial.write_text(json.dumps(rounded(self.found), indent=1) + "\n", encoding="utf-8")
        partial.replace(self.file)

    def options(self, section: Section) -> dict[str, Any]:
        about = self.found.get("machine", {})
        measured = {"tflops": about.get("bf16_tflops"), "bandwidth": about.get("memory_tb_s")}
        return vars(self.o) | {"part": section.part, "untuned": self.untuned} | measured

    def start(self, section: Section, folder: Path, threads: int = 0) -> Running:
        fragment = folder / (section.name.replace(" ", "-").replace("/", "-") + ".json")
        environment = self.environment | ({"OMP_NUM_THREADS": str(threads)} if threads else {})
        with open(self.log, "ab") as log:
            log.write(f"\n== {section.name}\n".encode())
            log.flush()
            command = [sys.executable, __file__, "--worker", section.work, "--fragment", str(fragment)]
            options = json.dumps(self.options(section), default=str)
            process = subprocess.Popen([*command, "--options", options], stdout=log, stderr=log, env=environment,
                                       start_new_session=True)  # fmt: skip
        return Running(section, process, fragment, time.monotonic())

    def finish(self, running: Running, limit: float) -> bool:
        """Waits for it until so many seconds after its start."""
        section, process, fragment, error = running.section, running.process, running.fragment, ""
        try:
            process.wait(timeout=max(0.1, running.began + limit - time.monotonic()))
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            error = f"stopped after {limit:.0f} s"
        made = json.loads(fragment.read_text()) if fragment.exists() else {}
        error = made.pop("error", "") or error
        if process.returncode and not error:
            error = f"ended with {process.returncode}; see gpu.log"
        return self.note(section, made, error, time.monotonic() - running.began)

    def note(self, section: Section, made: dict[str, Any], error: str, seconds: float) -> bool:
        merge(self.found, made)
        self.found["sections"][section.name] = {"seconds": seconds, "ok": not error} | (
            {"error": error} if error else {}
        )
        self.write()
        print(f"{section.name:24} {seconds:6.1f} s  {error.splitlines()[-1] if error else 'ok'}", flush=True)
        return not error

    def run(self, section: Section, folder: Path) -> bool:
        limit = self.within(section.limit)
        if limit < 8:
            return self.note(section, {}, "no time was left", 0.0)
        if not self.o.inline:
            return self.finish(self.start(section, folder), limit)
        began, made, error = time.monotonic(), {}, ""
        try:
            for piece in WORK[section.work](argparse.Namespace(**self.options(section))):
                merge(made, piece)
        except Exception:
            error = traceback.format_exc()
        return self.note(section, rounded(made), error, time.monotonic() - began)

    def together(self, sections: list[Section], folder: Path, limit: float) -> bool:
        """Sections that compile more than they measure, all at once, for at most so many seconds in all."""
        limit = self.within(limit)
        if self.o.inline or limit < 15:
            done = [self.run(each, folder) for each in sections]  # all of them, also after one that failed
            return all(done)
        threads = max(1, (os.cpu_count() or 1) // len(sections))
        running = [self.start(each, folder, threads) for each in sections]
        done = [self.finish(each, limit) for each in running]
        return all(done)

    def warm(self, folder: Path) -> None:
        """Compiles on all cores, then tunes. What was not done in time is done when it is first used."""
        cores = 1 if self.o.quick else os.cpu_count() or 1
        shares = [Section("compiled", f"{own}/{cores}") for own in range(0 if self.o.inline else cores)]
        self.together([*shares, *(Section("pieces", name) for name in self.to_generate())], folder, 150)
        if not self.run(Section("tuned", "", 100), folder):
            self.untuned = True
            self.found["untuned"] = "tuning of the scan failed or took too long: one configuration of each kernel"

    def to_generate(self) -> list[str]:
        """The first model and `small`."""
        return list(dict.fromkeys((self.o.models[0], self.o.models[0] if self.o.quick else "small")))

    def check(self, folder: Path, sections: list[Section]) -> None:
        """Kernels and the whole model; kernels that are wrong once more with another ptxas."""
        self.together(sections, folder, 120)
        parts = self.found.get("kernels", {}).get("parts", {})
        wrong = [part for part, own in parts.items() if miscompiled(own)]
        other = other_ptxas()
        if wrong and other and not self.o.inline:
            first, before = self.found.pop("kernels"), (dict(self.environment), self.untuned)
            self.environment |= {"TRITON_PTXAS_PATH": other, "TRITON_CACHE_DIR": str(folder / "triton")}
            self.untuned = True
            self.together([Section("kernels", part) for part in wrong], folder, 100)
            self.found["kernels_first_try"] = first
            second = self.found.setdefault("kernels", {"parts": {}})
            second["ptxas"] = other
            if all(part in second["parts"] and fine(second["parts"][part]) for part in wrong):
                self.found["untuned"] = "only another ptxas compiles rightly: one configuration of each kernel with it"
            else:
                self.environment, self.untuned = before
        if "kernels" in self.found:
            self.found["kernels"] |= summary(self.found["kernels"]["parts"])
            self.found["kernels"]["ok"] &= all(
                own["ok"] for name, own in self.found["sections"].items() if name.startswith("kernels")
            )
            self.write()


def failures(part: dict[str, Any]) -> list[dict[str, Any]]:
    """What is wrong; a configuration that cannot be launched is not chosen."""
    others = part.get("configurations", {}).values()
    rows = [*part["operations"].values(), *(row for row in others if "OutOfResources" not in row["where"])]
    return [row for row in rows if not row["ok"]]


def fine(part: dict[str, Any]) -> bool:
    return not failures(part)


def miscompiled(part: dict[str, Any]) -> bool:
    """Whether something gave wrong numbers, or a compiler failed, not just an exception of another kind."""
    return any(":" not in row["where"] or "ptxas" in row["where"].lower() for row in failures(part))


def summary(parts: dict[str, Any]) -> dict[str, Any]:
    """The worst of each operation and dtype over all lengths."""
    operations: dict[str, dict[str, Any]] = {}
    for part, own in parts.items():
        for name, row in own["operations"].items():
            dtypes = operations.setdefault(name, {})
            worst = dtypes.setdefault(part.split()[0], row)
            if worst["error"] is not None and (row["error"] is None or row["error"] > worst["error"]):
                dtypes[part.split()[0]] = row
    return {"operations": operations, "ok": all(map(fine, parts.values()))}


def other_ptxas() -> str | None:
    """A ptxas that is not the one inside triton."""
    places = [os.environ.get("CUDA_HOME", "") + "/bin/ptxas", "/usr/local/cuda/bin/ptxas", shutil.which("ptxas") or ""]
    places += [str(path) for folder in sys.path for path in Path(folder).glob("nvidia/*/bin/ptxas")]
    return next((place for place in places if place and Path(place).is_file()), None)


def worker(o: argparse.Namespace) -> int:
    """Does one section; the fragment holds what is known so far, and the last words if there are any."""
    options = argparse.Namespace(**json.loads(o.options))
    made: dict[str, Any] = {}

    def save() -> None:
        partial = Path(f"{o.fragment}.partial")
        partial.write_text(json.dumps(rounded(made)), encoding="utf-8")
        partial.replace(o.fragment)

    try:
        if options.device == "cpu":
            torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 1)))
        if options.untuned:
            one_configuration()
        for piece in WORK[o.worker](options):
            merge(made, piece)
            save()
    except BaseException:
        made["error"] = traceback.format_exc()
        traceback.print_exc()
        save()
        return 1
    return 0


def table(found: dict[str, Any]) -> str:
    """What matters, for a terminal."""
    about = found.get("machine", {})
    lines = [f"{about.get('device')}, torch {found.get('torch')}: "
             f"{about.get('bf16_tflops') or math.nan:.4g} TFLOP/s, "
             f"{about.get('memory_tb_s') or math.nan:.3g} TB/s"]  # fmt: skip
    for name, dtypes in found.get("kernels", {}).get("operations", {}).items():
        each = (f"{dtype} {'ok' if r['ok'] else 'WRONG'} {math.nan if r['error'] is None else r['error']:.1e}"
                for dtype, r in dtypes.items())  # fmt: skip
        lines.append(f"  {name:34} {'   '.join(each)}")
    if "parity" in found:
        lines.append(f"  whole model: {json.dumps(rounded(found['parity']))}")
    lines.append(f"{'training':12} {'kB/s':>9} {'MFU':>7} {'GiB':>7} {'isotropic kB/s':>15} {'MFU':>7} {'ratio':>7}")
    for name, each in found.get("models", {}).items():
        names = "bytes_per_s mfu peak_gib isotropic_bytes_per_s isotropic_mfu mfu_of_isotropic"
        figures = [each.get(key) or math.nan for key in names.split()]
        a, b, c, d, e, f = figures
        lines.append(f"{name:12} {a / 1e3:9.1f} {b:7.3f} {c:7.1f} {d / 1e3:15.1f} {e:7.3f} {f:7.2f}")
    lines.append(f"{'generation':12} {'batch':>6} {'bytes/s':>10} {'eager':>10} {'ratio':>7} {'bound at 1':>11}")
    generated = [found.get("generation", {}), *found.get("generation_of", {}).values()]
    for each in generated:
        for key, own in each.items():
            if key.startswith("batch_"):
                figures = [own.get(k) or math.nan for k in ("bytes_per_s", "eager_bytes_per_s", "of_eager")]
                a, b, c = figures
                bound = each.get("bound_batch_1") or math.nan
                lines.append(f"{each['model']:12} {key[6:]:>6} {a:10.0f} {b:10.0f} {c:7.1f} {bound:11.0f}")
    if "loader" in found:
        lines.append(f"loader {(found['loader'].get('bytes_per_s') or math.nan) / 1e6:.0f} MB/s")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default=os.environ.get("OUT") or str(ROOT / "benchmarks" / "results" / "gpu"))
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--quick", action="store_true", help="tiny models: to test this program")
    parser.add_argument("--seconds", type=float, default=520, help="of the whole")
    parser.add_argument("--measure", type=float, default=6, help="seconds of measuring, each time")
    parser.add_argument("--only", help="sections, separated by commas: warm, kernels, models, ...")
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--data", type=Path, help="a dataset that `hnet prepare` wrote, for loader and training")
    parser.add_argument("--train-seconds", type=float, default=0, help="train for so long in the end (needs --data)")
    parser.add_argument("--inline", action="store_true", help="all in this process: for a debugger")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--fragment", help=argparse.SUPPRESS)
    parser.add_argument("--options", help=argparse.SUPPRESS)
    o = parser.parse_args()
    if o.worker:
        return worker(o)
    runner = Runner(o)
    wanted = o.only.split(",") if o.only else ["warm", *WORK]
    first, *others = o.models
    generated = [Section("generation", name, 90) for name in runner.to_generate()]
    plan = [Section("models", first, 130), generated[0], *(Section("models", name, 75) for name in others[:-1])]
    plan += [Section("loader", "", 40), *generated[1:], *(Section("models", name, 75) for name in others[-1:])]
    if o.train_seconds:
        plan.append(Section("real", "", o.train_seconds + 60))
    checks = [Section("kernels", part, 110) for part in (CHECKS[:1] if o.quick else CHECKS)]
    checks += [Section("parity", part, 110) for part in PARITY]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if "warm" in wanted:
            runner.warm(folder)
        if {"machine", "models", "generation"} & {*wanted}:  # without its rates there is no share of them
            runner.run(Section("machine"), folder)
        if checks := [section for section in checks if section.work in wanted]:
            runner.check(folder, checks)
        for section in plan:
            if section.work in wanted:
                runner.run(section, folder)
    print(table(runner.found))
    print(runner.file)
    return int(not all(each["ok"] for each in runner.found["sections"].values() if isinstance(each, dict)))


if __name__ == "__main__":
    sys.exit(main())
