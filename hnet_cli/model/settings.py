"""Parts of a configuration: the layout and its levels, and the settings of mixers, positions and chunkers."""

from __future__ import annotations

import difflib
import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from hnet_cli.model.automaton import Automaton

Ids = TypeVar("Ids", "Tensor", "np.ndarray")

_STACK = re.compile(r"(?:[mMtT][0-9]{1,4})+")
MOST = 2**31 - 1
"""Upper limit of integers: kernels index with 32 bits."""
LEAST = {"d_intermediate": 0, "vocab_size": 2, "adapter_width": 0, "rotary_emb_dim": 0, "window_size": -1}
"""Lower limit of integers where it is not 1."""
OPERANDS = {"fixed": "k", "regex": "pattern", "bpe": "tokens"}
"""The field that a kind of chunker needs."""
MOST_LAYERS = 4096
"""Upper limit of the layers of all stacks."""
MOST_LEVELS = 10
"""Upper limit of levels: the depth of a byte is one digit in the records of a run."""
MOST_OPERAND = 100_000
"""Upper limit of the characters of a chunker's expression or vocabulary, which stand in configurations."""
MOST_BLOCK = 1 << 16
"""Upper limit of the block length of the scan."""
MOST_WIDTH = 256
"""Upper limit of the width of the convolution."""
MOST_REAL = 1e15
"""Upper limit of numbers that are no integers."""


