"""What this machine will run, and why: hardware, torch, kernels, optional packages, modalities, presets that fit.

Nothing here may fail because something else does: whatever cannot be asked is reported with its reason.
"""

from __future__ import annotations

import dataclasses
import json
import os
import platform
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, entry_points, version
from pathlib import Path
from typing import Any

import hnet_cli
from hnet_cli import modality as modalities
from hnet_cli import storage
from hnet_cli.config.presets import preset_names
from hnet_cli.config.run import resolve
from hnet_cli.contract import check_modality
from hnet_cli.errors import EnvironmentLimit, HNetError
from hnet_cli.terminal.console import show_data, size, table
from hnet_cli.training import budget

OPTIONAL = {
    "triton": "compiles GPU kernels",
    "mamba-ssm": "fast Mamba-2 on a GPU",
    "flash-attn": "fast attention on a GPU, where torch has no varlen attention",
    "causal-conv1d": "fast convolution on a GPU",
    "pyarrow": "reads .parquet",
    "jieba": "words in `segment` and `eval` of Chinese",
}
"""Packages that widen what the tool can do, and what for."""


def run(check: bool = False, as_json: bool = False) -> None:
    """Print the report on standard output. Raises EnvironmentLimit where `check` finds a kernel that is wrong."""
    found = report(check)
    if as_json:
        print(json.dumps(found, ensure_ascii=False), flush=True)
    else:
        show_data(render(found))
    raise_on_failure(found)


def report(check: bool = False) -> dict[str, Any]:
    """Everything as plain data for JSON; sizes in bytes. `check` also compares every kernel with the reference here."""
    found: dict[str, Any] = {
        "hnet": hnet_cli.__version__,
        "python": {"version": platform.python_version(), "system": f"{platform.system()} {platform.machine()}"},
        "torch": _told(_torch),
        "cpu": _told(_cpu),
        "memory": _told(_memory),
        "gpus": _told(_gpus),
        "disk": {"folder": os.getcwd(), "free": storage.free_bytes(Path.cwd())},
        "kernels": _told(_kernels),
        "packages": [{"name": n, "version": _version(n), "purpose": purpose} for n, purpose in OPTIONAL.items()],
        "modalities": _told(installed_modalities),
        "presets": _told(_presets),
    }
    if check:
        found["check"] = _told(_check)
    return found


def raise_on_failure(found: dict[str, Any]) -> None:
    """Raise EnvironmentLimit naming the kernels whose comparison with the reference failed."""
    rows = found.get("check", [])
    if isinstance(rows, dict):
        raise EnvironmentLimit(f"the kernels could not be compared: {rows['error']}")
    wrong = [f"{row.get('op')} ({row.get('backend')})" for row in rows if not row.get("ok", True)]
    if wrong:
        raise EnvironmentLimit(
            f"these kernels do not compute what the reference does: {', '.join(wrong)}",
            "train with `--set kernels=reference`, and update the package they come from",
        )


def _told(question: Callable[[], Any]) -> Any:
    """The answer, or {"error": why there is none}: a broken part must not hide the others."""
    try:
        return question()
    except HNetError as error:
        return {"error": f"{error}" + (f" ({error.hint})" if error.hint else "")}
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


# --- the machine ------------------------------------------------------------------------------------------------------


def _torch() -> dict[str, Any]:
    import torch

    talk = torch.distributed
    means = [name for name in ("nccl", "gloo") if talk.is_available() and getattr(talk, f"is_{name}_available")()]
    return {"version": torch.__version__, "cuda": torch.version.cuda, "threads": torch.get_num_threads(),
            "distributed": means}  # fmt: skip


def _proc(path: str) -> dict[str, str]:
    """The first value of each key of a file such as /proc/cpuinfo; empty where there is none."""
    try:
        lines = Path(path).read_text(errors="replace").splitlines()
    except OSError:
        return {}
    pairs = (line.partition(":") for line in reversed(lines))
    return {key.strip(): value.strip() for key, colon, value in pairs if colon}


def _cpu() -> dict[str, Any]:
    info = _proc("/proc/cpuinfo")
    flags = set(info.get("flags", info.get("Features", "")).split())
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "name": info.get("model name") or platform.processor() or platform.machine(),
        "cores": cores,
        "avx512": "avx512f" in flags,
        "bf16": bool(flags & {"avx512_bf16", "amx_bf16", "bf16"}),
        "amx": "amx_bf16" in flags,
    }


def _memory() -> dict[str, int]:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for limit in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            total = min(total, int(Path(limit).read_text()))
        except (OSError, ValueError):
            continue
    return {"total": total, "available": budget.cpu_memory()}


def _gpus() -> list[dict[str, Any]]:
    import torch

    memory = budget.mps_memory()
    if memory is not None:
        total = torch.mps.recommended_max_memory()
        return [{"name": "Apple GPU", "memory": total, "free": memory, "capability": None}]
    if not torch.cuda.is_available():
        if Path("/dev/nvidiactl").exists() or Path("/dev/dxg").exists():
            why = "cannot use it" if torch.version.cuda else "is built for the CPU only"
            raise EnvironmentLimit(f"there is an NVIDIA device, but this torch {why}", "see https://pytorch.org")
        return []
    found = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        free, total = torch.cuda.mem_get_info(index)
        capability = f"{properties.major}.{properties.minor}"
        found.append({"name": properties.name, "memory": total, "free": free, "capability": capability})
    return found


# --- the software -----------------------------------------------------------------------------------------------------


