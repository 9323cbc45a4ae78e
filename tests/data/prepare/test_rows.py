"""Rows of JSON and parquet: one bad row costs itself, wherever blocks tear it apart."""

from __future__ import annotations

import gzip
import io
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from corpuskit import make, stored, text
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from hnet_cli import modality
from hnet_cli.data.dataset import Dataset
from hnet_cli.data.prepare import rows
from hnet_cli.data.prepare.preparation import prepare
from hnet_cli.data.prepare.rows import LINES, LIST, RowReader, form
from hnet_cli.errors import InputError, UsageError
from hnet_cli.modality import Refused, Source


def test_bad_rows_are_refused_by_reason_and_number(tmp_path: Path) -> None:
    rows = [
        json.dumps({"text": text(1).decode()}),
        "{",
        "[1]",
        '{"text": 3}',
        "{}",
        '{"text": "\\ud800"}',
        "[" * 100000,
    ]
    (tmp_path / "x.jsonl").write_text("\n".join(rows))
    with pytest.raises(InputError, match=r"is damaged, more than 1%: row is not JSON: 2, first .*x\.jsonl:2;"):
        make(tmp_path / "out", tmp_path / "x.jsonl")
    summary, _ = make(tmp_path / "out", tmp_path / "x.jsonl", tolerated=1.0)
    reasons = {reason: (count, where.split(":")[-1]) for reason, (count, _, where) in summary.refused.items()}
    assert reasons == {
        "row is not JSON": (2, "2"),
        "row is not a JSON object": (1, "3"),
        "row has no text in field 'text'": (2, "4"),
        "row with half a surrogate pair": (1, "6"),
    }
    (tmp_path / "y.jsonl").write_text('{"prose": "x"}\n')
    with pytest.raises(UsageError, match="none of the fields"):
        make(tmp_path / "out2", tmp_path / "y.jsonl")


GOOD = [json.dumps({"text": f"row {n}"}) for n in range(3)]
ODD = {
    "an integer of 5,000 digits": ('{"n": %s, "text": "kept"}' % ("9" * 5000), b"kept"),
    "a text that is an integer": ('{"text": %s}' % ("9" * 5000), "row has no text in field 'text'"),
    "not a number": ('{"n": [NaN, Infinity, -Infinity, 1e999], "text": "kept"}', b"kept"),
    "keys twice": ('{"text": "first", "text": "kept"}', b"kept"),
    "depth": ('{"text": "x", "n": %s}' % ("[" * 10_000 + "]" * 10_000), "row is not JSON"),
    "half a pair": ('{"text": "\\ud800"}', "row with half a surrogate pair"),
    "half a pair elsewhere": ('{"n": "\\ud800", "text": "kept"}', b"kept"),
    "a pair": ('{"text": "\\ud83d\\ude00"}', "😀".encode()),
    "null": ('{"text": null}', "empty"),
    "no field": ('{"n": null}', "row has no text in field 'text'"),
    "nothing": ("{}", "row has no text in field 'text'"),
    "a row of null": ("null", "empty"),
    "a list": ("[1, 2]", "row is not a JSON object"),
    "a string": ('"a, b"', "row is not"),
    "a control character": ('{"text": "\x01"}', "row is not JSON"),
    "a mark": ('{"text": "\\ufeffx"}', b"\xef\xbb\xbfx"),
}


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("as_list", [False, True])
@pytest.mark.parametrize("before", [0, 3])
def test_one_row_does_not_decide_about_a_file(odd: str, as_list: bool, before: int) -> None:
    """Wherever it stands. One without the field is no damage: many programs leave out what is null."""
    row, expected = ODD[odd]
    lines = [*GOOD, *GOOD]
    lines.insert(before, row)
    joined = "[" + ",\n".join(lines) + "]" if as_list else "\n".join(lines)
    reader = RowReader("x", None, Counter())
    read = reader.elements if as_list else reader.lines
    items = list(read(io.BytesIO(joined.encode())))
    found = [item.open().read() if isinstance(item, Source) else item.reason for item in items]
    assert [item for item in found if str(item).startswith("b'row ")] == [b"row 0", b"row 1", b"row 2"] * 2
    if isinstance(expected, bytes):
        assert found[before] == expected
    else:
        assert {item[: len(expected)] for item in found[before : before - 6]} == {expected}
        (refused, *_) = [item for item in items if isinstance(item, Refused)]
        assert refused.damaged == (expected != "empty" and odd not in ("no field", "nothing"))