def check_keys(given: Iterable[str], known: Sequence[str], where: str) -> None:
    """Raises ValueError for the first key that is not known, with the nearest one."""
    for key in given:
        if key not in known:
            near = difflib.get_close_matches(str(key)[:60], known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; known keys: {', '.join(known)}"
            raise ValueError(f"unknown key {key!r:.60} in {where}{hint}")


def integer(value: Any, name: str, least: int) -> int:
    """The value. Raises ValueError, with `name`, for what is no integer of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name} must be an integer of at least {least}, got {brief(value)}")
    if value > MOST:
        raise ValueError(f"{name} must be at most {MOST}, got {brief(value)}")
    return value


def real(value: Any, name: str, above: float) -> float:
    """The number. Raises ValueError, with `name`, for what is no number above `above` and at most `MOST_REAL`."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not above < value <= MOST_REAL:
        raise ValueError(f"{name} must be a number above {above:g} and at most {MOST_REAL:g}, got {brief(value)}")
    return float(value)


def brief(value: Any) -> str:
    """A value of a file in a message: its beginning, or its type where it has too many parts."""
    simple = isinstance(value, str | int | float | bool | None)
    if isinstance(value, list | tuple) and len(value) < 20:
        simple = all(isinstance(part, str | int | float) for part in value)
    return f"{value!r:.60}" if simple else f"a {type(value).__name__} of {len(value)}"


def _entries(value: Any, name: str) -> Sequence[Any]:
    if not isinstance(value, list | tuple):
        raise ValueError(f"{name} must be a list with one entry per level, got {brief(value)}")
    if len(value) > MOST_LEVELS:
        raise ValueError(f"{name} has {len(value)} entries, at most {MOST_LEVELS} levels are supported")
    return value


def integers(value: Any, name: str, least: int) -> tuple[int, ...]:
    """`integer` of every entry of a list."""
    return tuple(integer(v, f"{name}[{i}]", least) for i, v in enumerate(_entries(value, name)))


def weights(value: Any, name: str) -> tuple[float, ...]:
    """Every entry of a list, which must be 0 or `real` above it."""
    found = enumerate(_entries(value, name))
    return tuple(0.0 if v in (0, 0.0) and v is not False else real(v, f"{name}[{i}]", 0) for i, v in found)


def expand_stack(text: Any) -> str:
    """One letter per layer: "T1m4" -> "Tmmmm". Lower case has no MLP. Raises ValueError for anything else."""
    if not isinstance(text, str) or not _STACK.fullmatch(text):
        raise ValueError(
            f"bad arch_layout: {brief(text)} should be letters m, M, t, T each followed by a count, such as 'T1m4'"
        )
    counts = [(letter, int(count)) for letter, count in re.findall(r"([mMtT])([0-9]+)", text)]
    if sum(count for _, count in counts) > MOST_LAYERS:
        raise ValueError(f"bad arch_layout: {text!r:.40} has more than {MOST_LAYERS} layers")
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
    levels: list[Level] = []
    while True:
        if not isinstance(layout, list | tuple) or len(layout) not in (1, 3) or len(levels) >= MOST_LEVELS:
            raise ValueError(
                f"bad arch_layout {brief(layout)}: expected [encoder, inner layout, decoder], or [main network] "
                f"innermost, {MOST_LEVELS} levels at most"
            )
        if len(layout) == 1:
            levels.append(Level(main_network=expand_stack(layout[0])))
            break
        levels.append(Level(encoder=expand_stack(layout[0]), decoder=expand_stack(layout[2])))
        layout = layout[1]
    if not levels[-1].main_network:
        raise ValueError(f"bad arch_layout {brief(layout)}: the main network needs at least one layer")
    if sum(len(level.letters) for level in levels) > MOST_LAYERS:
        raise ValueError(f"bad arch_layout: more than {MOST_LAYERS} layers")
    return tuple(levels)


def freeze(layout: Any) -> Any:
    """Nested lists as nested tuples. The layout has been parsed: it is not deep."""
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
        for name, most in (("chunk_size", MOST_BLOCK), ("d_conv", MOST_WIDTH)):
            if getattr(self, name) > most:
                raise ValueError(f"ssm_cfg.{name} must be at most {most}, got {getattr(self, name)}")


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
            real(getattr(self, f.name), f"rotary.{f.name}", 0)
        if self.factor != 1 and not self.low_freq_factor < self.high_freq_factor:
            raise ValueError("rotary.low_freq_factor must be below rotary.high_freq_factor")

    def to_dict(self) -> dict[str, float]:
        """Settings that differ from the defaults."""
        return {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != f.default}

    @classmethod
    def of_levels(cls, levels: Any) -> tuple[Rotary, ...]:
        """From one mapping per level; what is a `Rotary` already stays."""
        if not isinstance(levels, list | tuple) or not all(isinstance(each, Mapping | cls) for each in levels):
            raise ValueError(
                f"rotary has a list with a mapping per level, such as {{'base': 10000}}; got {brief(levels)}"
            )
        for each in levels:
            check_keys(each if isinstance(each, Mapping) else (), [f.name for f in fields(cls)], "rotary")
        return tuple(each if isinstance(each, cls) else cls(**each) for each in levels)


@dataclass(frozen=True)
class Chunker:
    """The rule by which a stage finds boundaries. A routing module decides in `learned`, and in `characters`, though
    not in a UTF-8 character. Controls: `fixed` (every k-th), `space` (SpaceByte's rule), `regex` (where a match of a
    regular expression ends), `bpe` (longest matches of a tokenizer's vocabulary); see `hnet_cli.model.automaton`."""

    kind: str = "learned"
    """`learned`, `characters`, `space`, `fixed`, `regex` or `bpe`."""
    k: int | None = None
    """Positions per chunk of `fixed`; else None."""
    pattern: str | None = None
    """The expression of `regex`; else None."""
    tokens: str | None = None
    """The vocabulary of `bpe`, set apart by spaces, in the characters of byte-level tokenizers; else None."""

    def __post_init__(self) -> None:
        kinds = ("learned", "characters", "space", *OPERANDS)
        if self.kind not in kinds:
            near = difflib.get_close_matches(str(self.kind)[:60], kinds, n=1)
            raise ValueError(f"unknown chunker {brief(self.kind)}; {f'did you mean {near[0]!r}?' if near else kinds}")
        wanted = OPERANDS.get(self.kind)
        for name in OPERANDS.values():
            if name != wanted and getattr(self, name) is not None:
                raise ValueError(f"chunker {self.kind!r} takes no {name}")
        if wanted == "k":
            integer(self.k, "chunker.k", 1)
        elif wanted:
            if not isinstance(operand := getattr(self, wanted), str) or not operand:
                raise ValueError(f"chunker {self.kind!r} needs {wanted}, got {brief(operand)}")
            if len(operand) > MOST_OPERAND:
                said = f"chunker.{wanted} has {len(operand):,} characters, at most {MOST_OPERAND:,} fit a configuration"
                raise ValueError(f"{said}: take {'a smaller vocabulary' if wanted == 'tokens' else 'a shorter one'}")
            self.automaton()  # says what is wrong with it

    @property
    def learned(self) -> bool:
        """True if a routing module decides."""
        return self.kind in ("learned", "characters")

    @property
    def reads_bytes(self) -> bool:
        """True if bytes decide, not only vectors or positions."""
        return self.kind not in ("learned", "fixed")

    @property
    def rule(self) -> bool:
        """True if the bytes alone decide."""
        return self.reads_bytes and not self.learned

    def automaton(self) -> Automaton | None:
        """The table of `regex` and `bpe`; None of the others. Raises ValueError."""
        from hnet_cli.model import automaton  # needs numpy, which most commands begin without

        if self.pattern is not None:
            return automaton.of_pattern(self.pattern)
        return None if self.tokens is None else automaton.of_tokens(self.tokens)

    def to_dict(self) -> dict[str, Any]:
        """`kind`, with its operand if it has one."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    @classmethod
    def from_dict(cls, data: Any) -> Chunker:
        """Raises ValueError for what is no mapping of these fields."""
        if not isinstance(data, Mapping):
            raise ValueError(f"a chunker is a mapping such as {{'kind': 'learned'}}, got {brief(data)}")
        check_keys(data, ("kind", *OPERANDS.values()), "chunker")
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
