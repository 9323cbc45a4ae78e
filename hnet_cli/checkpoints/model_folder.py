"""Model folders: `config.json` (official fields) and `model.safetensors` (official names). Nothing is pickled.

A `manifest.json` with sizes and SHA-256 stands beside; a folder appears under its name in one rename.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import torch

from hnet_cli import provenance, storage
from hnet_cli.checkpoints import hub
from hnet_cli.checkpoints.safetensors_file import elements, open_safetensors, write_safetensors
from hnet_cli.checkpoints.torch_file import Stored
from hnet_cli.data import tokens
from hnet_cli.errors import DamagedError, UsageError
from hnet_cli.model import HNetConfig, HNetForCausalLM
from hnet_cli.model.init import skeleton, stays_float32
from hnet_cli.storage import HeldFile, shown
from hnet_cli.storage.reading import reason

if TYPE_CHECKING:
    from hnet_cli.inference.chunk_objects import Chunks
    from hnet_cli.inference.embed import Embedding

STARTERS = Path(__file__).parents[1] / "starters"
MODEL_FILES = ("config.json", "model.safetensors")
MODEL_TYPE = "hnet"
"""In the config.json of a model folder, for the library `transformers`."""
WIDENED = 1 << 29
"""Bytes of half-precision weights up to which a model is computed in float32: there it is exact, and memory is no
concern."""
Read = Callable[[torch.Tensor], torch.Tensor]
Weights = dict[str, Stored]
HEAD, EMBEDDING = "lm_head.weight", "embeddings.weight"
FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
Numbers = float | Sequence[float] | None
"""One for all learned stages (of lengths: for the innermost), or one for each, outermost first; None: as it is."""


class LoadedModel(HNetForCausalLM):
    """An `HNetForCausalLM` with the folder it was read from."""

    source: Path
    """The model folder."""

    @property
    def modality(self) -> str | None:
        """Name of the modality it was trained on; None if unknown, as in a converted official model."""
        return self.config.extra.get("modality")

    @property
    def label(self) -> str:
        """The model's name for people: starter:text, or a run and its step."""
        folder = self.source
        if folder.parent == STARTERS:
            return f"starter:{folder.name}"
        if name := hub.label(folder):
            return name
        return f"{folder.parent.parent.name}, {folder.name}" if folder.parent.name == "checkpoints" else folder.name

    def segment(
        self, data: bytes | str, stage: int = 0, *, threshold: Numbers = None, bytes_per_chunk: Numbers = None
    ) -> list[bytes]:
        """The learned chunks of `data` at a stage (0 = outermost); joined they are `data`.

        Text is read as UTF-8. `threshold` or `bytes_per_chunk`, for this call, as the options of the commands: so in
        every call of this class. Raises UsageError.
        """
        from hnet_cli.inference.segment import segment_bytes
        from hnet_cli.inference.thresholds import Compression

        return segment_bytes(self, _bytes(data), stage, Compression.of(threshold, bytes_per_chunk))

    def chunks(
        self,
        data: bytes | str,
        stage: int = 0,
        *,
        threshold: Numbers = None,
        bytes_per_chunk: Numbers = None,
    ) -> Chunks:
        """The learned chunks of a document as objects with text, place, probability and bits; coloured in a notebook.

        Offsets are those of bytes, text being read as UTF-8. Options as those of `segment`.
        Raises UsageError, NumericalError.
        """
        from hnet_cli.inference.chunk_objects import chunks_of
        from hnet_cli.inference.thresholds import Compression

        return chunks_of(self, _bytes(data), stage, Compression.of(threshold, bytes_per_chunk))

    @overload
    def sample(self, prompt: str = ..., n: None = ..., **options: Any) -> str: ...

    @overload
    def sample(self, prompt: bytes, n: None = ..., **options: Any) -> bytes: ...

    @overload
    def sample(self, prompt: str = ..., *, n: int, **options: Any) -> list[str]: ...

    @overload
    def sample(self, prompt: bytes, n: int, **options: Any) -> list[bytes]: ...

    def sample(
        self,
        prompt: str | bytes = "",
        n: int | None = None,
        *,
        threshold: Numbers = None,
        bytes_per_chunk: Numbers = None,
        **options: Any,
    ) -> str | bytes | list[str] | list[bytes]:
        """The continuation of a prompt, without it; with `n` a list of so many. Text for text, bytes for bytes.

        `options` as those of `hnet sample`, whose bytes these are: max_bytes, temperature, top_k, top_p, seed. Always
        valid for the modality. Raises UsageError, NumericalError.
        """
        from hnet_cli.inference.generate import continuations
        from hnet_cli.inference.thresholds import Compression

        compression = Compression.of(threshold, bytes_per_chunk)
        found = continuations(self, _bytes(prompt), 1 if n is None else n, compression, **options)
        if isinstance(prompt, str):
            texts = [data.decode("utf-8", "replace") for data in found]
            return texts[0] if n is None else texts
        return found[0] if n is None else found

    def bits(self, data: bytes | str, *, threshold: Numbers = None, bytes_per_chunk: Numbers = None) -> float:
        """The bits of a document, -log2 P: the sum of `score`. Raises UsageError, NumericalError."""
        return float(self.score(data, threshold=threshold, bytes_per_chunk=bytes_per_chunk).sum())

    def __repr__(self) -> str:
        config = self.config
        stages = f"{config.num_stages} stage{'s' * (config.num_stages != 1)}"
        device = self.embeddings.weight.device
        return (
            f"<{self.label}: {self.modality or 'bytes'}, {config.num_parameters:,} parameters, {stages}, on {device}>"
        )

    @overload  # a text is a sequence of texts to a type checker
    def score(  # type: ignore[overload-overlap]
        self,
        data: bytes | str,
        *,
        context: int | None = ...,
        stride: int | None = ...,
        both_strands: bool = ...,
        threshold: Numbers = ...,
        bytes_per_chunk: Numbers = ...,
    ) -> np.ndarray: ...

    @overload
    def score(
        self,
        data: Sequence[bytes | str],
        *,
        context: int | None = ...,
        stride: int | None = ...,
        both_strands: bool = ...,
        threshold: Numbers = ...,
        bytes_per_chunk: Numbers = ...,
    ) -> list[np.ndarray]: ...

    def score(
        self,
        data: bytes | str | Sequence[bytes | str],
        *,
        context: int | None = None,
        stride: int | None = None,
        both_strands: bool = False,
        threshold: Numbers = None,
        bytes_per_chunk: Numbers = None,
    ) -> np.ndarray | list[np.ndarray]:
        """The bits of every byte of a document, (n,) float64: their sum is the document's. Of a list, a list.

        Text is read as UTF-8. Options as those of `hnet score`. Raises UsageError, NumericalError.
        """
        from hnet_cli.inference.score import ScoreRequest, score_bytes
        from hnet_cli.inference.thresholds import Compression

        several = [data] if isinstance(data, bytes | str) else data
        documents = list(map(_bytes, several))
        request = ScoreRequest(context=context, stride=stride, both_strands=both_strands)
        bits = score_bytes(self, documents, request, Compression.of(threshold, bytes_per_chunk))
        return bits[0] if isinstance(data, bytes | str) else bits

    def embed(
        self,
        data: bytes | str | Sequence[bytes | str],
        per: str = "document",
        stage: int = 0,
        layer: str = "decoder",
        pool: str = "mean",
        *,
        window: int | None = None,
        dtype: str = "float32",
        carry: bool = False,
        threshold: Numbers = None,
        bytes_per_chunk: Numbers = None,
    ) -> Embedding:
        """The vectors of one document, or of several at once; the options of `hnet embed`.

        Of the result, `vectors` is (N, D), in the order of the documents, with `document`, `start` and `end` (N,).
        """
        from hnet_cli.inference.embed import Wanted, embed_bytes
        from hnet_cli.inference.thresholds import Compression

        wanted, compression = Wanted(per, stage, layer, pool, window, dtype), Compression.of(threshold, bytes_per_chunk)
        return embed_bytes(self, data, wanted, carry, compression)