def _row(row: Any) -> dict[str, Any]:
    return dataclasses.asdict(row) if dataclasses.is_dataclass(row) and not isinstance(row, type) else dict(row)


def _kernels() -> list[dict[str, Any]]:
    from hnet_cli import kernels

    return [_row(row) for row in kernels.report()]


def _check() -> list[dict[str, Any]]:
    import torch

    from hnet_cli import kernels

    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    return [{"device": device, **_row(row)} for device in devices for row in kernels.check(device)]


def installed_modalities() -> list[dict[str, Any]]:
    """Each installed plugin with its package and what is wrong with it; two of one name are both listed."""
    listed = []
    names = [point.name for point in entry_points(group=modalities.GROUP)]
    for point in sorted(set(entry_points(group=modalities.GROUP)), key=lambda p: (p.name, p.value)):
        row: dict[str, Any] = {"name": point.name, "summary": "", "class": point.value, "problems": []}
        row["package"] = f"{point.dist.name} {point.dist.version}" if point.dist else "?"
        try:
            if names.count(point.name) > 1:
                modalities.names()  # raises, naming both packages
            plugin = point.load()()
            row["summary"] = str(getattr(plugin, "summary", ""))
            row["problems"] = check_modality(plugin)
        except HNetError as error:
            row["problems"] = [str(error)]
        except Exception as error:
            row["problems"] = [f"cannot be loaded: {type(error).__name__}: {error}"]
        listed.append(row)
    return listed


def _presets() -> list[dict[str, Any]]:
    here = budget.machine()
    plans = {name: resolve(name) for name in preset_names()}
    return [
        {"name": name, "parameters": plan.model.num_parameters, "device": here.device,
         "memory": budget.needs(plan, lean=budget.is_lean(plan, here.device)).memory,
         "fits": budget.fits(plan, here)}
        for name, plan in sorted(plans.items(), key=lambda item: item[1].model.num_parameters)
    ]  # fmt: skip


# --- for people -------------------------------------------------------------------------------------------------------


def render(found: dict[str, Any]) -> Any:
    """The report as something Rich prints."""
    from rich.console import Group
    from rich.markup import escape
    from rich.padding import Padding
    from rich.text import Text

    def part(title: str, rows: Any, line: Callable[[dict[str, Any]], list[str]], empty: str = "none") -> list[Any]:
        head = Text(f"\n{title}", style="bold")
        if isinstance(rows, dict):
            return [head, Text(f"  {rows['error']}", style="red")]
        if not rows:
            return [head, Text(f"  {empty}")]
        grid = table(*[""] * len(line(rows[0])))
        grid.show_header = False
        for column in grid.columns:
            column.justify = "left"
        for row in rows:
            grid.add_row(*line(row))
        return [head, Padding(grid, (0, 0, 0, 2))]

    def told(answer: dict[str, Any], text: Callable[[dict[str, Any]], str]) -> str:
        return escape(answer["error"] if "error" in answer else text(answer))

    def yes(value: bool) -> str:
        return "[green]yes[/]" if value else "[dim]no[/]"

    def cpu(answer: dict[str, Any]) -> str:
        able = [name for name in ("avx512", "bf16", "amx") if answer[name]]
        return f"{answer['name']}, {answer['cores']} cores" + (f", {', '.join(able)}" if able else "")

    def about(row: dict[str, Any]) -> str:
        return f"[red]{escape('; '.join(row['problems']))}[/]" if row["problems"] else escape(row["summary"])

    facts = {
        "hnet": f"{found['hnet']}, Python {found['python']['version']}, {found['python']['system']}",
        "torch": told(
            found["torch"],
            lambda t: (
                f"{t['version']}, CUDA {t['cuda'] or 'no'}, {t['threads']} threads, "
                f"ranks over {' and '.join(t['distributed']) or 'nothing'}"
            ),
        ),
        "CPU": told(found["cpu"], cpu),
        "memory": told(found["memory"], lambda m: f"{size(m['available'])} available of {size(m['total'])}"),
        "disk": f"{size(found['disk']['free'])} free here",
    }
    parts = [
        part("This machine", [{"of": n, "is": fact} for n, fact in facts.items()], lambda row: [row["of"], row["is"]]),
        part("GPU", found["gpus"], lambda g: [escape(g["name"]), f"{size(g['free'])} free of {size(g['memory'])}",
                                              f"compute capability {g['capability']}" if g["capability"] else "Metal"]),
        part("Kernels", found["kernels"], lambda k: [k["op"], k["backend"], str(k.get("version") or ""),
                                                     yes(k["available"]), escape(str(k.get("reason") or ""))]),
        part("Optional packages", found["packages"], lambda p: [p["name"], p["version"] or "[dim]no[/]", p["purpose"]]),
        part("Modalities", found["modalities"], lambda m: [m["name"], escape(m["package"]), about(m)]),
        part("Presets that fit for training", found["presets"],
             lambda p: [p["name"], size(p["memory"]), yes(p["fits"])]),
    ]  # fmt: skip
    if "check" in found:
        compared = part("Comparison with the reference", found["check"], lambda c: [
            str(c.get("device", "")), str(c.get("op", "")), str(c.get("backend", "")), escape(str(c.get("error", ""))),
            "[green]ok[/]" if c.get("ok") else "[red]WRONG[/]"], empty="nothing to compare")  # fmt: skip
        parts.append(compared)
    return Group(*(item for items in parts for item in items))
