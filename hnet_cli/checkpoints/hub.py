"""Models of the Hugging Face Hub as `hf:OWNER/NAME`, or `hf:OWNER/NAME@REVISION`; they stay in the library's cache.

Only weights and configurations are fetched, and nothing of them is executed: official releases (`.pt`) are converted by
our own reader, once for each revision.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hnet_cli.errors import EnvironmentLimit, HNetError, InputError, UsageError

PREFIX = "hf:"
NAME = re.compile(r"([\w.-]{1,96}/[\w.-]{1,96})(?:@([\w.-][\w./-]{0,199}))?", re.ASCII)
FILES = ["config.json", "model.safetensors", "manifest.json", "tokenizer.json", "*.pt"]


def fetched(reference: str) -> Path:
    """The model folder of a model on the Hub, fetched if this revision is not in the cache.

    Without a network the newest that is in the cache. Raises UsageError for what is no name, InputError for what is not
    on the Hub or not for everybody, EnvironmentLimit where the Hub cannot be reached or the library is missing.
    """
    name, revision = _named(reference)
    with _hub(reference) as library:
        folder = Path(library.snapshot_download(name, revision=revision, allow_patterns=FILES))
        if (folder / "config.json").exists() and (folder / "model.safetensors").exists():
            return folder
        assets = library.cached_assets_path("hnet", name, folder.name)
    return _converted(assets, folder, reference)


def place(reference: str) -> str:
    """OWNER/NAME of a place on the Hub to put a model at. Raises UsageError for what is no such name, EnvironmentLimit
    where the library is missing."""
    name, revision = _named(reference)
    if revision is not None:
        raise UsageError(f"{reference} names a revision, which the Hub makes itself", f"give hf:{name}")
    with _hub(reference):
        return name


def sent(folder: Path, reference: str) -> str:
    """Put a folder onto the Hub as hf:OWNER/NAME, a model that is made there if it is missing; its address.

    Raises as `place`, InputError where the Hub does not let this user write, EnvironmentLimit where it cannot be
    reached.
    """
    name = place(reference)
    with _hub(reference) as library:
        api = library.HfApi()
        address = api.create_repo(name, exist_ok=True)
        api.upload_folder(repo_id=name, folder_path=folder, commit_message="hnet publish")
    return str(address)


def _named(reference: str) -> tuple[str, str | None]:
    match = NAME.fullmatch(reference.removeprefix(PREFIX)) if reference.startswith(PREFIX) else None
    if match is None:
        raise UsageError(f"{reference!r} is no model of the Hub", "give hf:OWNER/NAME, or hf:OWNER/NAME@REVISION")
    return match[1], match[2]


@contextlib.contextmanager
def _hub(reference: str) -> Iterator[Any]:
    """The library, its errors in the words of ours."""
    try:
        import huggingface_hub
        from huggingface_hub import errors
    except ImportError as error:
        raise EnvironmentLimit("hf: needs the package huggingface_hub", "pip install 'hnet-cli[hub]'") from error
    try:
        yield huggingface_hub
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError, errors.HFValidationError) as error:
        hint = "check the name; `hf auth login` opens your own"
        raise InputError(f"the Hub has no {reference}, or not for everybody", hint) from error
    except HNetError:
        raise
    except Exception as error:  # the library's own, its HTTP client's, the system's
        about = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        if getattr(getattr(error, "response", None), "status_code", None) in (401, 403):
            raise InputError(
                f"the Hub refuses {reference}: {about}", "`hf auth login` with a token that may"
            ) from error
        raise EnvironmentLimit(f"{reference}: the Hub fails: {about}", "check the network, and try again") from error


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
    if len(parts) > 4 and (parts[-1], parts[-4]) == ("model", "hnet") and re.fullmatch("[0-9a-f]{40}", parts[-2]):
        return PREFIX + parts[-3].replace("--", "/")
    return None