@pytest.mark.parametrize("as_list", [False, True])
def test_rows_without_a_usual_field_say_which_they_have(as_list: bool) -> None:
    for number in (1, 3000):
        items = ['{"prose": "x"}', *["{}"] * number]
        joined = f"[{','.join(items)}]" if as_list else "\n".join(items)
        reader = RowReader("x", None, Counter())
        with pytest.raises(rows.NoField, match="none of the fields") as error:
            list((reader.elements if as_list else reader.lines)(io.BytesIO(joined.encode())))
        assert "['prose']" in str(error.value.hint)


@pytest.mark.parametrize("as_list", [False, True])
def test_a_row_of_millions_of_values_is_refused_before_it_is_parsed(
    as_list: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """64 MB of empty lists took 1.7 GB. Brackets in strings are no values."""
    monkeypatch.setattr(rows, "MOST_VALUES", 100)
    kept = {"text": '[[{{"' * 60, "more": [{}] * 98}
    items = [json.dumps(row) for row in (kept, {"text": "x", "more": [[]] * 100}, kept, {"text": "y"})]
    text = f"[{','.join(items)}]" if as_list else "\n".join(items)
    reader = RowReader("x", "text", Counter())
    found = list((reader.elements if as_list else reader.lines)(io.BytesIO(text.encode())))
    assert [item.reason if isinstance(item, Refused) else item.open().read().decode() for item in found] == [
        kept["text"],
        rows.CROWDED,
        kept["text"],
        "y",
    ]


def test_names_of_fields_are_quoted_in_part() -> None:
    with pytest.raises(UsageError) as caught:
        list(RowReader("x", None, Counter()).lines(io.BytesIO(b'{"' + b"k" * 100_000 + b'": 1}\n')))
    assert len(caught.value.hint) < 200


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20) | st.text('"\\[]{},'),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


@pytest.mark.slow
@given(
    elements=st.lists(st.dictionaries(st.text(max_size=4), JSON, max_size=3), max_size=6),
    block=st.integers(1, 40),
    limit=st.sampled_from([40, 1 << 20]),
    style=st.sampled_from([{}, {"indent": 1}, {"ensure_ascii": False}, {"separators": (",", ":")}]),
)
def test_elements_of_a_list_are_found_whatever_they_hold(
    elements: list[Any], block: int, limit: int, style: dict[str, Any]
) -> None:
    """Torn apart anywhere; those that are too long are left out with their size."""
    data = json.dumps(elements, **style).encode()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rows, "READ_BYTES", block)
        patch.setattr(rows, "ROW_LIMIT", limit)
        found = list(rows._elements("x", io.BytesIO(b"\xef\xbb\xbf \n" + data + b"\n")))
    assert len(found) == len(elements)
    for (content, size), element in zip(found, elements, strict=True):
        assert size >= len(json.dumps(element, ensure_ascii=False, separators=(",", ":")).encode())
        assert json.loads(content) == element if content else size > limit
        assert content or limit == 40


def test_a_list_without_an_end_is_truncated() -> None:
    whole = json.dumps([{"text": "a]}"}, {"text": "b"}]).encode()
    for size in range(1, len(whole)):
        with pytest.raises(InputError, match=r"x is truncated: its JSON list does not end"):
            list(rows._elements("x", io.BytesIO(whole[:size])))
    assert len(list(rows._elements("x", io.BytesIO(whole + whole)))) == 4


