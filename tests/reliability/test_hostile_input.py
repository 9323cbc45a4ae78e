"""Input that is damaged, malicious or merely odd: one clear line, exit 0 or 3, and books that add up."""

from __future__ import annotations

import gzip
import io
import json
import os
import random
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow
import pytest
import zstandard
from corpuskit import bgzf
from forms import flip_bit, trials
from hostilekit import (
    GENOME,
    HAN,
    PACKERS,
    PROSE,
    ROWS,
    SOURCE,
    Hung,
    command,
    flipped,
    is_clear,
    table_of,
    tar_of,
    zip_of,
)

from hnet_cli.errors import InputError
from hnet_cli.storage.streams import decompressed

BAD: dict[str, tuple[str, bytes, str, int]] = {
    "empty.txt": ("text", b"", "empty", 3),
    "blank.txt": ("text", b" \n\t" * 3000, "only white space", 3),
    "short.txt": ("text", b"too short", "too little data", 3),
    "one-byte.txt": ("text", b"x", "too little data: 1 bytes", 3),
    "nul.txt": ("text", PROSE + b"\0" + PROSE, "binary data", 3),
    "latin-1.txt": ("text", "Le café, déjà vu.\n".encode("latin-1") * 200, r"byte 6 is 0xe9", 3),
    "utf-16.txt": ("text", PROSE.decode().encode("utf-16"), "iconv", 3),
    "utf-32.txt": ("text", PROSE.decode().encode("utf-32"), "UTF-32", 3),
    "surrogates.txt": ("text", PROSE + b"\xed\xa0\x80" + PROSE, "byte .* is 0xed", 3),
    "overlong.txt": ("text", PROSE + b"\xc0\x80", "0xc0", 3),
    "cut-character.txt": ("text", PROSE + "中".encode()[:2], "cut off at the end", 0),
    "cut-and-wrong.txt": ("text", b"caf\xe9 " + PROSE + "中".encode()[:2], "byte 3 is 0xe9", 3),
    "tail-of-a-character.txt": ("text", "中".encode()[1:] + "中 ".encode() + PROSE, "cut off at the beginning", 0),
    "bom.txt": ("text", b"\xef\xbb\xbf" + PROSE, "byte order mark", 0),
    "crlf.txt": ("text", PROSE.replace(b"\n", b"\r\n"), "", 0),
    "one-line.txt": ("text", b"word " * 5000, "", 0),
    "escapes.txt": ("text", b"\x1b[31mred\x1b]0;title\x07\n" * 900, "", 0),
    "picture.txt": ("text", b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 20, "PNG", 3),
    "book.pdf": ("text", b"%PDF-1.7\n" + b"%\xe2\xe3\xcf\xd3" * 500, "PDF", 3),
    "letter.docx": ("text", zip_of({"word/document.xml": PROSE}), "unpack it first", 3),
    "database.txt": ("text", b"SQLite format 3\0" + bytes(5000), "SQLite", 3),
    "noise.txt": ("text", random.Random(0).randbytes(9000), "binary data|not UTF-8", 3),
    "archive.7z": ("text", b"7z\xbc\xaf\x27\x1c" + bytes(500), "7z archive: unpack it first", 3),
    "archive.rar": ("text", b"Rar!\x1a\x07" + bytes(500), "rar archive", 3),
    "header-only.gz": ("text", gzip.compress(PROSE)[:10], "truncated", 3),
    "magic-only.gz": ("text", b"\x1f\x8b\x08", "truncated", 3),
    "trailing.gz": ("text", gzip.compress(PROSE) + b"and more that is not gzip", "other data follows", 3),
    "many-members.gz": ("text", b"".join(gzip.compress(line) for line in PROSE.splitlines(True)), "", 0),
    "padded.gz": ("text", gzip.compress(PROSE) + bytes(512), "", 0),
    "wrong-name.gz": ("text", PROSE, "", 0),
    "compressed-twice.gz": ("text", gzip.compress(gzip.compress(PROSE)), "compressed twice", 3),
    "no-checksum.zst": ("text", zstandard.compress(PROSE)[:-9], "truncated", 3),
    "dictionary.zst": ("text", b"\x28\xb5\x2f\xfd\x23\x01\x02\x03\x04" + bytes(50), "packed with a dictionary", 3),
    "window-2-gib.zst": ("text", b"\x28\xb5\x2f\xfd\x00\xa8" + b"\x01\x00\x00", "empty", 3),
    "window-8-gib.zst": ("text", b"\x28\xb5\x2f\xfd\x00\xb8" + b"\x01\x00\x00", "larger than the 2 GiB", 3),
    "no-last-block.bgz": ("text", b"".join(bgzf(PROSE)[:-1]), "block that marks its end is missing", 3),
    "marked.jsonl": ("text", b"\xef\xbb\xbf" + ROWS, "", 0),
    "list.json": ("text", b"[" + ROWS.strip().replace(b"\n", b",") + b"]", "", 0),
    "cut-list.json": ("text", b"[" + ROWS.strip().replace(b"\n", b","), "JSON list does not end", 3),
    "empty.jsonl": ("text", b"\n\n\n", "empty", 3),
    "truncated.jsonl": ("text", ROWS[:-40], r"jsonl:60", 3),
    "no-field.jsonl": ("text", b'{"prose": "x"}\n' * 300, "--field", 2),
    "nul.jsonl": ("text", ROWS + b"\0\0\0\n" + ROWS, r"jsonl:61", 0),
    "latin-1.jsonl": ("text", ROWS + b'{"text": "caf\xe9"}\n', r"jsonl:61", 3),
    "numbers.jsonl": ("text", ROWS + b'{"text": 17}\n' * 9, r"no text in field 'text'.*jsonl:61", 3),
    "arrays.jsonl": ("text", ROWS + b"[1, 2]\n" * 9, r"not a JSON object.*jsonl:61", 3),
    "deep.jsonl": ("text", ROWS + b"[" * 200_000 + b"\n", r"jsonl:61", 3),
    "deep-object.jsonl": ("text", ROWS + b'{"a":' * 100_000 + b"\n", r"jsonl:61", 3),
    "surrogate.jsonl": ("text", ROWS + b'{"text": "\\ud800"}\n' * 3, r"half a surrogate.*jsonl:61", 3),
    "huge-number.jsonl": ("text", b'{"text": ' + b"9" * 10_000 + b"}\n" + ROWS, r"jsonl:1", 3),
    "twice-the-key.jsonl": ("text", ROWS.replace(b'{"text"', b'{"text": "x", "text"'), "", 0),
    "one-bad-in-300.jsonl": ("text", ROWS * 5 + b"{\n", r"jsonl:301", 0),
    "pretty.jsonl": ("text", json.dumps({"text": PROSE.decode()}, indent=1).encode(), r"jsonl:1", 3),
    "empty.tar": ("text", bytes(10_240), "nothing to use in .*: empty", 3),
    "not-a.tar": ("text", PROSE, "damaged or truncated", 3),
    "cut.tar": ("text", tar_of({"a.txt": PROSE, "b.txt": PROSE})[:12_000], "truncated", 3),
    "flipped.tar": ("text", flipped(tar_of({"a.txt": PROSE, "b.txt": PROSE}), 0.002), "damaged", 3),
    "inner.tar": ("text", tar_of({"inner.tar": tar_of({"a.txt": PROSE})}), "archive inside an archive", 3),
    "inner-damaged.tar": ("text", tar_of({"a.gz": gzip.compress(PROSE)[:-20], "b.txt": PROSE}), r"tar:a\.gz", 3),
    "outside.tar": ("text", tar_of({"../../x.txt": PROSE, "/etc/x.txt": PROSE}), "", 0),
    "empty.parquet": ("text", b"PAR1", "damaged or truncated", 3),
    "cut.parquet": ("text", table_of(text=[PROSE.decode()])[:-20], "damaged or truncated", 3),
    "flipped.parquet": ("text", flipped(table_of(text=[PROSE.decode()]), 0.995, 3), "parquet", 3),
    "no-text.parquet": ("text", table_of(number=[1, 2, 3]), "--field", 2),
    "numbers.parquet": ("text", table_of(text=[1, 2, 3]), r"no text in field 'text'.*parquet:1", 3),
    "no-rows.parquet": ("text", table_of(text=pyarrow.array([], "string")), "nothing to use in .*: empty", 3),
    "not-utf-8.parquet": ("text", table_of(text=pyarrow.array([b"caf\xe9 " * 60]).view("string")), "byte 3 is 0xe9", 3),
    "nulls.parquet": ("text", table_of(text=[None, PROSE.decode()]), "", 0),
    "empty.fa": ("dna", b"", "empty", 3),
    "no-header.fa": ("dna", b"ACGT\n" * 900, "no line starting with '>'", 3),
    "headers-only.fa": ("dna", b"".join(b">record %d\n" % n for n in range(900)), "record without sequence", 3),
    "protein.fa": ("dna", b">p\n" + b"MKVLEFILPQWY\n" * 300, "protein, not DNA", 3),
    "reads.fastq": ("dna", b"@r\nACGTACGT\n+\nIIIIIIII\n" * 300, "FASTQ", 3),
    "record.gb": ("dna", b"LOCUS       X 12 bp DNA\nORIGIN\n" + b"1 acgt\n" * 500, "GenBank", 3),
    "variants.vcf": ("dna", b"##fileformat=VCFv4.2\n" * 200, "VCF", 3),
    "only-n.fa": ("dna", b">n\n" + b"N" * 5000 + b"\n", "run of N.*base 0", 3),
    "nul.fa": ("dna", b">a\nACGT\0\0\0ACGT\n" * 300, "binary data", 3),
    "html.fa": ("dna", b"<html><body>404 not found</body></html>\n" * 100, "no line starting with '>'", 3),
    "same-names.fa": ("dna", b">a\n" + b"ACGTTGCA" * 20 + b"\n" + GENOME, "", 0),
    "text-before.fa": ("dna", b"some words first\n" + GENOME, "text before the first record", 0),
    "mac.fa": ("dna", GENOME.replace(b"\n", b"\r"), "", 0),
    "shift-jis.txt": ("chinese", "これは日本語の文です。\n".encode("shift_jis") * 200, "byte", 3),
    "cut.gb18030.txt": ("chinese", HAN.encode("gb18030")[:-2] + b"\n", "byte", 3),
    "cut-character.gb18030.txt": ("chinese", HAN.strip().encode("gb18030")[:-1], "cut off at the end", 0),
    "gb18030.txt": ("chinese", HAN.encode("gb18030"), "converted from GB18030", 0),
    "mixed.txt": ("chinese", HAN.encode() + HAN.encode("gb18030"), "not UTF-8, GB18030 or Big5", 3),
    "program.py": ("code", b"\x7fELF" + bytes(9000), "program", 3),
    "latin-1.c": ("code", SOURCE + b"/* caf\xe9 */\n", "0xe9", 3),
}


