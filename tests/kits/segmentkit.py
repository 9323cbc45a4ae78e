"""A small model, a text with everything that is hard to show, and what `hnet segment` writes of it."""

from __future__ import annotations

import torch
from modelkit import tiny_model

from hnet_cli import modality
from hnet_cli.inference.segment import segment
from hnet_cli.modality import Source

MODEL = tiny_model(torch.float32)
TEXT = "Chunks of “things”, 世界和平 & <script>alert(1)</script>.\n\tEsc \x1b[31m, bell \x07, C1 \x9b, bidi \u202e!\r\n"


def written(data, format, stage="all", plugin="text", model=MODEL, name="a.txt", **options):
    """The output for one source; `plugin` None: without a modality."""
    source = Source.of_bytes(data if isinstance(data, bytes) else data.encode(), name)
    return "".join(segment(model, [source], plugin and modality.get(plugin), format=format, stage=stage, **options))