def _bytes(text: bytes | str) -> bytes:
    """Text as UTF-8. Raises UsageError for half a surrogate pair."""
    try:
        return text.encode("utf-8", "surrogateescape") if isinstance(text, str) else text
    except UnicodeEncodeError as error:
        half = f"character {error.start} of the text is half a surrogate pair, {text[error.start]!a}"
        raise UsageError(half, "give bytes, or mend the text") from error


def save_model(
    folder: Path,
    model: HNetForCausalLM,
    extra: Mapping[str, Any],
    target_ratios: list[float],
    read: Read = lambda tensor: tensor,
) -> dict[str, dict[str, Any]]:
    """Write `config.json` and `model.safetensors` into a folder being staged; returns the latter's manifest entry.

    `read` returns the whole of a tensor of the model's state when its turn comes.
    """
    config = model.config.to_dict() | {"model_type": MODEL_TYPE}
    made = provenance.after(provenance.made(), config.get("hnet"))
    config["hnet"] = config.get("hnet", {}) | {"target_ratios": target_ratios, "made": made} | dict(extra)
    if model.tokenizer is not None:
        config["hnet"]["tokenizer"] = tokens.FILE
        storage.write_text(folder / tokens.FILE, model.tokenizer.text)
    storage.write_json(folder / "config.json", config)
    return write_tensors(folder / "model.safetensors", weights_of(model), {"format": "pt"}, read)


