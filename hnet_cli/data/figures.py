"""Baselines as they are shown beside a model. Without numpy: lists of runs read them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def to_beat(figures: Mapping[str, Any]) -> tuple[str, float]:
    """The lowest of the figures that `named` has, and its name."""
    name, bits = min(named(figures).items(), key=lambda item: item[1])
    return name, bits


def named(figures: Mapping[str, Any]) -> dict[str, float]:
    """The figures to show beside a model, by name for people, in bits per byte. They may come from anywhere."""
    shown = {"xz": figures.get("xz"), f"order-{figures.get('k')}": figures.get("order_k")}
    shown |= {"uniform": figures.get("uniform")}
    return {
        name: float(bits)
        for name, bits in shown.items()
        if isinstance(bits, int | float) and not isinstance(bits, bool) and 0 <= bits < 1e6
    }