@pytest.mark.parametrize(
    ("head", "found"),
    [
        (b"", ""),
        (b"prose\n", ""),
        (b'{"text": "x"}', LINES),
        (b'{"prose": "x"}\n', ""),
        (b'{"text": 5}\n', ""),
        (b'{"text": "x"}\n{oops\n{"text": "y"}\n', LINES),
        (b'oops\n{"text": "x"}\n', ""),
        (b'{\n  "text": "x"\n}\n', ""),
        (b'{"text": "' + b"x" * (1 << 16), LINES),
        (b'{"prose": "' + b"x" * (1 << 16), ""),
        (b'{"text": "a row that was cut', LINES),
        (b'[\n {"text": "x"}]', LIST),
        (b'[{"prose": "x"}]', ""),
        (b"[1, 2]\n", ""),
    ],
)
def test_the_form_is_told_by_the_first_bytes(head: bytes, found: str) -> None:
    assert form("x.txt", head, None, ()) == found
    assert form("x.json", head, None, {".json"}) == ""
    assert form("x.json", head, "prose", {".json"}) == (found or (LINES if head[:2] == b'{"' else "")) or b"[{" in head


@pytest.mark.parametrize("name", ["x.txt", "x.json.gz"])
@pytest.mark.parametrize("row", ['{"prose": "%d of some hundred"}\n', '[{"prose": "%d"}]\n', "{%d\n"])
def test_json_that_is_read_as_it_is_is_noted(name: str, row: str, tmp_path: Path) -> None:
    data = "".join(row % n for n in range(900)).encode()
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    summary = prepare([tmp_path / name], modality.get("text"), tmp_path / "out", measure=False)
    assert stored(Dataset.open(tmp_path / "out")) == data
    assert any("--field" in note for note in summary.notes) == ("prose" in row)


def test_packed_parquet_is_no_damage(tmp_path: Path) -> None:
    parquet.write_table(pyarrow.table({"text": ["x" * 3000]}), tmp_path / "x.parquet")
    (tmp_path / "y.parquet.gz").write_bytes(gzip.compress((tmp_path / "x.parquet").read_bytes()))
    with pytest.raises(InputError, match="parquet that is packed"):
        make(tmp_path / "out", tmp_path / "y.parquet.gz")


def strings(kind: pyarrow.DataType, values: list[bytes | None]) -> pyarrow.Array:
    """An array of strings that need not be UTF-8."""
    if pyarrow.types.is_dictionary(kind):
        known = [value for value in dict.fromkeys(values) if value is not None]
        indices = pyarrow.array([None if value is None else known.index(value) for value in values], pyarrow.int32())
        return pyarrow.DictionaryArray.from_arrays(indices, strings(kind.value_type, [*known]))
    plain = {"string": "binary", "large_string": "large_binary", "string_view": "binary_view"}.get(str(kind), str(kind))
    array = pyarrow.array(values, getattr(pyarrow, plain)())
    return pyarrow.Array.from_buffers(kind, len(array), array.buffers())


KINDS = [pyarrow.string(), pyarrow.large_string(), pyarrow.string_view(), pyarrow.binary(), pyarrow.large_binary()]
KINDS += [pyarrow.binary_view(), *(pyarrow.dictionary(pyarrow.int32(), kind) for kind in KINDS[:2])]


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("options", [{}, {"store_schema": False}, {"use_dictionary": False, "compression": "zstd"}])
def test_a_row_of_parquet_that_is_no_text_costs_itself(
    kind: pyarrow.DataType, options: dict[str, Any], tmp_path: Path
) -> None:
    """In any of the types that hold strings, with nulls, which are empty rows and no damage."""
    values: list[bytes | None] = [b"document %d, long enough to count " % n for n in range(400)]
    values[7], values[100], values[333] = "caf\xe9".encode("latin-1"), None, b""
    table = pyarrow.table({"text": strings(kind, values), "n": list(range(400))})
    parquet.write_table(table, tmp_path / "x", row_group_size=90, **options)
    summary = prepare([tmp_path / "x"], modality.get("text"), tmp_path / "out", measure=False)
    dataset = Dataset.open(tmp_path / "out")
    assert stored(dataset) == b"".join(value or b"" for n, value in enumerate(values) if n != 7)
    assert {reason: count for reason, (count, _, _) in summary.refused.items()} == {"not UTF-8": 1, "empty": 2}
    assert dataset.name(100).endswith("x:103")


