"""Datasets that a run reads, as `data:` of a configuration and `--data` name them."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, ClassVar

from hnet_cli.config.bounds import STRICT, Bounds
from hnet_cli.errors import UsageError

MOST = 64
"""Datasets of a mixture."""
WEIGHTS = "a weight is the share of the bytes read that come from a dataset, as in --data a:8 --data b:1"


@dataclass(frozen=True, kw_only=True)
class DataSource:
    """A dataset, and its weight in a mixture."""

    __pydantic_config__: ClassVar = STRICT

    path: str
    """The folder of the dataset."""
    weight: Annotated[float, Bounds(above=0)] | None = None
    """The share of the bytes read that come from it is its weight over the sum of all. Without weights datasets are
    read in proportion to their size."""

    def __str__(self) -> str:
        return self.path if self.weight is None else f"{self.path}:{self.weight:g}"


Sources = tuple[DataSource, ...]


def sources_of(data: str | Path | Sequence[DataSource]) -> Sources:
    """The datasets of `data:` of a configuration; none of an empty text."""
    if isinstance(data, str | Path):
        return (DataSource(path=str(data)),) if str(data) else ()
    return tuple(data)


def written(sources: Sources) -> str | list[DataSource]:
    """`data:` of a configuration for some datasets: the path alone where there is one."""
    return sources[0].path if len(sources) == 1 else list(sources)


def words(sources: Sources) -> str:
    """The datasets in words: "a:8, b:1"."""
    return ", ".join(map(str, sources))


def check(sources: Sources) -> None:
    """Raise ValueError where some datasets have a weight and others none, or there are too many."""
    if len(sources) > MOST:
        raise ValueError(f"names {len(sources)} datasets, at most {MOST} can be mixed")
    bare = [source.path for source in sources if source.weight is None]
    if 0 < len(bare) < len(sources):
        raise ValueError(f"gives {bare[0]} no weight, but others have one: give all a weight, or none")


def parse(texts: Sequence[str]) -> Sources:
    """The datasets of several `--data PATH` or `--data PATH:WEIGHT`.

    A path that exists is one, colons and all; else what follows the last colon is the weight. Raises UsageError.
    """
    sources = tuple(_parsed(text) for text in texts)
    try:
        check(sources)
    except ValueError as error:
        raise UsageError(f"--data {error}", WEIGHTS) from error
    return sources if len(sources) != 1 else (replace(sources[0], weight=None),)


def _parsed(text: str) -> DataSource:
    path, _, last = text.rpartition(":")
    if not path or os.path.lexists(text):
        return DataSource(path=text)
    try:
        weight = float(last)
    except ValueError:
        if not os.path.lexists(path):  # no dataset with a weight, but a path that does not exist
            return DataSource(path=text)
        weight = math.nan
    try:
        return DataSource(path=path, weight=Bounds(above=0).check(weight))
    except ValueError as error:
        reason = f"the weight {str(error).partition(',')[0]}, not {last!r:.40}"
        raise UsageError(f"--data {text}: {reason}", WEIGHTS) from error
