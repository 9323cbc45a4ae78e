"""Vectors as JSON lines, npz or parquet, written as they come: memory grows with neither documents nor vectors.

Every vector has the source and the name of its document, and where in it its bytes begin and end. npz has, for N
vectors of K documents, `vectors` (N, D), `document` (N,), which indexes `source` (K,) and `name` (K,), `start` and
`end` (N,), and `about`, JSON; with texts `text`, the bytes of all of them, and `text_end` (N,), where each ends in it.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from hnet_cli.errors import EnvironmentLimit, UsageError
from hnet_cli.inference.embed import Block
from hnet_cli.inference.render import json_line, json_payload
from hnet_cli.modality import escape
from hnet_cli.storage import NewFile, member, output_file, refuse_output, spool
from hnet_cli.storage.files import GrowingFile

FORMATS = (".npz", ".parquet", ".jsonl")
DIGITS = {"float32": 9, "float16": 5}
"""Significant digits that tell all numbers of a dtype apart."""
GROUP_BYTES = 8 << 20
"""Bytes of vectors in a row group of parquet."""
LONGEST_NAME = 1000
"""Characters of a name in npz, where all take the room of the longest; the end of a longer one is dropped."""
COPIED = 1 << 20

Add = Callable[[Block], None]


def lines(blocks: Iterable[Block]) -> Iterator[str]:
    """JSON lines: {"source", "name", "start", "end", "vector"}, with texts "text", or "bytes" in base64 where a chunk
    cuts a character."""
    for block in blocks:
        head = f'{{"source": {json_line(block.document.source)}, "name": {json_line(block.document.name)}, "start": '
        form = f"%.{DIGITS[block.vectors.dtype.name]}g"
        texts = (
            [f"{json_payload(text)}, " for text in block.texts] if block.texts is not None else [""] * len(block.starts)
        )
        for start, end, text, vector in zip(
            block.starts.tolist(), block.ends.tolist(), texts, block.vectors.tolist(), strict=True
        ):
            numbers = ", ".join([form % number for number in vector])
            yield f'{head}{start}, "end": {end}, {text}"vector": [{numbers}]}}\n'


def check(out: Path | None) -> None:
    """Raises UsageError for an output of no known format, EnvironmentLimit for one that lacks its package."""
    if out is not None and out.suffix not in FORMATS:
        raise UsageError(f"--out {out} has no known format", f"end its name in {', '.join(FORMATS)}")
    if out is not None and out.suffix == ".parquet":
        _pyarrow()


@contextmanager
def writer(
    out: Path, width: int, dtype: str, texts: bool, about: Mapping[str, Any], overwrite: bool, inputs: Iterable[str]
) -> Iterator[Add]:
    """A function that adds blocks of vectors (n, `width`) to the file, which stands there when all have been added.

    `about` goes with the vectors, except in JSON lines. Raises as `output_file`.
    """
    check(out)
    with output_file(out, overwrite, inputs) as file:
        if out.suffix == ".jsonl":
            yield lambda block: _write_lines(file, block)
        elif out.suffix == ".parquet":
            with _Parquet(file, width, dtype, texts, about) as table:
                yield table.add
        else:
            with ExitStack() as stack:
                place = refuse_output(out, overwrite, inputs)
                archive = _Npz(lambda: stack.enter_context(spool(place)), width, dtype, texts)
                yield archive.add
                archive.write(file, about)


def _write_lines(file: NewFile, block: Block) -> None:
    file.write("".join(lines([block])).encode("utf-8", "backslashreplace"))


class _Npz:
    """Columns grow in files of their own: an array begins with its length, which is not known before the end."""

    def __init__(self, column: Callable[[], GrowingFile], width: int, dtype: str, texts: bool) -> None:
        self.columns: dict[str, tuple[GrowingFile, Any, int]] = {"vectors": (column(), np.dtype(dtype), width)}
        names = ["document", "start", "end", *["text_end"] * texts]
        self.columns |= {name: (column(), np.dtype(np.int64), 0) for name in names}
        if texts:
            self.columns["text"] = (column(), np.dtype(np.uint8), 0)
        self.names = {name: _Names(column(), column()) for name in ("source", "name")}
        self.document: Any = None
        self.number, self.text_end = -1, 0

    def add(self, block: Block) -> None:
        if block.document is not self.document:
            self.document, self.number = block.document, self.number + 1
            self.names["source"].add(block.document.source)
            self.names["name"].add(block.document.name)
        values = {"vectors": block.vectors, "start": block.starts, "end": block.ends}
        values["document"] = np.full(len(block.starts), self.number)
        if block.texts is not None:
            values["text"] = np.frombuffer(b"".join(block.texts), np.uint8)
            values["text_end"] = self.text_end + np.cumsum(list(map(len, block.texts)), dtype=np.int64)
            self.text_end += len(values["text"])
        for name, array in values.items():
            file, dtype, _ = self.columns[name]
            file.write(np.ascontiguousarray(array, dtype))

    def write(self, file: NewFile, about: Mapping[str, Any]) -> None:
        """The archive, uncompressed, as `numpy.savez` writes it."""
        with zipfile.ZipFile(file, "w") as archive:
            for name, (column, dtype, width) in self.columns.items():
                length = column.size // (dtype.itemsize * max(1, width))
                _array(archive, name, dtype, (length, width) if width else (length,), _content(column))
            for name, names in self.names.items():
                _array(archive, name, names.dtype, (names.lengths.size // 8,), names.content())
            text = np.array(json.dumps(about))
            _array(archive, "about", text.dtype, (), iter([text.tobytes()]))


class _Names:
    """Strings of which neither the number nor the longest is known before the end."""

    def __init__(self, text: GrowingFile, lengths: GrowingFile) -> None:
        self.text, self.lengths, self.longest = text, lengths, 1

    def add(self, name: str) -> None:
        name = escape(name, keep="")[:LONGEST_NAME]
        data = name.encode("utf-8", "backslashreplace")
        self.longest = max(self.longest, len(name))
        self.text.write(data)
        self.lengths.write(np.array([len(data)], np.int64))

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(f"<U{self.longest}")

    def content(self) -> Iterator[bytes]:
        at = 0
        for block in _content(self.lengths):
            lengths = np.frombuffer(block, np.int64)
            for part in np.array_split(lengths, max(1, len(lengths) * self.longest // COPIED)):
                ends = np.cumsum(part)
                data = self.text.read(at, int(ends[-1]) if len(ends) else 0)
                names = [data[end - n : end].decode() for end, n in zip(ends.tolist(), part.tolist(), strict=True)]
                at += len(data)
                yield np.array(names, self.dtype).tobytes()


def _content(column: GrowingFile) -> Iterator[bytes]:
    for at in range(0, column.size, COPIED):
        yield column.read(at, COPIED)


def _array(
    archive: zipfile.ZipFile, name: str, dtype: np.dtype[Any], shape: tuple[int, ...], content: Iterator[bytes]
) -> None:
    with member(archive, f"{name}.npy") as file:
        header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        for part in content:
            file.write(part)


class _Parquet:
    def __init__(self, file: NewFile, width: int, dtype: str, texts: bool, about: Mapping[str, Any]) -> None:
        self.arrow, self.file, self.texts, self.width = _pyarrow(), file, texts, width
        arrow = self.arrow
        number = arrow.float32() if dtype == "float32" else arrow.float16()
        fields = [
            ("source", arrow.string()),
            ("name", arrow.string()),
            ("start", arrow.int64()),
            ("end", arrow.int64()),
        ]
        fields += [("text", arrow.large_string()), ("bytes", arrow.large_binary())] * texts
        fields += [("vector", arrow.list_(number, width))]
        self.schema = arrow.schema(fields, metadata={"hnet": json.dumps(about)})
        self.held: list[Block] = []
        self.size = 0

    def __enter__(self) -> _Parquet:
        from pyarrow import parquet

        # Vectors are noise to a compressor and to a dictionary; names repeat.
        plain = {"use_dictionary": ["source", "name"], "compression": "zstd", "write_statistics": False}
        self.sink = _Sink(self.file)
        self.writer = parquet.ParquetWriter(self.arrow.PythonFile(self.sink, mode="w"), self.schema, **plain)
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self._flush()
        else:  # it would write its end when it is collected, after the file is closed
            self.sink.write = len  # type: ignore[method-assign, assignment]
        self.writer.close()

    def add(self, block: Block) -> None:
        self.held.append(block)
        self.size += block.vectors.nbytes + sum(map(len, block.texts or ()))
        if self.size >= GROUP_BYTES:
            self._flush()

    def _flush(self) -> None:
        if not self.held:
            return
        arrow = self.arrow
        counts = [len(block.starts) for block in self.held]

        def repeated(names: list[str]) -> Any:
            safe = [name.encode("utf-8", "backslashreplace").decode() for name in names]
            return arrow.array(np.repeat(np.array(safe, dtype=object), counts), arrow.string())

        columns = [repeated([getattr(block.document, name) for block in self.held]) for name in ("source", "name")]
        columns += [np.concatenate([getattr(block, name) for block in self.held]) for name in ("starts", "ends")]
        if self.texts:
            texts = [text for block in self.held for text in block.texts or ()]
            decoded = [_decoded(text) for text in texts]
            cut = [text if whole is None else None for text, whole in zip(texts, decoded, strict=True)]
            columns += [arrow.array(decoded, arrow.large_string()), arrow.array(cut, arrow.large_binary())]
        vectors = np.concatenate([block.vectors for block in self.held])
        columns.append(arrow.FixedSizeListArray.from_arrays(arrow.array(vectors.ravel()), self.width))
        self.writer.write_table(arrow.table(columns, schema=self.schema))
        self.held, self.size = [], 0


class _Sink:
    """What pyarrow writes to; closing it leaves the file open, which has still to be synced."""

    closed = False

    def __init__(self, file: NewFile) -> None:
        self.file = file

    def write(self, data: Any) -> int:
        return self.file.write(data)

    def flush(self) -> None:
        """Nothing is held back."""

    def close(self) -> None:
        """Left to the owner of the file."""


def _decoded(text: bytes) -> str | None:
    try:
        return text.decode()
    except UnicodeDecodeError:
        return None


def _pyarrow() -> Any:
    try:
        import pyarrow
    except ImportError as error:
        raise EnvironmentLimit("writing parquet needs pyarrow", "pip install 'hnet-cli[parquet]'") from error
    return pyarrow