def test_a_column_that_holds_no_text_is_said_row_by_row(tmp_path: Path) -> None:
    columns = {"text": [1, None], "list": [["a"], ["b"]], "struct": [{"a": "x"}, None]}
    parquet.write_table(pyarrow.table(columns), tmp_path / "x.parquet")
    for name in columns:
        with pytest.raises(InputError, match=rf"nothing to use in .*row has no text in field '{name}' .*x\.parquet:1"):
            make(tmp_path / "out", tmp_path / "x.parquet", field=name)


def sources(rows: list[Any], field: rows.Field = None) -> list[tuple[bytes, int | None] | str]:
    """Content and length of the prompt of each source in rows, or why it was refused."""
    lines = b"".join(json.dumps(row).encode() + b"\n" for row in rows)
    found = RowReader("x", field, Counter()).lines(io.BytesIO(lines))
    return [each.reason if isinstance(each, Refused) else (each.open().read(), each.completion) for each in found]


@pytest.mark.parametrize("field", [None, ("prompt", "completion")])
def test_a_prompt_and_its_completion_are_one_source(field: rows.Field) -> None:
    pair = {"prompt": "Zoë:", "completion": "ja"}
    broken = [pair | {"completion": value} for value in (None, 3, "\ud800")]
    assert sources([pair, {"prompt": "", "completion": "x"}, pair | {"completion": ""}, *broken], field) == [
        ("Zoë:ja".encode(), 5),
        (b"x", 0),
        ("Zoë:".encode(), 5),
        "empty",
        "row has no text in field 'completion'",
        "row with half a surrogate pair",
    ]


def test_every_reply_of_a_conversation_is_a_completion() -> None:
    said = [("system", "Be brief."), ("user", "Hi"), ("assistant", "Hello."), ("user", "Bye"), ("assistant", "Bye.")]
    messages = [{"role": role, "content": content} for role, content in said]
    first = b"system: Be brief.\nuser: Hi\nassistant: "
    second = first + b"Hello.\nuser: Bye\nassistant: "
    wrong = [messages[:2], [], [3], [{"role": "assistant", "content": None}]]
    rows = [{"messages": each} for each in (messages, *wrong)]
    refused = "row has no conversation with a reply in field 'messages'"
    assert sources(rows) == [(first + b"Hello.", len(first)), (second + b"Bye.", len(second)), *[refused] * 4]
    assert sources(rows, "messages") == sources(rows)
    assert form("x.json", json.dumps(rows).encode(), None, ()) == LIST
    assert form("x.txt", b"".join(json.dumps(row).encode() + b"\n" for row in rows[:1]), None, ()) == LINES


def test_replies_of_a_conversation_have_names_and_one_group() -> None:
    """A number where there are several."""
    turns = [{"role": role, "content": "x"} for role in ("user", "assistant") * 2]
    lines = b"".join(json.dumps({"messages": each}).encode() + b"\n" for each in (turns, turns[:2]))
    found = [each for each in RowReader("x", None, Counter()).lines(io.BytesIO(lines)) if not isinstance(each, Refused)]
    assert [(each.name, each.group) for each in found] == [("x:1.1", "x:1"), ("x:1.2", "x:1"), ("x:2", "x:2")]


