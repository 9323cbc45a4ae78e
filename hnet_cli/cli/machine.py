"""Answers about this machine as plain data for JSON: hardware, torch, kernels, packages, modalities, presets.

Nothing here may fail because something else does: an answer that cannot be had is {"error": its reason}.
"""

from __future__ import annotations

import dataclasses
import os
import platform
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, entry_points, version
from pathlib import Path
from typing import Any

import hnet_cli
from hnet_cli import modality as modalities
from hnet_cli import storage
from hnet_cli.config.presets import shipped
from hnet_cli.config.run import resolve
from hnet_cli.contract import check_modality
from hnet_cli.distributed.device import cpu_memory, mps_memory, this_machine, total_memory
from hnet_cli.distributed.threads import cpus, meter
from hnet_cli.errors import EnvironmentLimit, HNetError
from hnet_cli.training import budget

Json = dict[str, Any]
OPTIONAL = {
    "tokenizers": ("bpe", "models of tokens: `compare` with a BPE Transformer, `retrofit`"),
    "pyarrow": ("parquet", "reads .parquet"),
    "fsspec": ("remote", "reads URLs; s3:// and gs:// want s3fs and gcsfs besides"),
    "aiohttp": ("remote", "reads http:// and https:// URLs"),
    "requests": ("remote", "reads hf:// and some other URLs"),
    "jieba": ("chinese", "words in `segment` and `eval` of Chinese"),
    "isal": ("fast", "reads gzip three times as fast"),
    "pysam": ("tabix", "an index beside .bed.gz tracks"),
    "pyBigWig": ("bigwig", "`segment --format bigwig`"),
    "igv-notebook": ("igv", "`segment --format igv`: igv.js in one page"),
    "scikit-learn": ("probe", "linear probes: `eval --probe`"),
    "tensorboard": ("tensorboard", "`train --tensorboard`"),
    "huggingface-hub": ("hub", "models of the Hugging Face Hub: hf:OWNER/NAME"),
    "transformers": ("transformers", "models under AutoModelForCausalLM"),
    "lm-eval": ("harness", "evaluation by lm-evaluation-harness"),
    "triton": ("", "compiles GPU kernels; comes with torch for CUDA"),
    "mamba-ssm": ("", "fast Mamba-2 on a GPU: docs/gpu.md"),
    "einops": ("gpu", "needed by mamba-ssm"),
    "flash-attn": ("", "fast attention on a GPU, where torch is older than 2.11: docs/gpu.md"),
    "causal-conv1d": ("", "fast convolution on a GPU: docs/gpu.md"),
}
"""Packages that widen what the tool can do: the extra of hnet-cli that brings each, and what for."""


def report(check: bool = False) -> Json:
    """All answers; sizes in bytes. `check` also compares every kernel with the reference here."""
    questions: dict[str, Callable[[], Any]] = {
        "torch": _torch,
        "cpu": _cpu,
        "memory": _memory,
        "gpus": lambda: list(_gpus()),
        "disk": lambda: {"folder": os.getcwd(), "free": storage.free_bytes(Path.cwd())},
        "kernels": _kernels,
        "packages": lambda: [
            {"name": name, "version": _version(name), "extra": extra, "purpose": purpose}
            for name, (extra, purpose) in OPTIONAL.items()
        ],
        "modalities": installed_modalities,
        "presets": _presets,
        "first": _first,
    }
    if check:
        questions["check"] = _check
    system = {"version": platform.python_version(), "system": f"{platform.system()} {platform.machine()}"}
    answers = {name: _answer(question) for name, question in questions.items()}
    answers = {"hnet": hnet_cli.__version__, "python": system} | answers
    return answers | {"verdict": verdict(answers)}


def verdict(answers: Json) -> Json:
    """Verdict on this machine, {"ok": .., "text": ..}: the first thing that is wrong, or what to do next."""
    for part in ("torch", "modalities", "first", "gpus", "kernels"):
        if isinstance(answers[part], dict) and (error := answers[part].get("error")):
            return {"ok": False, "text": f"{part}: {error}"}
    for modality in answers["modalities"]:
        if modality["problems"]:
            text = f"the modality {modality['name']} of {modality['package']}: {'; '.join(modality['problems'])}"
            return {"ok": False, "text": text}
    if not (fitting := [row for row in answers["first"] if row["fits"]]):
        return {"ok": False, "text": "no preset fits into the memory that is free: close other programs"}
    device = "its GPU" if answers["gpus"] and fitting[0]["device"] != "cpu" else "its CPU"
    text = f"hnet works here, on {device}. Begin with `hnet quickstart`, or `hnet prepare FILE...` and `hnet train`"
    return {"ok": True, "text": text}