def weights_of(model: HNetForCausalLM) -> dict[str, torch.Tensor]:
    tensors = model.state_dict()
    if model.config.tie_embeddings:
        tensors.pop("lm_head.weight", None)
    return tensors


def write_tensors(
    path: Path,
    tensors: Mapping[str, torch.Tensor],
    metadata: Mapping[str, str] | None = None,
    read: Read = lambda tensor: tensor,
) -> dict[str, dict[str, Any]]:
    with storage.NewFile(path) as file:
        write_safetensors(file, tensors, read, metadata)
    return {path.name: file.entry}


def read_config(folder: Path) -> HNetConfig:
    """The architecture of a model folder. Raises DamagedError naming the field."""
    try:
        return HNetConfig.from_dict(read_json(folder / "config.json"))
    except (ValueError, TypeError) as error:
        raise DamagedError(f"{shown(folder / 'config.json')}: {reason(error)}") from error


def read_tensors(path: Path) -> Weights:
    """The tensors of a file in a folder of ours, not yet read. Raises DamagedError, StorageError."""
    return open_safetensors(HeldFile(path))


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file of a folder. Raises DamagedError, StorageError."""
    try:
        return storage.read_json(path)
    except FileNotFoundError as error:
        raise DamagedError(f"{shown(path.parent)} has no {path.name}", "the folder is incomplete") from error


def expected_shapes(settings: HNetConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the state dict, in its order, without allocating it."""
    model = skeleton(HNetForCausalLM, settings)
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def checked(weights: Weights, settings: HNetConfig, file: Path, origin: str, hint: str = "") -> Weights:
    """The weights in the order of the state dict. Raises DamagedError unless names, shapes and dtypes fit.

    A model is built, without values, only if the file can fill it: sizes in a configuration are claims.
    """
    if settings.tie_embeddings and EMBEDDING in weights:
        weights.setdefault(HEAD, weights[EMBEDDING])
    held, layers = elements(weights), sum(len(level.letters) for level in settings.levels)
    if settings.num_parameters > 2 * held + 1_000_000 or layers > 2 * len(weights) + 100:
        raise DamagedError(
            f"{shown(file)} does not fit {origin}: {held:,} parameters, not {settings.num_parameters:,}", hint
        )
    wanted = expected_shapes(settings)
    problems = [
        ("missing", [f"{name[:100]!a}" for name in wanted if name not in weights]),
        ("unexpected", [f"{name[:100]!a}" for name in weights if name not in wanted]),
        (
            "of another shape",
            [
                f"{name[:100]!a} is {list(weights[name].shape)}, not {list(shape)}"
                for name, shape in wanted.items()
                if name in weights and weights[name].shape != shape
            ],
        ),
        ("not of a float dtype", [f"{name[:100]!a}" for name, s in weights.items() if s.dtype not in FLOATS]),
    ]
    reports = [
        f"{len(names)} {what} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
        for what, names in problems
        if names
    ]
    if reports:
        raise DamagedError(f"{shown(file)} does not fit {origin}: {'; '.join(reports)}", hint)
    head, table = (weights[name] for name in (HEAD, EMBEDDING))
    if settings.tie_embeddings and head is not table and not torch.equal(head.read(), table.read()):
        raise DamagedError(f"{shown(file)} does not fit {origin}: embeddings are tied, but the output layer differs")
    return {name: weights[name] for name in wanted}


def load_folder(
    folder: Path, device: str | torch.device = "cpu", kernels: str = "auto", dtype: torch.dtype | None = None
) -> LoadedModel:
    """The model in a model folder, in evaluation mode. Raises DamagedError naming the file and the fault.

    `dtype` of the weights: by default float32, and bfloat16 for what is larger than `WIDENED`; the residual projections
    and Mamba's D are float32, as in the release. Shapes are checked before anything is read.
    """
    weights = HeldFile(folder / "model.safetensors")
    if os.path.lexists(folder / storage.MANIFEST):
        entries = storage.verify_folder(folder, ("config.json", tokens.FILE))["files"]
        if weights.path.name in entries:
            weights.verify(entries[weights.path.name])
    config = read_config(folder)
    stored = checked(open_safetensors(weights), config, weights.path, "its config.json")
    model = skeleton(LoadedModel, config)
    if dtype is None:
        halves = sum(2 * math.prod(each.shape) for each in stored.values() if each.dtype.itemsize == 2)
        dtype = torch.bfloat16 if halves > WIDENED else torch.float32
    model.load_state_dict(
        {
            name: each.read().to(device, torch.float32 if stays_float32(name) else dtype)
            for name, each in stored.items()
        },
        assign=True,
    )
    if config.tie_embeddings:
        model.lm_head.weight = model.embeddings.weight
    model.backend = kernels
    model.source = folder
    if config.extra.get("tokenizer"):
        model.tokenizer = tokens.of_model(folder, config.vocab_size)
    return model.eval()
