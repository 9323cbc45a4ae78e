"""What became of the inputs: counted exactly, by reason, and written down for a run that goes on later."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from hnet_cli.errors import InputError
from hnet_cli.modality import Refused

TOLERATED = 0.01
"""Share of what was meant to be read that may be damaged, by number or by bytes."""


@dataclass
class Account:
    """Of a file, a unit of files, or the whole input."""

    refused: dict[str, tuple[int, int, str]] = field(default_factory=dict)
    """By reason: how many, how many bytes, where the first was."""
    damage: list[str] = field(default_factory=list)
    """Reasons that are not a choice but damage."""
    notes: Counter[str] = field(default_factory=Counter)
    sources: list[dict[str, Any]] = field(default_factory=list)
    """Name, size and SHA-256 of each file, or stretch of a large file, read."""
    documents: Counter[int] = field(default_factory=Counter)
    """By index of the user's input."""
    first_refusal: dict[int, str] = field(default_factory=dict)
    bytes_read: int = 0

    def refuse(self, argument: int, refused: Refused) -> None:
        count, size, where = self.refused.get(refused.reason, (0, 0, refused.where))
        self.refused[refused.reason] = count + 1, size + refused.bytes, where
        self.first_refusal.setdefault(argument, f"{refused.reason} ({refused.where})")
        if refused.damaged and refused.reason not in self.damage:
            self.damage.append(refused.reason)

    def merge(self, later: Account) -> None:
        for reason, (count, size, where) in later.refused.items():
            before, size_before, first = self.refused.get(reason, (0, 0, where))
            self.refused[reason] = before + count, size_before + size, first
        self.damage += [reason for reason in later.damage if reason not in self.damage]
        self.notes.update(later.notes)
        self.sources += later.sources
        self.documents.update(later.documents)
        self.first_refusal = later.first_refusal | self.first_refusal
        self.bytes_read += later.bytes_read

    def refuse_damage(self, kept_bytes: int, tolerated: float) -> None:
        """Raise InputError where more than a share `tolerated` of the items or bytes that were to be read is damaged.

        `kept_bytes`: bytes of the documents.
        """
        lost = [self.refused[reason] for reason in self.damage]
        items, size = sum(entry[0] for entry in lost), sum(entry[1] for entry in lost)
        share = max(items / max(1, items + self.documents.total()), size / max(1, size + kept_bytes))
        if share > tolerated:
            told = "; ".join(f"{reason}: {count:,}, first {where}" for reason, (count, _, where) in
                             zip(self.damage, lost, strict=True))  # fmt: skip
            raise InputError(
                f"{100 * share:.2g}% of the input is damaged, more than {100 * tolerated:.2g}%: {told}",
                "mend it, or give --allow-skips to go without it",
            )

    def to_json(self) -> dict[str, Any]:
        return vars(self) | {"notes": dict(self.notes), "documents": dict(self.documents)}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Account:
        """The inverse of `to_json`, also after a JSON file."""
        return cls(
            refused={reason: (int(n), int(size), where) for reason, (n, size, where) in data["refused"].items()},
            damage=list(data["damage"]),
            notes=Counter(data["notes"]),
            sources=data["sources"],
            documents=Counter({int(k): v for k, v in data["documents"].items()}),
            first_refusal={int(k): v for k, v in data["first_refusal"].items()},
            bytes_read=data["bytes_read"],
        )
