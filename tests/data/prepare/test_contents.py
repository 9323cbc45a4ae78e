"""Contents of files: told by content whatever the name, the same documents from every container."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zstandard
from corpuskit import Lines, make, stored, text
from hostilekit import tar_of

from hnet_cli import modality
from hnet_cli.data.prepare import contents
from hnet_cli.data.prepare.contents import documents_of, sources_of
from hnet_cli.data.prepare.detection import detect
from hnet_cli.data.prepare.preparation import prepare
from hnet_cli.data.prepare.rows import NO_ROWS
from hnet_cli.errors import EnvironmentLimit, InputError, UsageError
from hnet_cli.modality import MARK, Document, Refused, Source


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("empty", b"", "nothing to use in .*empty"),
        ("comments", b"# a\n# b\n", r"comment \(.*comments:0\)"),
        ("x.zip", b"PK\x03\x04" + bytes(50), "zip archive"),
        ("x.gz", gzip.compress(text(1), mtime=0)[:-9], "truncated"),
        ("x.tar", b"not a tar" * 500, "damaged or truncated"),
        ("x.jsonl", b"\0\1\2\n" * 9, "row is not JSON"),
        ("cut.parquet", b"PAR1" + bytes(40), "parquet|damaged"),
    ],
)
def test_a_named_input_that_gives_nothing(name: str, content: bytes, why: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    (tmp_path / "good").write_bytes(text(1))
    with pytest.raises(Exception, match=why) as caught:
        make(tmp_path / "out", tmp_path / "good", tmp_path / name)
    assert caught.value.exit_code in (3, 69)  # type: ignore[attr-defined]
    assert not (tmp_path / "out").exists()


def test_all_containers_give_the_same_documents(tmp_path: Path) -> None:
    data = text(5, 30000)
    plain = tmp_path / "x"
    plain.write_bytes(data)
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        archive.add(plain, "folder/x")
    (tmp_path / "x.jsonl").write_text(json.dumps({"id": 1, "content": data.decode()}) + "\n\n")
    packers = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress, "zst": zstandard.compress}
    for name, pack in packers.items():
        for inner in ("x", "x.tar", "x.jsonl"):
            (tmp_path / f"{inner}.{name}").write_bytes(pack((tmp_path / inner).read_bytes()))
    inputs = sorted(tmp_path.iterdir())
    assert len(inputs) == 15
    for number, file in enumerate(inputs):
        _, dataset = make(tmp_path / f"out{number}", file)
        assert stored(dataset) == data, file


ROWS = [{"id": n, "text": f'document {n} of words\n\n[brackets] \\ {{}} "é"'} for n in range(200)]
LINES_OF_ROWS = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
LIST_OF_ROWS = json.dumps(ROWS, indent=1).encode()
TEXTS = "".join(row["text"] for row in ROWS).encode()  # type: ignore[misc]


@pytest.mark.parametrize("field", ["text", None])
@pytest.mark.parametrize("name", ["c4-train.00000-of-01024.json", "a.txt", "a.ndjson", "noextension", "a.json.gz"])
@pytest.mark.parametrize("content", [LINES_OF_ROWS, LIST_OF_ROWS, MARK + LINES_OF_ROWS, MARK + LIST_OF_ROWS])
@pytest.mark.parametrize("pack", [bytes, gzip.compress, zstandard.compress, lzma.compress])
def test_rows_are_told_by_content(
    name: str, content: bytes, pack: Callable[[bytes], bytes], field: str | None, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(pack(content))
    (source, *rest) = sources_of([tmp_path / name], Lines(), field)
    assert isinstance(source, Source)
    assert source.open().read() == str(ROWS[0]["text"]).encode()
    assert len(rest) == len(ROWS) - 1


def test_rows_in_containers_by_any_name_are_one_corpus(tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    def tar(name: str, data: bytes, form: int) -> bytes:
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w", format=form) as archive:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
        return packed.getvalue()

    parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "table")
    ustar = tar("rows", LINES_OF_ROWS, tarfile.USTAR_FORMAT)
    header = ustar[:148] + b" " * 8 + ustar[156:257] + bytes(255)  # as before POSIX: without the magic
    old = header[:148] + b"%06o\0 " % sum(header) + header[156:] + ustar[512:]
    for file, data in {
        "a": ustar,
        "b": old,
        "c": gzip.compress(tar("x.json", LIST_OF_ROWS, tarfile.PAX_FORMAT)),
    }.items():
        (tmp_path / file).write_bytes(data)
    for file in tmp_path.iterdir():
        sources = list(sources_of([file], Lines(), "text"))
        data = b"".join(source.open().read() for source in sources if isinstance(source, Source))
        assert data == TEXTS, file


def test_an_option_is_never_ignored(tmp_path: Path) -> None:
    """`--field` where there are no rows: exit 2 for a file that is named or alone, said by reason in a folder."""
    (tmp_path / "in").mkdir()
    prose, pretty = tmp_path / "in" / "readme.txt", tmp_path / "in" / "config.json"
    prose.write_bytes(text(1))
    pretty.write_text(json.dumps({"text": ["a"], "b": {}}, indent=2))
    for inputs in ([prose], [pretty], [tmp_path / "in"]):
        with pytest.raises(UsageError, match="--field"):
            make(tmp_path / "out", *inputs, field="text")
        with pytest.raises(UsageError, match="--field"):
            detect(inputs, "text")
    with pytest.raises(UsageError, match="--field"):
        list(sources_of([prose], Lines(), "text"))
    (tmp_path / "in" / "z.json").write_bytes(LINES_OF_ROWS)
    summary, dataset = make(tmp_path / "out", tmp_path / "in", field="text")
    assert stored(dataset) == TEXTS
    assert summary.refused[NO_ROWS][0] == 2
    assert detect([tmp_path / "in"], "text")[0] == "text"
    assert len(list(sources_of([tmp_path / "in"], Lines(), "text"))) == len(ROWS) + 2
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        archive.add(tmp_path / "in", "in")
    summary, dataset = make(tmp_path / "out2", tmp_path / "x.tar", field="text")
    assert (stored(dataset), summary.refused[NO_ROWS][0]) == (TEXTS, 2)


def test_json_that_is_no_rows_stays_as_it_is(tmp_path: Path) -> None:
    """Also a file of source code, whatever it looks like; but not where a field is named."""
    code = modality.get("code")
    for content in (LINES_OF_ROWS, LIST_OF_ROWS, b'{"a": 1}\n' * 9, b'{"text": "x"}\nand prose\n' + text(1), b"[1, 2]"):
        (tmp_path / "a.json").write_bytes(content)
        looks_like_rows = content in (LINES_OF_ROWS, LIST_OF_ROWS)
        assert len(list(sources_of([tmp_path / "a.json"], Lines()))) == (len(ROWS) if looks_like_rows else 1)
        for source in sources_of([tmp_path / "a.json"], code):
            assert isinstance(source, Source)
            assert source.open().read() == content
        if looks_like_rows:
            assert len(list(sources_of([tmp_path / "a.json"], code, "text"))) == len(ROWS)


@pytest.mark.parametrize("codec", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-be"])
@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.json", "a.fa"])
def test_a_wide_encoding_is_named(name: str, codec: str, tmp_path: Path) -> None:
    content = ">a\n" + "ACGT\n" * 99 if name == "a.fa" else LINES_OF_ROWS.decode()
    (tmp_path / name).write_bytes(content.encode(codec))
    shown = codec.upper().replace("-LE", "LE").replace("-BE", "BE")
    if name != "a.fa":  # whose modality is known
        with pytest.raises(InputError, match=f"a.*{shown}"):
            detect([tmp_path / name])
    for plugin in ("text", "dna"):
        with pytest.raises(InputError, match=f"nothing to use in .*: {shown}.*iconv -f {shown}"):
            prepare([tmp_path / name], modality.get(plugin), tmp_path / "out", measure=False)


@pytest.mark.parametrize(
    ("head", "why"),
    [
        (b"7z\xbc\xaf\x27\x1c", "7z archive"),
        (b"\x04\x22\x4d\x18", "lz4"),
        (b"LZIP\x01", "lzip"),
        (b"\x1f\x9d\x90", r"compress \(.Z\)"),
        (b"\x5d\0\0\x80\0", "lzma of the old style"),
        (b"ARROW1\0\0", "Arrow file"),
    ],
)
def test_containers_that_are_not_read_are_named(head: bytes, why: str, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(head + bytes(range(256)) * 9)
    with pytest.raises(InputError, match=f"nothing to use in .*x: {why}"):
        make(tmp_path / "out", tmp_path / "x")


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress, zstandard.compress])
def test_what_is_compressed_twice_is_named(pack: Any, inside: bool, tmp_path: Path) -> None:
    packed = pack(gzip.compress(LINES_OF_ROWS))
    (tmp_path / "x").write_bytes(tar_of({"a.jsonl": packed}) if inside else packed)
    with pytest.raises(InputError, match=r"nothing to use in .*x: .*compressed twice: unpack it once"):
        make(tmp_path / "out", tmp_path / "x")


def test_memory_for_unpacking_is_said_or_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packer = zstandard.ZstdCompressor(
        compression_params=zstandard.ZstdCompressionParameters(window_log=27)
    ).compressobj()
    frame = packer.compress(LINES_OF_ROWS) + packer.flush()
    (tmp_path / "RC_2024-01.zst").write_bytes(frame[:5] + bytes([21 << 3]) + frame[6:])  # zstd --ultra --long=31
    summary, dataset = make(tmp_path / "out", tmp_path / "RC_2024-01.zst", field="text")
    assert stored(dataset) == TEXTS
    assert summary.notes["file that takes 2,048 MiB of memory to unpack"] == 1
    monkeypatch.setattr(contents, "cpu_memory", lambda: 1 << 30)
    with pytest.raises(EnvironmentLimit, match=r"RC_2024-01\.zst takes 2,048 MiB of memory, 1,024 are free"):
        make(tmp_path / "out2", tmp_path / "RC_2024-01.zst", field="text")


def test_what_is_read_of_files_is_told_as_it_is_stored(tmp_path):
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"some text " * 1000))
    told = []
    for source in sources_of([tmp_path / "a.txt.gz"], modality.get("text"), on_read=told.append):
        with source.open() as stream:
            assert stream.read()
    assert sum(told) == (tmp_path / "a.txt.gz").stat().st_size


@pytest.mark.parametrize(
    ("kind", "data", "found"),
    [
        ("text", b"ox\noxen", b"ox\noxen\xff"),
        ("text", b"\xef\xbb\xbfox\n", "row of prompt and completion with what this modality leaves out or changes"),
        ("text", b"ox\n\xe4", "not UTF-8"),
        ("text", b"  \n", "only white space"),
        ("dna", b"ACGTacgtAC", b"ACGTacgtAC\xff"),
        ("dna", b"ACGT" * 20 + b"NN" + b"ACGT" * 20, "row of prompt and completion with what this modality leaves out"),
    ],
)
def test_a_row_of_prompt_and_completion_is_one_document_that_ends(kind: str, data: bytes, found: bytes | str) -> None:
    (item,) = documents_of(Source.of_bytes(data, "x:1", "x:1", 3), modality.get(kind).documents)
    if isinstance(found, bytes):
        assert isinstance(item, Document)
        assert (item.data, item.offset) == (found, -3)
    else:
        assert isinstance(item, Refused)
        assert item.reason.startswith(found)
