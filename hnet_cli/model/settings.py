"""Parts of a configuration: the layout and its levels, and the settings of mixers, positions and chunkers."""

from __future__ import annotations

import difflib
import itertools
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

Ids = TypeVar("Ids", "Tensor", "np.ndarray")

_STACK = re.compile(r"(?:[mMtT][0-9]{1,4})+")
MOST = 2**31 - 1
"""Upper limit of integers: kernels index with 32 bits."""
LEAST = {"d_intermediate": 0, "vocab_size": 2, "adapter_width": 0, "rotary_emb_dim": 0, "window_size": -1}
"""Lower limit of integers where it is not 1."""
MOST_LAYERS = 4096
"""Upper limit of the layers of a stack."""


def check_keys(given: Iterable[str], known: Sequence[str], where: str) -> None:
    """Raises ValueError for the first key that is not known, with the nearest one."""
    for key in given:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; known keys: {', '.join(known)}"
            raise ValueError(f"unknown key {key!r} in {where}{hint}")


def integer(value: Any, name: str, least: int) -> int:
    """The value. Raises ValueError, with `name`, for what is no integer of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name} must be an integer of at least {least}, got {value!r}")
    if value > MOST:
        raise ValueError(f"{name} must be at most {MOST}, got {value!r:.40}")
    return value


def integers(value: Any, name: str, least: int) -> tuple[int, ...]:
    """`integer` of every entry of a list."""
    if not isinstance(value, list | tuple):
        raise ValueError(f"{name} must be a list with one entry per level, got {value!r}")
    return tuple(integer(v, f"{name}[{i}]", least) for i, v in enumerate(value))


def expand_stack(text: Any) -> str:
    """One letter per layer: "T1m4" -> "Tmmmm". Lower case has no MLP. Raises ValueError for anything else."""
    if not isinstance(text, str) or not _STACK.fullmatch(text):
        raise ValueError(
            f"bad arch_layout: {text!r} should be letters m, M, t, T each followed by a count, such as 'T1m4'"
        )
    counts = [(letter, int(count)) for letter, count in re.findall(r"([mMtT])([0-9]+)", text)]
    if sum(count for _, count in counts) > MOST_LAYERS:
        raise ValueError(f"bad arch_layout: {text!r:.40} has more than {MOST_LAYERS} layers in a stack")
    return "".join(letter * count for letter, count in counts)


def compact_stack(letters: str) -> str:
    """The inverse of `expand_stack`: "Tmmmm" -> "T1m4"."""
    return "".join(f"{letter}{len(list(same))}" for letter, same in itertools.groupby(letters))


@dataclass(frozen=True)
class Level:
    """The stacks of one level, one letter per layer. The innermost level has `main_network` only."""

    encoder: str = ""
    main_network: str = ""
    decoder: str = ""

    @property
    def is_innermost(self) -> bool:
        return bool(self.main_network)

    @property
    def letters(self) -> str:
        """Letters of all its layers, in order."""
        return self.encoder + self.main_network + self.decoder


def parse_layout(layout: Any) -> tuple[Level, ...]:
    """["m4", ["T1m4", ["T26"], "m4T1"], "m4"] -> one Level per level, outermost first. Raises ValueError."""
    if not isinstance(layout, list | tuple) or len(layout) not in (1, 3):
        raise ValueError(
            f"bad arch_layout {layout!r}: expected [encoder, inner layout, decoder], or [main network] innermost"
        )
    if len(layout) == 1:
        main = expand_stack(layout[0])
        if not main:
            raise ValueError(f"bad arch_layout {layout!r}: the main network needs at least one layer")
        return (Level(main_network=main),)
    outer, inner, last = layout
    return (Level(encoder=expand_stack(outer), decoder=expand_stack(last)), *parse_layout(inner))


def freeze(layout: Any) -> Any:
    """Nested lists as nested tuples."""
    return tuple(freeze(part) for part in layout) if isinstance(layout, list | tuple) else layout


def thaw(layout: Any) -> Any:
    """Nested tuples as nested lists."""
    return [thaw(part) for part in layout] if isinstance(layout, tuple) else layout


@dataclass(frozen=True)
class SSMConfig:
    """Mamba-2 settings, shared by all levels."""

    d_state: int = 128
    """State size N per head."""
    d_conv: int = 4
    """Width of the causal convolution."""
    expand: int = 2
    """Inner width = expand * d_model."""
    chunk_size: int = 256
    """Block length of the scan on an accelerator; it never changes the result."""
    headdim: int = 64
    """Width P of a head."""

    def __post_init__(self) -> None:
        for f in fields(self):
            integer(getattr(self, f.name), f"ssm_cfg.{f.name}", LEAST.get(f.name, 1))


@dataclass(frozen=True)
class AttnConfig:
    """Attention settings, one entry per level."""

    num_heads: tuple[int, ...]
    """Attention heads; a divisor of d_model."""
    rotary_emb_dim: tuple[int, ...]
    """Leading coordinates of each head that are rotated; 0 for none."""
    window_size: tuple[int, ...]
    """w: position i sees i-w..i, that is w+1 keys; -1 for all."""

    def __post_init__(self) -> None:
        for f in fields(self):
            value = integers(getattr(self, f.name), f"attn_cfg.{f.name}", LEAST.get(f.name, 1))
            object.__setattr__(self, f.name, value)


@dataclass(frozen=True)
class Rotary:
    """Rotary frequencies of one level, and Llama 3.1's scaling of them."""

    base: float = 10000.0
    """Coordinate pair i of n turns by base^(-i/n) per position."""
    factor: float = 1.0
    """Pairs that turn slowly turn this many times slower still."""
    low_freq_factor: float = 1.0
    """Pairs with fewer full turns than this in `original_length` positions turn slowly."""
    high_freq_factor: float = 4.0
    """Pairs with more full turns than this stay as they are; between the two it is gradual."""
    original_length: int = 8192
    """Positions that the model was trained on before its context was stretched."""

    def __post_init__(self) -> None:
        for f in fields(self):
            value = getattr(self, f.name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
                raise ValueError(f"rotary.{f.name} must be a number above 0, got {value!r}")
        if self.factor != 1 and not self.low_freq_factor < self.high_freq_factor:
            raise ValueError("rotary.low_freq_factor must be below rotary.high_freq_factor")

    def to_dict(self) -> dict[str, float]:
        """Settings that differ from the defaults."""
        return {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != f.default}

    @classmethod
    def of_levels(cls, levels: Any) -> tuple[Rotary, ...]:
        """From one mapping per level; what is a `Rotary` already stays."""
        if not isinstance(levels, list | tuple) or not all(isinstance(each, Mapping | cls) for each in levels):
            raise ValueError(f"rotary has a list with a mapping per level, such as {{'base': 10000}}; got {levels!r}")
        for each in levels:
            check_keys(each if isinstance(each, Mapping) else (), [f.name for f in fields(cls)], "rotary")
        return tuple(each if isinstance(each, cls) else cls(**each) for each in levels)


@dataclass(frozen=True)
class Chunker:
    """The rule by which a stage finds boundaries: `learned` (routing module), `characters` (the same, but not in a
    UTF-8 character), `space` (SpaceByte's rule), `fixed` (every k-th)."""

    kind: str = "learned"
    """`learned`, `characters`, `space` or `fixed`."""
    k: int | None = None
    """Positions per chunk of `fixed`; else None."""

    def __post_init__(self) -> None:
        kinds = ("learned", "characters", "space", "fixed")
        if self.kind not in kinds:
            near = difflib.get_close_matches(str(self.kind), kinds, n=1)
            raise ValueError(f"unknown chunker {self.kind!r}; {f'did you mean {near[0]!r}?' if near else kinds}")
        if self.kind == "fixed":
            integer(self.k, "chunker.k", 1)
        elif self.k is not None:
            raise ValueError(f"chunker {self.kind!r} takes no k")

    @property
    def learned(self) -> bool:
        """True if a routing module decides."""
        return self.kind in ("learned", "characters")

    def to_dict(self) -> dict[str, Any]:
        return {"kind": self.kind} | ({"k": self.k} if self.k is not None else {})

    @classmethod
    def from_dict(cls, data: Any) -> Chunker:
        """Raises ValueError for what is no mapping of `kind` and `k`."""
        if not isinstance(data, Mapping):
            raise ValueError(f"a chunker is a mapping such as {{'kind': 'learned'}}, got {data!r}")
        check_keys(data, ("kind", "k"), "chunker")
        return cls(**data)


def space_like(ids: Ids) -> Ids:
    """SpaceByte's rule: neither a letter or digit of ASCII nor a UTF-8 continuation byte. int64 -> bool, same shape."""
    lower = ids | 0x20
    letter = (lower >= ord("a")) & (lower <= ord("z"))
    digit = (ids >= ord("0")) & (ids <= ord("9"))
    return ~(letter | digit | continuation(ids))


def continuation(ids: Ids) -> Ids:
    """Bytes that go on with a UTF-8 character: int64 -> bool, same shape."""
    return (ids >= 0x80) & (ids < 0xC0)