def test_prompts_of_a_conversation_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each repeats all that was said before: together they grow with the square of the row."""
    monkeypatch.setattr(rows, "ROW_LIMIT", 5000)
    talk = [{"role": "assistant", "content": "Well."} for _ in range(40)]
    (refused,) = sources([{"messages": talk}])
    assert str(refused).startswith("conversation whose prompts add up to more than")
    assert len(sources([{"messages": talk[:20]}])) == 20


def test_a_prompt_that_runs_into_its_completion_is_noted() -> None:
    notes = Counter[str]()
    pairs = [("plural of ox", "oxen"), ("plural of ox: ", "oxen"), ("", "oxen")]
    pairs += [("два вола", "волы"), ("两头牛", "牛群"), ("两头牛：", "牛群"), ("ox 🐂", "oxen")]
    lines = b"".join(json.dumps({"prompt": p, "completion": c}).encode() + b"\n" for p, c in pairs)
    list(RowReader("x", None, notes).lines(io.BytesIO(lines)))
    assert notes == {"row read from its fields 'prompt' and 'completion'": 7, rows._JOINED: 3}


def test_conversations_of_a_parquet_file(tmp_path: Path) -> None:
    """The same as in JSON: the usual field is found, and every reply is a completion."""
    said = [[("user", f"Is {n} even?"), ("assistant", "odd" if n % 2 else "even")] * 2 for n in range(60)]
    talks = [[{"role": role, "content": content} for role, content in each] for each in said]
    parquet.write_table(pyarrow.table({"id": range(60), "messages": talks}), tmp_path / "x.parquet")
    (tmp_path / "x.jsonl").write_text("".join(json.dumps({"messages": each}) + "\n" for each in talks))
    found = []
    for name in ("x.parquet", "x.jsonl"):
        prepare([tmp_path / name], modality.get("text"), tmp_path / f"{name}-out", measure=False)
        found.append(stored(Dataset.open(tmp_path / f"{name}-out")))
    assert found[0] == found[1]
    assert found[0].startswith(b"user: Is 0 even?\nassistant: even\xff")


def test_a_list_that_cannot_be_read_costs_its_row(tmp_path: Path) -> None:
    turn = pyarrow.struct([("role", pyarrow.string()), ("content", pyarrow.binary())])
    talks = [[{"role": "assistant", "content": b"said %d times, and more" % n}] for n in range(99)]
    talks[7][0]["content"] = b"caf\xe9"
    column = pyarrow.array(talks, pyarrow.list_(turn))
    roles, contents = (column.flatten().field(n) for n in (0, 1))
    broken = pyarrow.StringArray.from_buffers(len(contents), *contents.buffers()[1:])  # as a careless writer does
    turns = pyarrow.StructArray.from_arrays([roles, broken], ["role", "content"])
    table = pyarrow.table({"messages": pyarrow.ListArray.from_arrays(column.offsets, turns)})
    parquet.write_table(table, tmp_path / "x.parquet")
    summary = prepare([tmp_path / "x.parquet"], modality.get("text"), tmp_path / "out", measure=False, tolerated=0.02)
    assert summary.documents == 98
    assert summary.refused["row has no text in field 'messages'"][0] == 1
    times = pyarrow.array([[10**18 + 1]], pyarrow.list_(pyarrow.timestamp("ns")))
    parquet.write_table(pyarrow.table({"t": times}), tmp_path / "t.parquet")
    with pytest.raises(InputError, match="row has no text in field 't'"):
        make(tmp_path / "other", tmp_path / "t.parquet", field="t")


def test_a_column_that_is_there_twice_is_named(tmp_path: Path) -> None:
    parquet.write_table(pyarrow.table([["a"], ["b"]], names=["text", "text"]), tmp_path / "x.parquet")
    with pytest.raises(InputError, match="2 columns 'text'"):
        make(tmp_path / "out", tmp_path / "x.parquet")


def test_pairs_of_a_parquet_file(tmp_path: Path) -> None:
    table = {"q": ["a:", "b:", None, *[f"{'many words ' * 10}{n}\n" for n in range(30)]], "n": range(33)}
    parquet.write_table(pyarrow.table(table | {"a": ["x", "y", "z"] * 11}), tmp_path / "x.parquet")
    summary = prepare([tmp_path / "x.parquet"], modality.get("text"), tmp_path / "out", field=("q", "a"), measure=False)
    dataset = Dataset.open(tmp_path / "out")
    assert stored(dataset)[:10] == b"a:x\xffb:y\xffma"
    assert dataset.table[:2, 3].tolist() == [-2, -2]
    assert summary.refused["empty"][0] == 1
    with pytest.raises(UsageError, match="no column 'b'"):
        prepare([tmp_path / "x.parquet"], modality.get("text"), tmp_path / "two", field=("q", "b"))
