"""Account of the inputs, counted exactly, by reason; and the journal that lets an interrupted run continue."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from hnet_cli.config.bounds import Bounds, typed
from hnet_cli.data.prepare.store import Writer, WriterState
from hnet_cli.errors import DamagedError, InputError
from hnet_cli.modality import Refused
from hnet_cli.storage import append_text, cut_file, open_file, shown
from hnet_cli.storage.reading import json_object

UNREADABLE = "file that cannot be read here"
MADE_BY_HNET = "made by hnet"
"""The end of a reason."""
TOLERATED = 0.01
"""Share of the input, by number or by bytes, that may be damaged."""


Amount = Annotated[int, Bounds(least=0, most=1 << 62)]
LONGEST_ENTRY = 64 << 20
"""Bytes of the longest line of the journal; a unit has a thousand files."""


@dataclass
class Account:
    """Account of a file, a unit of files, or the whole input."""

    refused: dict[str, tuple[Amount, Amount, str]] = field(default_factory=dict)
    """By reason: number, bytes, place of the first."""
    damage: list[str] = field(default_factory=list)
    """Reasons that are not a choice but damage."""
    notes: Counter[str] = field(default_factory=Counter)
    sources: list[dict[str, str | Amount]] = field(default_factory=list)
    """Name, size and SHA-256 of each file, or stretch of a large file, read."""
    documents: Counter[int] = field(default_factory=Counter)
    """Documents by index of the user's input."""
    first_refusal: dict[int, str] = field(default_factory=dict)
    bytes_read: Amount = 0
    elsewhere: list[int] = field(default_factory=list)
    """Indices of the user's inputs with files that are read as another's or held out, with what hnet wrote, or that are
    damaged: they may give no documents if others do."""

    def refuse(self, argument: int, refused: Refused) -> None:
        """Count something refused of the user's input with index `argument`."""
        count, size, where = self.refused.get(refused.reason, (0, 0, refused.where))
        self.refused[refused.reason] = count + 1, size + refused.bytes, where
        self.first_refusal.setdefault(argument, f"{refused.reason} ({refused.where})")
        if refused.damaged and refused.reason not in self.damage:
            self.damage.append(refused.reason)
        if refused.reason.endswith(MADE_BY_HNET) and argument not in self.elsewhere:
            self.elsewhere.append(argument)

    def merge(self, later: Account) -> None:
        """Add the account of files that come later."""
        for reason, (count, size, where) in later.refused.items():
            before, size_before, first = self.refused.get(reason, (0, 0, where))
            self.refused[reason] = before + count, size_before + size, first
        self.damage += [reason for reason in later.damage if reason not in self.damage]
        self.notes.update(later.notes)
        self.sources += later.sources
        self.documents.update(later.documents)
        self.first_refusal = later.first_refusal | self.first_refusal
        self.bytes_read += later.bytes_read
        self.elsewhere += later.elsewhere

    def refuse_damage(self, document_bytes: int, tolerated: float) -> None:
        """Raise InputError where more than a share `tolerated` of the items or bytes is damaged."""
        lost = {reason: self.refused[reason] for reason in self.damage}
        items, size = sum(n for n, _, _ in lost.values()), sum(size for _, size, _ in lost.values())
        share = max(items / max(1, items + self.documents.total()), size / max(1, size + document_bytes))
        if share > tolerated:
            kind = "unreadable" if all(reason.startswith(UNREADABLE) for reason in self.damage) else "damaged"
            reasons = "; ".join(f"{reason}: {count:,}, first {where}" for reason, (count, _, where) in lost.items())
            raise InputError(
                f"{100 * share:.2g}% of the input is {kind}, more than {100 * tolerated:.2g}%: {reasons}",
                "mend it, or give --allow-skips to go without it",
            )

    def to_json(self) -> dict[str, Any]:
        """Its attributes, as JSON can hold them."""
        return vars(self) | {"notes": dict(self.notes), "documents": dict(self.documents)}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Account:
        """Inverse of `to_json`, also after a JSON file. Raises DamagedError."""
        return typed(cls, data, "the account of a part")


@dataclass
class _Entry:
    """A line of the journal."""

    key: str
    state: WriterState
    account: Account


class UnitJournal:
    """The journal of a work folder: a line of JSON per finished unit, believed only as far as the files agree.

    A line torn by a kill, and all after it, counts as not written.
    """

    def __init__(self, work: Path) -> None:
        self.path = work / "journal.jsonl"

    def replay(self, keys: Sequence[str], writer: Writer, account: Account) -> int:
        """Bring `writer` and `account` to the state after the units that were finished; returns their number.

        `keys`: of all units, in order; none is taken for one without a key. Files in the folder beyond that state are
        removed.
        """
        done = 0
        if self.path.exists():
            end = 0
            with open_file(self.path) as file:
                for key in keys:
                    try:
                        entry = typed(_Entry, json_object(file.readline(LONGEST_ENTRY), self.path), shown(self.path))
                    except DamagedError:
                        break
                    unit = entry.account
                    if not key or entry.key != key or not writer.restore(entry.state):
                        break
                    account.merge(unit)
                    done, end = done + 1, file.tell()
            cut_file(self.path, end)
        writer.remove_others()
        return done

    def add(self, key: str, writer: Writer, unit: Account) -> None:
        """Note that a unit is finished."""
        entry = {"key": key, "state": vars(writer.state()), "account": unit.to_json()}
        append_text(self.path, json.dumps(entry) + "\n")
