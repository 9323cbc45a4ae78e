"""What the user's inputs hold, for commands that read without preparing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from hnet_cli.data.prepare.contents import sources
from hnet_cli.data.prepare.inputs import FileReader, expand
from hnet_cli.modality import Modality, Refused, Source


def sources_of(
    inputs: Sequence[str | Path], modality: Modality, field: str | None = None
) -> Iterator[Source | Refused]:
    """Every source in `inputs` in order, and what cannot be read. Raises InputError for an input that is not there."""
    for _, found in expand(inputs, modality):
        if isinstance(found, Refused):
            yield found
        else:
            yield from sources(FileReader(found), field, Counter(), modality)
