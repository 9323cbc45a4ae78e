"""The configuration of an H-Net in numbers: layout, widths, parameter count, FLOPs. No torch in here.

The JSON fields are those of the official release (goombalab/hnet), so its configuration files load as they are; what
this project adds lives under the one key "hnet".

Words: *level* 0 is the byte level; *stage* s is the chunking step from level s to level s+1; a model of S stages has
S+1 levels. Lists such as `d_model` have one entry per level.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from hnet_cli import storage
from hnet_cli.model.settings import (
    AttnConfig,
    Chunker,
    Level,
    Rotary,
    SSMConfig,
    brief,
    check_keys,
    freeze,
    integer,
    integers,
    parse_layout,
    real,
    thaw,
    weights,
)

BOS = 254
"""The byte before every document in the input of a model; it never occurs in UTF-8."""
EOS = 255
"""The byte that ends a completion, and documents of the official checkpoints; no other document has it."""
MLP_MULTIPLE = 128
MOST_CHARACTERS = 1000
"""Upper limit of the words under "hnet"."""
SWITCHES = ("rotary", "adapter_width", "network_norms", "residual", "smoothing", "ngram_rows")
"""Fields of ours that change the network. In a file they stand under "hnet" where they differ from the default."""
TRANSFORMERS_KEYS = ("model_type", "architectures", "auto_map", "dtype", "transformers_version")
"""Keys that the library `transformers` needs in the file, or adds to it; they say nothing about the model."""


EXTRA = {
    "modality": str,
    "tokenizer": str,
    "sequence_length": int,
    "step": int,
    "lr": float,
    "lr_multipliers": list,
}
"""Types of what stands under "hnet" beside the settings of the model, as far as it is read."""


def _mapping(value: Any, name: str) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise ValueError(f"{name} must be a mapping, got {brief(value)}")
    return dict(value)


def _check_extra(extra: Mapping[str, Any]) -> None:
    """Raise ValueError for a value of another type than its readers expect."""
    for name, kind in EXTRA.items():
        value = extra.get(name)
        if kind is int and value is not None:
            integer(value, f"hnet.{name}", 0)
        elif kind is float and value is not None:
            real(value, f"hnet.{name}", 0)
        elif kind is list and value is not None:
            weights(value, f"hnet.{name}")
        elif value is not None and (not isinstance(value, str) or len(value) > MOST_CHARACTERS):
            raise ValueError(f"hnet.{name} must be a word, got {brief(value)}")


@dataclass(frozen=True)
class HNetConfig:
    """The architecture of an H-Net. Raises ValueError, naming the field, for anything inconsistent."""

    arch_layout: tuple[Any, ...]
    """Nested layout, e.g. ("m4", ("T22",), "m4"); m/t = Mamba-2 or attention layer, M/T = the same with an MLP."""
    d_model: tuple[int, ...]
    """Width per level; must not shrink inwards."""
    d_intermediate: tuple[int, ...]
    """MLP width per level, rounded up to a multiple of 128; 0 for 8/3 of d_model."""
    attn_cfg: AttnConfig
    """Attention, one entry per level."""
    ssm_cfg: SSMConfig = field(default_factory=SSMConfig)
    """Mamba-2, the same at all levels."""
    vocab_size: int = 256
    """Ids the model reads and predicts: 256 for bytes."""
    tie_embeddings: bool = False
    """True if the output layer is the embedding table."""
    chunkers: tuple[Chunker, ...] = ()
    """One per stage; empty means learned everywhere."""
    target_ratios: tuple[float, ...] | None = None
    """N of the ratio loss per stage: positions per chunk aimed at."""
    rotary: tuple[Rotary, ...] = ()
    """One per level; empty where all are the official one."""
    adapter_width: int = 0
    """Hidden units of the MLPs before and after the innermost main network (paper, appendix F); 0 for none."""
    network_norms: bool = True
    """True if every encoder, decoder and main network ends in its own norm (paper, 2.3); else only the last one does,
    whose norm the output layer needs."""
    residual: str = "projection"
    """Around each inner network: `projection`, the paper's linear map, every position given the vector of its chunk; or
    `spacebyte`, the encoder's output as it is, to which a chunk's vector is added at its first position only."""
    smoothing: str = "chunks"
    """Moving average with weight p: `chunks`, of the inner network's output (paper eq 5); or `input`, of the encoder's
    output over positions, before chunks are selected (SOMBRERO), and not of the chunks."""
    ngram_rows: int = 0
    """Vectors for hashed n-grams of 3 to 8 bytes, so many of each size, which are added to that of the byte they end in
    (Byte Latent Transformer, arXiv 2412.09871); 0 for none."""
    extra: dict[str, Any] = field(default_factory=dict)
    """Whatever else stands under "hnet" (modality, ...); carried along, never read by the model."""

    def __post_init__(self) -> None:
        put = object.__setattr__
        parse_layout(self.arch_layout)
        put(self, "arch_layout", freeze(self.arch_layout))
        put(self, "d_model", integers(self.d_model, "d_model", 1))
        put(self, "d_intermediate", integers(self.d_intermediate, "d_intermediate", 0))
        put(self, "chunkers", tuple(self.chunkers) or (Chunker(),) * self.num_stages)
        levels = self.levels
        rotary = Rotary.of_levels(self.rotary)
        put(self, "rotary", rotary if any(each != Rotary() for each in rotary) else ())
        rotary = rotary or (Rotary(),) * len(levels)
        per_level = {"d_model": self.d_model, "d_intermediate": self.d_intermediate, "rotary": rotary} | {
            f"attn_cfg.{f.name}": getattr(self.attn_cfg, f.name) for f in fields(AttnConfig)
        }
        for name, value in per_level.items():
            if len(value) != len(levels):
                raise ValueError(f"{name} has {len(value)} entries, but arch_layout has {len(levels)} levels")
        integer(self.vocab_size, "vocab_size", 2)
        integer(self.ngram_rows, "ngram_rows", 0)
        if integer(self.adapter_width, "adapter_width", 0) and not self.num_stages:
            raise ValueError("adapter_width: a model without stages has no adapters")
        if not isinstance(self.tie_embeddings, bool):
            raise ValueError(f"tie_embeddings must be true or false, got {brief(self.tie_embeddings)}")
        if not isinstance(self.network_norms, bool):
            raise ValueError(f"network_norms must be true or false, got {brief(self.network_norms)}")
        if self.residual not in ("projection", "spacebyte"):
            raise ValueError(f"residual must be projection or spacebyte, got {brief(self.residual)}")
        if self.smoothing not in ("chunks", "input"):
            raise ValueError(f"smoothing must be chunks or input, got {brief(self.smoothing)}")
        for s, (level, d) in enumerate(zip(levels, self.d_model, strict=True)):
            if s and d < self.d_model[s - 1]:
                raise ValueError(f"d_model must not shrink inwards: level {s} has {d} after {self.d_model[s - 1]}")
            self._check_mixers(s, level.letters.lower(), d)
        self._check_chunking()

    def _check_mixers(self, s: int, letters: str, d: int) -> None:
        if "m" in letters and d * self.ssm_cfg.expand % self.ssm_cfg.headdim:
            raise ValueError(
                f"level {s}: expand * d_model = {d * self.ssm_cfg.expand} is no multiple of"
                f" ssm headdim {self.ssm_cfg.headdim}"
            )
        if "t" in letters:
            heads, rotary = self.attn_cfg.num_heads[s], self.attn_cfg.rotary_emb_dim[s]
            if d % heads:
                raise ValueError(f"level {s}: d_model {d} is no multiple of num_heads {heads}")
            if rotary % 2 or rotary > d // heads:
                raise ValueError(
                    f"level {s}: rotary_emb_dim {rotary} must be even and at most the head size {d // heads}"
                )

    def _check_chunking(self) -> None:
        if len(self.chunkers) != self.num_stages:
            raise ValueError(f"{len(self.chunkers)} chunkers for {self.num_stages} stages")
        for s, chunker in enumerate(self.chunkers):
            if s and chunker.reads_bytes:
                raise ValueError(
                    f"chunker {chunker.kind!r} reads bytes: stage 0 only; give a list with one chunker per stage"
                )
        if self.target_ratios is not None:
            put = tuple(self.target_ratios) if isinstance(self.target_ratios, list | tuple) else ()
            if len(put) != self.num_stages:
                raise ValueError(f"target_ratios needs {self.num_stages} numbers above 1, got {brief(list(put))}")
            object.__setattr__(self, "target_ratios", tuple(real(n, "target_ratios", 1) for n in put))

    # -- reading and writing -------------------------------------------------------------------------------------------

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> HNetConfig:
        """From the official JSON fields, plus ours under "hnet". Raises ValueError."""
        official = ("arch_layout", "d_model", "d_intermediate", "vocab_size", "ssm_cfg", "attn_cfg", "tie_embeddings")
        data = {key: value for key, value in data.items() if key not in TRANSFORMERS_KEYS}
        ours = _mapping(data.get("hnet") or {}, "hnet")
        check_keys(data, (*official, "hnet"), "the model configuration")
        missing = [k for k in ("arch_layout", "d_model", "d_intermediate", "attn_cfg") if k not in data]
        if missing:
            raise ValueError(f"the model configuration lacks {', '.join(missing)}")
        values = {k: data[k] for k in official if k in data}
        for name, kind in (("ssm_cfg", SSMConfig), ("attn_cfg", AttnConfig)):
            part = values.get(name, {})
            if not isinstance(part, Mapping):
                raise ValueError(f"{name} must be a mapping, got {brief(part)}")
            known = [f.name for f in fields(kind)]
            check_keys(part, known, name)
            if kind is AttnConfig and len(part) < len(known):
                raise ValueError(f"attn_cfg lacks {', '.join(k for k in known if k not in part)}")
            values[name] = kind(**part)
        num_stages = len(parse_layout(data["arch_layout"])) - 1
        chunker = ours.pop("chunker", None)
        if chunker is not None:
            each = chunker if isinstance(chunker, list | tuple) else [chunker] * num_stages
            if len(each) != num_stages:  # said before any of them is built
                raise ValueError(f"{len(each)} chunkers for {num_stages} stages")
            values["chunkers"] = tuple(Chunker.from_dict(c) for c in each)
        values |= {name: ours.pop(name) for name in SWITCHES if name in ours}
        _check_extra(ours)
        return cls(**values, target_ratios=ours.pop("target_ratios", None), extra=ours)

    @classmethod
    def from_json(cls, path: str | Path) -> HNetConfig:
        """Raises ValueError for what is no configuration, FileNotFoundError, DamagedError or StorageError for what is
        no JSON file."""
        return cls.from_dict(storage.read_json(path))

    def to_dict(self) -> dict[str, Any]:
        """The official fields; "hnet" only where something differs from the official model."""
        ours: dict[str, Any] = dict(self.extra) | self.switches()
        if any(c.kind != "learned" for c in self.chunkers):
            each = [c.to_dict() for c in self.chunkers]
            ours["chunker"] = each[0] if all(c == each[0] for c in each) else each
        if self.target_ratios is not None:
            ours["target_ratios"] = list(self.target_ratios)
        return {
            "arch_layout": thaw(self.arch_layout),
            "d_model": list(self.d_model),
            "d_intermediate": list(self.d_intermediate),
            "vocab_size": self.vocab_size,
            "ssm_cfg": {
                f.name: v
                for f in fields(SSMConfig)
                if (v := getattr(self.ssm_cfg, f.name)) != f.default or f.name != "headdim"
            },
            "attn_cfg": {f.name: list(getattr(self.attn_cfg, f.name)) for f in fields(AttnConfig)},
            "tie_embeddings": self.tie_embeddings,
        } | ({"hnet": ours} if ours else {})

    def switches(self) -> dict[str, Any]:
        """Chosen differences from the official model, by name."""
        chosen = {name: value for name in SWITCHES if (value := getattr(self, name)) != getattr(type(self), name)}
        return chosen | ({"rotary": [each.to_dict() for each in self.rotary]} if self.rotary else {})

    def to_json(self, path: str | Path | None = None) -> str:
        """The JSON text; also written to `path` if given."""
        text = json.dumps(self.to_dict(), indent=2) + "\n"
        if path is not None:
            Path(path).write_text(text, encoding="utf-8")
        return text

    # -- arithmetic ----------------------------------------------------------------------------------------------------

    @property
    def levels(self) -> tuple[Level, ...]:
        """Outermost first; S + 1 of them."""
        return parse_layout(self.arch_layout)

    @property
    def num_stages(self) -> int:
        """Chunking steps S; 0 for a plain (isotropic) network."""
        return len(self.levels) - 1

    def has_norm(self, level: int, stack: str) -> bool:
        """True if the stack called "encoder", "main_network" or "decoder" of a level ends in a norm of its own."""
        return self.network_norms or (level == 0 and stack != "encoder")

    def mlp_width(self, level: int) -> int:
        """Hidden units of the gated MLP at a level."""
        wanted = self.d_intermediate[level] or 8 * self.d_model[level] // 3
        return -(-wanted // MLP_MULTIPLE) * MLP_MULTIPLE

    def _layer_parameters(self, level: int, letter: str) -> int:
        d, ssm = self.d_model[level], self.ssm_cfg
        if letter in "mM":
            inner = ssm.expand * d
            heads, conv = inner // ssm.headdim, inner + 2 * ssm.d_state
            mixer = d * (inner + conv + heads) + conv * (ssm.d_conv + 1) + 3 * heads + inner + inner * d
        else:
            mixer = 4 * d * d
        mlp = d + 3 * d * self.mlp_width(level) if letter.isupper() else 0
        return d + mixer + mlp

    def count_parameters(self) -> dict[str, int]:
        """Parameters by part, in the order of the state dict: "embeddings", "level0.encoder", ..., "lm_head".

        A tied output layer counts as 0. The sum is the model's size.
        """
        parts: dict[str, int] = {"embeddings": (self.vocab_size + 6 * self.ngram_rows) * self.d_model[0]}

        def visit(s: int) -> None:
            level, d = self.levels[s], self.d_model[s]
            if s and d > self.d_model[s - 1]:
                parts[f"level{s}.pad_dimension"] = d - self.d_model[s - 1]
            if level.is_innermost and self.adapter_width:
                parts[f"level{s}.adapter_in"] = parts[f"level{s}.adapter_out"] = 3 * d * self.adapter_width
            for name in ("encoder", "main_network", "decoder"):
                stack = getattr(level, name)
                if stack or (name != "main_network" and not level.is_innermost):
                    norm = d if self.has_norm(s, name) else 0
                    parts[f"level{s}.{name}"] = norm + sum(self._layer_parameters(s, letter) for letter in stack)
                elif name == "main_network" and not level.is_innermost:
                    visit(s + 1)
            if not level.is_innermost:
                if self.chunkers[s].learned:
                    parts[f"level{s}.routing_module"] = 2 * d * d
                if self.residual == "projection":
                    parts[f"level{s}.residual_proj"] = d * d + d

        visit(0)
        parts["lm_head"] = 0 if self.tie_embeddings else self.vocab_size * self.d_model[0]
        return parts

    @property
    def num_parameters(self) -> int:
        """The sum of `count_parameters`."""
        return sum(self.count_parameters().values())

    def _layer_flops(self, level: int, letter: str, length: float) -> float:
        """Forward FLOPs of one layer for one position of its level (paper, appendix B)."""
        d, ssm = self.d_model[level], self.ssm_cfg
        if letter in "mM":
            inner = ssm.expand * d
            mixer: float = 2 * d * 2 * inner + 2 * d * (2 * ssm.d_state + inner // ssm.headdim)
            mixer += 6 * inner * ssm.d_state + 2 * d * ssm.d_conv + 5 * d + 2 * inner * d
        else:
            window = self.attn_cfg.window_size[level]
            keys = length if window < 0 else min(length, window + 1)
            mixer = 8 * d * d + keys * (4 * d + 3 * self.attn_cfg.num_heads[level])
        return mixer + (6 * d * self.mlp_width(level) + 5 * d if letter.isupper() else 0)

    def flops_per_byte(self, chunk_fractions: Sequence[float] = (), sequence_length: float = 8192) -> float:
        """Forward FLOPs per byte as the paper counts them (appendix B); a training step costs three times as much.

        `chunk_fractions[s]` is the number of positions of level s+1 per *byte*: 1-stage about (0.21,), 2-stage about
        (0.36, 0.145). Attention counts all pairs inside the window (not the causal half). Two corrections that the
        paper's own table needs are made: Mamba-2's output projection reads the inner width, and the embedding counts as
        a product. Raises ValueError if there is not one fraction per stage.
        """
        if len(chunk_fractions) != self.num_stages:
            raise ValueError(f"{len(chunk_fractions)} chunk fractions for {self.num_stages} stages")
        total = 4.0 * self.vocab_size * self.d_model[0]
        for s, (level, share) in enumerate(zip(self.levels, (1.0, *chunk_fractions), strict=True)):
            length = share * sequence_length
            total += share * sum(self._layer_flops(s, letter, length) for letter in level.letters)
            if level.is_innermost:
                total += share * 2 * 6 * self.d_model[s] * self.adapter_width
            else:
                products = 2 * self.chunkers[s].learned + (self.residual == "projection")
                total += share * 2 * self.d_model[s] ** 2 * products
        return total