def _answer(question: Callable[[], Any]) -> Any:
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


def _torch() -> Json:
    import torch

    distributed = torch.distributed
    backends = [
        n for n in ("nccl", "gloo") if distributed.is_available() and getattr(distributed, f"is_{n}_available")()
    ]
    threads = torch.get_num_threads()
    return {"version": torch.__version__, "cuda": torch.version.cuda, "threads": threads, "distributed": backends}


def _proc(path: str) -> dict[str, str]:
    """The first value of each key of a file such as /proc/cpuinfo; empty where there is none."""
    try:
        lines = Path(path).read_text(errors="replace").splitlines()
    except OSError:
        return {}
    pairs = (line.partition(":") for line in reversed(lines))
    return {key.strip(): value.strip() for key, colon, value in pairs if colon}


def _cpu() -> Json:
    info = _proc("/proc/cpuinfo")
    flags = set(info.get("flags", info.get("Features", "")).split())
    return {
        "name": info.get("model name") or platform.processor() or platform.machine(),
        "cores": cpus(),
        "others": meter.others(),
        "avx512": "avx512f" in flags,
        "bf16": bool(flags & {"avx512_bf16", "amx_bf16", "bf16"}),
        "amx": "amx_bf16" in flags,
    }


def _memory() -> dict[str, int]:
    return {"total": total_memory(), "available": cpu_memory()}


def _gpus() -> Iterator[Json]:
    import torch

    if (memory := mps_memory()) is not None:
        total = torch.mps.recommended_max_memory()
        yield {"name": "Apple GPU", "memory": total, "free": memory, "capability": None}
    elif not torch.cuda.is_available() and (Path("/dev/nvidiactl").exists() or Path("/dev/dxg").exists()):
        why = "cannot use it" if torch.version.cuda else "is built for the CPU only"
        raise EnvironmentLimit(f"there is an NVIDIA device, but this torch {why}", "see https://pytorch.org")
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        properties = torch.cuda.get_device_properties(index)
        free, total = torch.cuda.mem_get_info(index)
        capability = f"{properties.major}.{properties.minor}"
        yield {"name": properties.name, "memory": total, "free": free, "capability": capability}


def _kernels() -> list[Json]:
    from hnet_cli import kernels

    return [dataclasses.asdict(row) for row in kernels.report()]


def _check() -> list[Json]:
    import torch

    from hnet_cli import kernels

    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    return [{"device": device, **dataclasses.asdict(row)} for device in devices for row in kernels.check(device)]


def installed_modalities() -> list[Json]:
    """Each installed plugin with its package and its problems; two of one name are both listed."""
    points, rows = entry_points(group=modalities.GROUP), []
    names = [point.name for point in points]
    for point in sorted(set(points), key=lambda p: (p.name, p.value)):
        row = {"name": point.name, "summary": "", "class": point.value, "problems": list[str]()}
        row["package"] = f"{point.dist.name} {point.dist.version}" if point.dist else "?"
        try:
            if names.count(point.name) > 1:
                modalities.names()  # raises, naming both packages
            plugin = point.load()()
            row |= {"summary": str(getattr(plugin, "summary", "")), "problems": check_modality(plugin)}
        except HNetError as error:
            row["problems"] = [str(error)]
        except Exception as error:
            row["problems"] = [f"cannot be loaded: {type(error).__name__}: {error}"]
        rows.append(row)
    return rows


def _presets() -> list[Json]:
    here = this_machine()
    plans = {name: resolve(name) for name in shipped()}
    return [
        {
            "name": name,
            "group": shipped()[name].group,
            "parameters": plan.model.num_parameters,
            "device": here.device,
            "memory": budget.needs(plan, lean=budget.is_lean(plan, here.device)).memory,
            "fits": budget.fits(plan, here),
        }
        for name, plan in sorted(plans.items(), key=lambda item: item[1].model.num_parameters)
    ]


def _first() -> list[Json]:
    """Preset by modality that `hnet train` takes here, or a smaller one that fits."""
    here, rows = this_machine(), []
    for row in installed_modalities():
        if not row["problems"]:
            presets = modalities.get(row["name"]).presets
            names = [presets[size] for size in ("small", "nano") if size == "nano" or here.device != "cpu"]
            fitting = [name for name in names if budget.fits(resolve(name), here)]
            name = fitting[0] if fitting else names[-1]
            command = "hnet train" + (f" --preset {name}" if name != names[0] else "")
            rows.append(
                {
                    "modality": row["name"],
                    "preset": name,
                    "device": here.device,
                    "fits": bool(fitting),
                    "command": f"hnet prepare --modality {row['name']} FILE... && {command}",
                }
            )
    return rows
