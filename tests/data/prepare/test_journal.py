"""Accounts add up, survive JSON, and refuse too much damage; a journal continues only as far as files agree."""

import json
from pathlib import Path

import pytest

from hnet_cli.data.prepare.journal import Account, UnitJournal
from hnet_cli.data.prepare.store import Writer
from hnet_cli.errors import InputError
from hnet_cli.modality import Refused


def test_accounts_merge_and_survive_json() -> None:
    first, later = Account(bytes_read=5), Account(bytes_read=7)
    first.refuse(0, Refused("odd", "a:1", 10))
    later.refuse(0, Refused("odd", "b:1", 1))
    later.refuse(1, Refused("torn", "b:2", 2, damaged=True))
    first.documents[0], later.documents[0] = 97, 1
    first.merge(Account.from_json(json.loads(json.dumps(later.to_json()))))
    assert first.refused == {"odd": (2, 11, "a:1"), "torn": (1, 2, "b:2")}
    assert first.first_refusal == {0: "odd (a:1)", 1: "torn (b:2)"}
    assert (first.bytes_read, first.documents.total(), first.damage) == (12, 98, ["torn"])
    first.refuse_damage(document_bytes=1000, tolerated=0.02)
    with pytest.raises(InputError, match=r"1% of the input is damaged, more than 0\.5%: torn: 1, first b:2"):
        first.refuse_damage(document_bytes=1000, tolerated=0.005)


@pytest.mark.parametrize("damaged", ["", "documents.bin", "shard-00000.bin", "journal.jsonl"])
def test_a_journal_is_believed_as_far_as_the_files_agree(tmp_path: Path, damaged: str) -> None:
    folder = tmp_path / "done"
    folder.mkdir()
    writer, journal = Writer(folder), UnitJournal(tmp_path)
    for unit in range(3):
        writer.add(b"%d" % unit * 100, unit, 0, f"name {unit}", "group")
        journal.add(f"key {unit}", writer, Account(bytes_read=unit))
    if damaged:
        file = next(tmp_path.rglob(damaged))
        data = bytearray(file.read_bytes())
        data[len(data) // 2] ^= 1  # in the second unit
        file.write_bytes(data)
    again, account = Writer(folder), Account()
    done = UnitJournal(tmp_path).replay(["key 0", "key 1", "other"], again, account)
    assert done == (1 if damaged else 2)
    assert (again.documents, again.bytes, account.bytes_read) == (done, 100 * done, done - 1)
    assert len((tmp_path / "journal.jsonl").read_text().splitlines()) == done
