"""Rows as sources: JSON lines, the elements of one JSON list, the rows of a parquet file. Told by content, not by name.

A row is a text, a prompt and its completion, or a conversation: a list of messages, each with a role and a content. Of
a conversation every reply of the assistant is a completion, and what was said before it the prompt, a line a message:

    user: Plural of ox?
    assistant:

A row that cannot be read is refused by reason; the others are kept.
"""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from hnet_cli.data.prepare.inputs import FileReader
from hnet_cli.errors import EnvironmentLimit, InputError, UsageError
from hnet_cli.modality import MARK, Refused, Source, suffix, wide_encoding
from hnet_cli.storage.streams import READ_BYTES, Unreadable, open_raw

ROW_LIMIT = 64 << 20
"""Bytes in the longest row of JSON that is read."""
MOST_VALUES = 1 << 22
"""Lists and objects in a row: an empty list takes two bytes in a file and 64 in memory."""
FORM_BYTES = 1 << 16
"""First bytes of a file by which `form` judges."""
LINES, LIST = "lines", "list"
NAMES = (".jsonl", ".ndjson")
"""Extensions of files that hold nothing but rows."""
CROWDED = f"row of more than {MOST_VALUES:,} lists and objects"
NO_ROWS = "no rows, to which --field could apply"
Field = str | tuple[str, str] | None
"""The field of rows that is read, those of prompt and completion, or None: the first usual one of the first row."""
_FIELDS: tuple[str, ...] = ("text", "content", "body")
_PAIR = ("prompt", "completion")
_MESSAGES = "messages"
_REPLY = "assistant"
_JOINED = "row whose prompt runs into its completion: end prompts with a line break or another mark"
_ABSENT = object()
_SPACE = b" \t\r\n"
_LINES_JUDGED = 20
_MOST_ODD = 1000
"""Rows without a usual field after which none is expected."""
_OPENS_LIST = re.compile(rb"\[[ \t\r\n]*\{")
_USUAL_FIELD = re.compile(rb'"(?:text|content|body|prompt)"[ \t\r\n]*:[ \t\r\n]*"')
_MARKS = re.compile(rb'["\[\]{}]')
_REST_OF_STRING = re.compile(rb'[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)
# Numbers are of no use here, and Python refuses whole ones of more than 4,300 digits.
_DECODE = json.JSONDecoder(parse_int=float).decode


class NoField(UsageError):
    """The rows of a file lack the field."""


class NoRows(NoField):
    """`--field` is given, but the file has no rows."""


def option_of(field: Field) -> str:
    """The option that names a field, for messages."""
    if isinstance(field, tuple):
        return f"--prompt-field {field[0]} --completion-field {field[1]}"
    return f"--field {field}"


def form(name: str, head: bytes, field: Field, verbatim: Collection[str]) -> str:
    """`LINES` or `LIST` for a file `name` that begins with `head` (`FORM_BYTES`, or all of it) and holds rows, else "".

    Rows by any other name than `NAMES` have the field, or one of the usual ones where none is given; `verbatim` as in
    `Modality`.
    """
    start = head.removeprefix(MARK).lstrip(_SPACE)
    by_name = suffix(name) in NAMES
    if wide_encoding(head) or not (by_name or start[:1] in (b"{", b"[")):
        return ""
    if _OPENS_LIST.match(start):
        guessed = suffix(name) not in verbatim and _USUAL_FIELD.search(start)
        return LIST if by_name or field is not None or guessed else ""
    if by_name:
        return LINES
    if field is None and suffix(name) in verbatim:
        return ""
    rows = _first_rows(start)
    if not rows:
        return LINES if start[:1] == b"{" and (field is not None or _USUAL_FIELD.search(start)) else ""
    usual = field is not None or any(_has_usual(row) for row in rows if isinstance(row, dict))
    return LINES if usual and _are_objects(rows) else ""


def are_objects(head: bytes) -> bool:
    """True if a file that begins with `head` (`FORM_BYTES`, or all of it) holds objects of JSON, one a line or in a
    list."""
    start = head.removeprefix(MARK).lstrip(_SPACE)
    return bool(_OPENS_LIST.match(start)) or (start[:1] == b"{" and _are_objects(_first_rows(start)))


def _first_rows(start: bytes) -> list[Any]:
    """The values of the first lines."""
    *lines, last = start.split(b"\n", _LINES_JUDGED)
    rows = [parsed(line) for line in lines if line.strip()]
    if len(lines) < _LINES_JUDGED and not isinstance(row := parsed(last), InputError):
        rows.append(row)  # else it is not all of the line
    return rows


def _are_objects(rows: Sequence[Any]) -> bool:
    return 2 * sum(isinstance(row, dict) for row in rows) >= max(1, len(rows))


def parsed(line: bytes) -> Any:
    """The value of a row of JSON; an InputError for what is none, or has more than `MOST_VALUES` lists and objects."""
    if _parts(line) > MOST_VALUES and _parts(_STRING.sub(b"", line)) > MOST_VALUES:
        return InputError(CROWDED)
    try:
        return _DECODE(line.removeprefix(MARK).decode())  # where files were joined, a mark may begin any line
    except (ValueError, RecursionError) as error:
        return InputError(str(error))


def _parts(line: bytes) -> int:
    return line.count(b"[") + line.count(b"{")


@dataclass
class RowReader:
    """Reads the rows of one file or member of an archive."""

    name: str
    field: Field
    notes: Counter[str]
    _guessed: str = ""
    _odd: list[tuple[str, int, list[str]]] = dataclasses.field(default_factory=list)
    """Name, size and first keys of the rows before the first with a usual field."""

    def lines(self, stream: BinaryIO, start: int | None = None, path: Path | None = None) -> Iterator[Source | Refused]:
        """A source per line, named by its number.

        In a stretch that begins at byte `start` of the file `path`, rows are named by the byte where they begin: nobody
        has counted the lines before.
        """
        if start and path is not None and self.field is None:
            self._look_ahead(path)
        number, position = 0, start or 0
        while line := stream.readline(ROW_LIMIT):
            number += 1
            where, size = f"{self.name}:{number}" if start is None else f"{self.name}@{position}", len(line)
            if size == ROW_LIMIT and line[-1:] != b"\n":
                while more := stream.readline(READ_BYTES):
                    size += len(more)
                    if more[-1:] == b"\n":
                        break
                line = b""
            if line.strip() or size >= ROW_LIMIT:
                yield from self._row(where, line, size)
            position += size
        self._check()

    def elements(self, stream: BinaryIO) -> Iterator[Source | Refused]:
        """A source per element of a JSON list, named by its number."""
        for number, (content, size) in enumerate(_elements(self.name, stream), 1):
            yield from self._row(f"{self.name}:{number}", content, size)
        self._check()

    def table(self, reader: FileReader) -> Iterator[Source | Refused]:
        """A source per row of a parquet file, a few rows in memory at a time."""
        pyarrow = _pyarrow(self.name)
        try:
            with _open_table(reader.open_seekable()) as table:
                columns = table.schema_arrow.names
                groups = [table.metadata.row_group(index) for index in range(table.num_row_groups)]
                start, end = reader.file.part or (0, sys.maxsize)
                mine = [index for index, group in enumerate(groups) if start <= _first_byte(group) < end]
                if self.field is None:
                    self._choose(columns)
                    self.notes[self._guessed] += sum(groups[index].num_rows for index in mine)
                names = _names(self.field)
                if twice := [name for name in names if columns.count(name) > 1]:
                    raise InputError(f"{self.name} has {columns.count(twice[0])} columns {twice[0]!r}", "rename one")
                if absent := [name for name in names if name not in columns]:
                    raise NoField(
                        f"{self.name} has no column {absent[0]!r}", f"there is {[name[:40] for name in columns[:8]]}"
                    )
                number = sum(group.num_rows for group in groups[: mine[0]]) if mine else 0
                for batch in table.iter_batches(64, mine, columns=list(names), use_threads=False):
                    for values in zip(*(_as_bytes(pyarrow, batch.column(name)) for name in names), strict=True):
                        number += 1
                        yield from self._sources(f"{self.name}:{number}", values, 0)
        except (NotImplementedError, pyarrow.lib.ArrowCapacityError) as error:
            reason = f"pyarrow cannot read {self.name}: {_one_line(error)}"
            raise Unreadable(reason, "write it anew, in smaller row groups, as plain strings") from error
        except pyarrow.lib.ArrowMemoryError as error:
            reason = f"not enough memory to read {self.name}: {_one_line(error)}"
            raise EnvironmentLimit(reason, "write it anew in smaller row groups") from error
        except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
            raise InputError(
                f"{self.name} is damaged or truncated: {_one_line(error)}", "get the file again"
            ) from error

    def _row(self, where: str, line: bytes, size: int) -> Iterator[Source | Refused]:
        """The source in a row of JSON, of a conversation several; `line` is empty for one that was too long to be
        kept."""
        if not line:
            yield Refused(f"row longer than {ROW_LIMIT >> 20} MiB", where, size)
            return
        row = parsed(line)
        if row is None:
            yield Refused("empty", where, size)
            return
        if not isinstance(row, dict):
            reason = "row is not JSON" if isinstance(row, InputError) else "row is not a JSON object"
            reason = CROWDED if str(row) == CROWDED else reason
            yield Refused(reason, where, size, damaged=True)
            return
        if self.field is None:
            if _guess(row) is None:
                self._odd.append((where, size, list(row)[:8]))
                if len(self._odd) == _MOST_ODD:
                    self._check()
                return
            self._choose(row)
        for odd, odd_size, _ in self._odd:
            yield Refused(f"row has no text in field {_names(self.field)[0]!r}", odd, odd_size)
        self._odd = []
        if self._guessed:
            self.notes[self._guessed] += 1
        yield from self._sources(where, [row.get(name, _ABSENT) for name in _names(self.field)], size)

    def _sources(self, where: str, values: Sequence[object], size: int) -> Iterator[Source | Refused]:
        """The source of the values of a row's fields; of a conversation one for each reply."""
        if len(values) > 1 or not isinstance(values[0], list):
            yield self._source(where, values, size)
        elif turns := _turns(values[0]):
            for number, turn in enumerate(turns, 1):
                yield self._source(f"{where}.{number}" if len(turns) > 1 else where, turn, size, where)
        else:
            reason = f"row has no conversation with a reply in field {self.field!r}"
            if turns is None:
                reason = f"conversation whose prompts add up to more than {ROW_LIMIT >> 20} MiB"
            yield Refused(reason, where, size, damaged=True)

    def _source(self, where: str, values: Sequence[object], size: int, group: str = "") -> Source | Refused:
        """A text, or a prompt and its completion, as a source; by default a group of its own."""
        if any(value is None for value in values):
            return Refused("empty", where, size)
        parts = []
        for value, name in zip(values, 2 * _names(self.field), strict=False):
            if not isinstance(value, bytes | str):
                # Many programs leave out a field whose value is null.
                damaged = value is not _ABSENT
                return Refused(f"row has no text in field {name!r}", where, size, damaged=damaged)
            try:
                parts.append(value.encode() if isinstance(value, str) else value)
            except UnicodeEncodeError:
                return Refused("row with half a surrogate pair", where, size, damaged=True)
        if len(parts) == 1:
            return Source.of_bytes(parts[0], where, group or where)
        prompt, completion = parts
        ends = prompt[-4:].decode(errors="ignore")[-1:], completion[:4].decode(errors="ignore")[:1]
        if all(map(str.isalnum, ends)):
            self.notes[_JOINED] += 1
        return Source.of_bytes(prompt + completion, where, group or where, len(prompt))

    def _check(self) -> None:
        """Raise NoField where no row so far had a usual field."""
        if self.field is None and self._odd:
            self._choose(self._odd[0][2])

    def _look_ahead(self, path: Path) -> None:
        """Choose the field by the first row of the file that has a usual one."""
        with open_raw(path) as file:
            rows = (parsed(file.readline(ROW_LIMIT)) for _ in range(_MOST_ODD))
            objects = (row for row in rows if isinstance(row, dict))
            first = next(objects, None)
            usual = first if first is None or _guess(first) else next(filter(_guess, objects), first)
        if usual is not None:
            self._choose(usual)

    def _choose(self, row: Collection[str]) -> None:
        """Choose the usual field of a row, and what to note about it. Raises NoField."""
        self.field = _guess(row)
        if self.field is None:
            usual = ", ".join((*_FIELDS, " and ".join(_PAIR), _MESSAGES))
            hint = f"name it with --field; there is {[name[:40] for name in list(row)[:8]]}"
            raise NoField(f"{self.name}: rows have none of the fields {usual}", hint)
        fields = " and ".join(map(repr, _names(self.field)))
        self._guessed = f"row read from its field{'s' * isinstance(self.field, tuple)} {fields}"


def _guess(row: Collection[str]) -> Field:
    """The usual field of a row, or the usual two; None if it has none."""
    found = next((name for name in _FIELDS if name in row), None)
    return found or (_PAIR if all(name in row for name in _PAIR) else _MESSAGES if _MESSAGES in row else None)


def _names(field: Field) -> tuple[str, ...]:
    return field if isinstance(field, tuple) else (cast(str, field),)


def _has_usual(row: dict[str, Any]) -> bool:
    texts = {name for name, value in row.items() if isinstance(value, str)}
    messages = row.get(_MESSAGES)
    return bool(texts & {*_FIELDS} or texts >= {*_PAIR} or (isinstance(messages, list) and _turns(messages)))


def _turns(messages: list[Any]) -> list[tuple[str, str]] | None:
    """(prompt, completion) of every reply in a conversation; [] for what is no conversation, None for too long a one:
    every prompt repeats what was said before it."""
    said, turns, size = "", list[tuple[str, str]](), 0
    for message in messages:
        role, content = (message.get(key) for key in ("role", "content")) if isinstance(message, dict) else (None, None)
        if not isinstance(role, str) or not isinstance(content, str):
            return []
        if role == _REPLY:
            turns.append((f"{said}{role}: ", content))
            size += len(said)
            if size > ROW_LIMIT:
                return None
        said += f"{role}: {content}\n"
    return turns


def _elements(name: str, stream: BinaryIO) -> Iterator[tuple[bytes, int]]:
    """(content, size) of each element of a JSON list, or of lists one after the other; b"" for one beyond `ROW_LIMIT`.

    Only brackets and strings are looked at: what is wrong inside of an element is known when that is read.
    """
    data, begin, at, depth, quoted, dropped = bytearray(), 0, 0, 0, False, 0

    def between(end: int) -> Iterator[tuple[bytes, int]]:
        """Elements that are neither objects nor lists, or stray text."""
        pieces = bytes(data[begin:end]).split(b",") if not dropped else [b""]
        yield from ((piece, dropped + len(piece)) for piece in pieces if dropped or piece.replace(MARK, b"").strip())

    while block := stream.read(READ_BYTES):
        data += block
        while at < len(data):
            if quoted:
                if end := _REST_OF_STRING.match(data, at):
                    at, quoted = end.end(), False
                    continue
                slashes = len(data) - max(at, len(data.rstrip(b"\\")))
                at = len(data) - slashes % 2
                break
            if (sign := _MARKS.search(data, at)) is None:
                at = len(data)
                break
            at = sign.end()
            if sign[0] == b'"':
                quoted = True
            elif sign[0] in b"[{":
                if depth < 2:
                    yield from between(at - 1)
                    begin, dropped = at - (depth == 1), 0
                depth += 1
            else:
                depth = max(0, depth - 1)
                if depth == 1:
                    yield (b"" if dropped else bytes(data[begin:at])), dropped + at - begin
                elif depth == 0:
                    yield from between(at - 1)
                if depth < 2:
                    begin, dropped = at, 0
        if dropped or at - begin > ROW_LIMIT:
            dropped, begin = dropped + at - begin, at
        del data[:begin]
        at, begin = at - begin, 0
    if depth or quoted:
        raise InputError(f"{name} is truncated: its JSON list does not end", "get the file again")
    yield from between(len(data))


# --- parquet ----------------------------------------------------------------------------------------------------------


def row_groups(path: Path) -> list[int]:
    """Positions, in bytes, of a parquet file's row groups; [] for a file whose faults its reader is to report."""
    try:
        from pyarrow import ArrowException
    except ImportError:
        return []
    try:
        with _open_table(path) as table:
            starts = [_first_byte(table.metadata.row_group(index)) for index in range(table.num_row_groups)]
    except (ArrowException, OSError):
        return []
    return starts if starts == sorted(starts) else []


def _pyarrow(name: str) -> Any:
    try:
        import pyarrow
    except ImportError as error:
        raise EnvironmentLimit(f"{name}: reading parquet needs pyarrow", "pip install 'hnet-cli[parquet]'") from error
    return pyarrow


def _open_table(file: Any) -> Any:
    from pyarrow import parquet

    # Without a buffer size whole columns of a row group would be read at once, a gigabyte in some files; the limits are
    # of the description at the end, which is large where there are many row groups.
    limits = {"thrift_string_size_limit": 1 << 30, "thrift_container_size_limit": 1 << 28}
    return parquet.ParquetFile(file, buffer_size=READ_BYTES, pre_buffer=False, **limits)


def _first_byte(group: Any) -> int:
    columns = [group.column(index) for index in range(group.num_columns)]
    return min(min(c.data_page_offset, c.dictionary_page_offset or c.data_page_offset) for c in columns)


def _as_bytes(pyarrow: Any, column: Any) -> list[bytes | list[Any] | bool | None]:
    """The values of a column of strings as bytes, which arrow does not check to be UTF-8 and the modality judges; lists
    as such, for they may be conversations; of any other column, False. None for null."""
    types = pyarrow.types
    while isinstance(column, pyarrow.ExtensionArray):
        column = column.storage
    if types.is_dictionary(column.type):
        values = pyarrow.array(_as_bytes(pyarrow, column.dictionary))
        column = pyarrow.DictionaryArray.from_arrays(column.indices, values).dictionary_decode()
    kinds = ("string", "large_string", "string_view", "binary", "large_binary", "binary_view", "fixed_size_binary")
    if not any(getattr(types, f"is_{kind}", lambda type: False)(column.type) for kind in kinds):
        if (types.is_list(column.type) or types.is_large_list(column.type)) and types.is_struct(column.type.value_type):
            return [_as_list(pyarrow, value) for value in column]
        return [False if valid else None for valid in column.is_valid().to_pylist()]
    return cast(list[bytes | list[Any] | bool | None], column.cast(pyarrow.large_binary()).to_pylist())


def _as_list(pyarrow: Any, value: Any) -> list[Any] | bool | None:
    """A list of a column; False for one that Python cannot hold, such as of text that is not UTF-8."""
    try:
        return cast(list[Any] | None, value.as_py())
    except (pyarrow.ArrowException, ValueError, OverflowError):
        return False


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