def ways(name: str, content: bytes) -> list[tuple[str, str, bytes]]:
    """Ways to hand over a file (plain, compressed, in a folder, on standard input), as (way, name, content)."""
    made = [("file", name, content)]
    if content and not name.endswith((".gz", ".zst", ".parquet", ".docx", ".7z", ".rar")):
        made += [("file", f"{name}.{suffix}", pack(content)) for suffix, pack in PACKERS.items()]
    made.append(("folder", name, content))
    return made if name.endswith((".jsonl", ".parquet")) else [*made, ("stdin", name, content)]


def test_r13_named_bad_files(tally: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    """In the short form each as a file and in one of the other ways."""
    counted = tally("R13", "named bad files, as files, compressed, on standard input, in folders")
    slowest, folder = 0.0, tmp_path / "in"
    for turn, (name, (kind, data, why, wanted)) in enumerate(BAD.items()):
        first, *others = ways(name, data)
        for way, called, content in (first, *(others if trials(0, 1, 1) else [others[turn % len(others)]])):
            folder.mkdir()
            (folder / called).write_bytes(content)
            path = {"file": f"{folder / called}", "folder": f"{folder}", "stdin": "-"}[way]
            if way == "stdin":
                monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BufferedReader(io.BytesIO(content))))
            if way == "folder":
                good = {"dna": ("good.fa", GENOME), "code": ("good.py", SOURCE)}.get(kind, ("good.txt", PROSE))
                (folder / good[0]).write_bytes(good[1] * 2)
            began = time.monotonic()
            try:
                code = command(tmp_path, path, kind)
            except Hung:
                code = -2
            slowest = max(slowest, time.monotonic() - began)
            error = capfd.readouterr().err
            if way == "folder":  # refused or not by its share of the whole, but always reported
                fine = code in (0, 3) and is_clear(error, 0, called, ".")
                fine = fine and (wanted == 0 or name in error or "too little" in why or name.startswith("short"))
            elif way == "stdin":
                fine = (code == wanted or name == "not-a.tar") and is_clear(error, 0, "", "")
            else:
                fine = code == wanted and is_clear(error, code, "" if "too little" in why else called, why)
            counted.count(fine, f"{way} {called}: exit {code}, {error.strip()[-300:]}")
            shutil.rmtree(folder)
            assert os.listdir(tmp_path) == []
    counted.figures |= {"files": len(BAD), "slowest_s": round(slowest, 1)}
    assert len(BAD) >= 60


@pytest.mark.parametrize("codec", [*PACKERS, "zst without checksum"])
def test_r15_truncation_and_flips(codec: str, tally: Any) -> None:
    """Never other bytes than were packed; without a checksum in the file only truncation can be noticed."""
    counted = tally("R15", "truncated or flipped compressed files: noticed, or nothing lost", codec)
    packed = (PACKERS.get(codec) or zstandard.compress)(PROSE)
    rng = random.Random(codec)

    def unpacked(data: bytes) -> bytes | None:
        try:
            with decompressed(io.BytesIO(data), "x") as plain:
                return plain.read()
        except InputError:
            return None

    for _ in range(trials(25, 500, 5000)):
        length = rng.randrange(4 if codec.startswith("zst") else 10, len(packed))
        counted.count(unpacked(packed[:length]) is None, f"cut at {length}")
    # The magic says what it is: without it, it is other data, which the modality judges.
    for trial in range(trials(25, 500, 5000) if codec in PACKERS else 0):
        counted.count(unpacked(flip_bit(packed, rng, first=12)) in (None, PROSE), f"flipped bit, trial {trial}")
