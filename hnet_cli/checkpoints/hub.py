"""Models of the Hugging Face Hub as `hf:OWNER/NAME`, or `hf:OWNER/NAME@REVISION`; they stay in the library's cache.

Only weights and configurations are fetched, and nothing of them is executed: official releases (`.pt`) are converted by
our own reader, once for each revision.
"""

from __future__ import annotations

import re
from pathlib import Path

from hnet_cli.errors import EnvironmentLimit, HNetError, InputError, UsageError

PREFIX = "hf:"
NAME = re.compile(r"([\w.-]{1,96}/[\w.-]{1,96})(?:@([\w.-][\w./-]{0,199}))?", re.ASCII)
FILES = ["config.json", "model.safetensors", "manifest.json", "tokenizer.json", "*.pt"]


def fetched(reference: str) -> Path:
    """The model folder of a model on the Hub, fetched if this revision is not in the cache.

    Without a network the newest that is in the cache. Raises UsageError for what is no name, InputError for what is not
    on the Hub or not for everybody, EnvironmentLimit where the Hub cannot be reached or the library is missing.
    """
    match = NAME.fullmatch(reference.removeprefix(PREFIX))
    if match is None:
        raise UsageError(f"{reference!r} is no model of the Hub", "give hf:OWNER/NAME, or hf:OWNER/NAME@REVISION")
    name, revision = match.groups()
    try:
        import huggingface_hub
        from huggingface_hub import errors
    except ImportError as error:
        raise EnvironmentLimit("hf: needs the package huggingface_hub", "pip install 'hnet-cli[hub]'") from error
    try:
        folder = Path(huggingface_hub.snapshot_download(name, revision=revision, allow_patterns=FILES))
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError, errors.HFValidationError) as error:
        raise InputError(
            f"the Hub has no {reference}, or not for everybody", "check the name; `hf auth login` shows private models"
        ) from error
    except HNetError:
        raise
    except Exception as error:  # the library's own, its HTTP client's, the system's
        about = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise EnvironmentLimit(f"{reference} cannot be fetched: {about}", "check the network, and try again") from error
    if (folder / "config.json").exists() and (folder / "model.safetensors").exists():
        return folder
    return _converted(huggingface_hub.cached_assets_path("hnet", name, folder.name), folder, reference)


def _converted(target: Path, folder: Path, reference: str) -> Path:
    """The official release in a folder of the cache, as a model folder."""
    from hnet_cli.checkpoints.convert import convert

    model = target / "model"
    if not (model / "config.json").exists():
        if not any(folder.glob("*.pt")):
            raise InputError(f"{reference} holds no H-Net", "it needs config.json and model.safetensors, or a .pt file")
        convert(folder, model)
    return model


def label(folder: Path) -> str | None:
    """The name of a model by its place in the cache; None for another folder."""
    parts = folder.parts
    if len(parts) > 2 and parts[-2] == "snapshots" and parts[-3].startswith("models--"):
        return PREFIX + parts[-3].removeprefix("models--").replace("--", "/")
    if len(parts) > 4 and parts[-1] == "model" and "hnet" in parts[-5:]:
        return PREFIX + parts[-3].replace("--", "/")
    return None
