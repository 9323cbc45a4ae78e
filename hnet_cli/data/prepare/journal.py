"""What has been done already: a line of JSON per finished unit of work, believed only as far as the files agree."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from hnet_cli.data.prepare.account import Account
from hnet_cli.data.prepare.store import State, Writer
from hnet_cli.storage import append_text, cut_file


class Journal:
    """The journal of a work folder. A line torn by a kill, and all after it, counts as not written."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def replay(self, keys: Sequence[str], writer: Writer, account: Account) -> int:
        """Bring `writer` and `account` to where the units with these keys, in this order, were finished; how many."""
        done = end = 0
        if not self.path.exists():
            return done
        with open(self.path, "rb") as file:
            for key in keys:
                try:
                    entry = json.loads(file.readline())
                    part = Account.from_json(entry["account"])
                    if entry["key"] != key or not writer.restore(State(**entry["state"])):
                        break
                except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
                    break
                account.merge(part)
                done, end = done + 1, file.tell()
        cut_file(self.path, end)
        return done

    def add(self, key: str, writer: Writer, part: Account) -> None:
        """Note that a unit is finished."""
        line = json.dumps({"key": key, "state": vars(writer.state()), "account": part.to_json()}) + "\n"
        append_text(self.path, line)
