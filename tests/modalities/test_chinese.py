"""The Chinese plugin: encodings are recognised and converted, both scripts are told apart."""

from __future__ import annotations

import io
from importlib.util import find_spec
from pathlib import Path

import pytest

from hnet_cli.modalities.chinese import SIMPLIFIED, TRADITIONAL, Chinese, dominant_script, legacy_encoding
from hnet_cli.modality import Document, Refused, Source

DATA = Path(__file__).parents[1] / "data" / "chinese"
LAW = (DATA / "criminal_law.txt").read_text()
# Laozi, Daodejing 1 and 2, in traditional characters.
LAOZI = (
    "道可道，非常道。名可名，非常名。無名天地之始；有名萬物之母。故常無欲，以觀其妙；常有欲，以觀其徼。"
    "此兩者，同出而異名，同謂之玄。玄之又玄，眾妙之門。天下皆知美之為美，斯惡已。皆知善之為善，斯不善已。"
    "故有無相生，難易相成，長短相較，高下相傾，音聲相和，前後相隨。是以聖人處無為之事，行不言之教。\n"
)
CHINESE = Chinese()


def read(data: bytes) -> list[Document | Refused]:
    return list(CHINESE.documents(Source("a.txt", lambda: io.BytesIO(data))))


def only(data: bytes) -> Document:
    (document,) = read(data)
    assert isinstance(document, Document), document
    return document


def test_the_gb18030_file_becomes_the_utf8_file() -> None:
    document = only((DATA / "criminal_law.gb18030.txt").read_bytes())
    assert document.data.decode() == LAW
    assert document.notes == ("converted from GB18030 to UTF-8", "simplified characters")


@pytest.mark.parametrize(
    ("text", "codec", "notes"),
    [
        (LAW, "utf-8", ("simplified characters",)),
        (LAW, "gb2312", ("converted from GB18030 to UTF-8", "simplified characters")),
        (LAW, "gbk", ("converted from GB18030 to UTF-8", "simplified characters")),
        (LAOZI, "utf-8", ("traditional characters",)),
        (LAOZI, "big5", ("converted from Big5 to UTF-8", "traditional characters")),
        (LAOZI, "gb18030", ("converted from GB18030 to UTF-8", "traditional characters")),
        (LAOZI[:40], "big5", ("converted from Big5 to UTF-8",)),
    ],
)
def test_encodings(text: str, codec: str, notes: tuple[str, ...]) -> None:
    document = only(text.encode(codec))
    assert document.data == text.encode()
    assert document.notes[: len(notes)] == notes


EUROS = LAW[:200] + "价格：€5，或者€6。\n" + LAW[200:]


def test_the_euro_sign_of_windows() -> None:
    """The byte 0x80 in GBK as Windows writes it (code page 936), which is not in GB18030; also where it is the last."""
    for text in (EUROS, EUROS + "€", "€" + EUROS):
        document = only(text.encode("gb18030").replace("€".encode("gb18030"), b"\x80"))
        assert document.data.decode() == text
        assert document.notes[:2] == ("converted from GB18030 to UTF-8", "euro sign of cp936")
        assert document.encoding == "GB18030"
    assert "euro sign of cp936" not in only(EUROS.encode("gb18030")).notes
    cut, rest = read(EUROS.encode("gb18030").replace("€".encode("gb18030"), b"\x80") + "山".encode("gb18030")[:1])
    assert isinstance(cut, Document)
    assert isinstance(rest, Refused)
    assert (cut.data.decode(), rest.reason) == (EUROS, "character cut off at the end")


@pytest.mark.parametrize("text", ["价格：€5，很贵。", LAW, LAOZI])
@pytest.mark.parametrize("wrong", [b"\x80", b"\xff", "中".encode("gb18030")])
def test_utf8_with_a_wrong_byte_is_no_other_encoding(text: str, wrong: bytes) -> None:
    (refused,) = read(text.encode() + wrong + b"\n")
    assert isinstance(refused, Refused)
    assert (refused.reason, refused.damaged) == ("not UTF-8, GB18030 or Big5", True)


def test_half_of_the_characters_may_be_euro_signs() -> None:
    document = only(("的" + "€").encode("gb18030").replace("€".encode("gb18030"), b"\x80") * 50)
    assert document.data.decode() == "的€" * 50


@pytest.mark.parametrize("text", [LAW, LAOZI, "山", "of few Chinese characters: 山\n"])
def test_a_mark_of_gb18030_is_left_out_and_tells_the_encoding(text: str) -> None:
    mark, document = read(("\ufeff" + text).encode("gb18030"))
    assert mark == Refused("GB18030 byte order mark", "a.txt: byte 0", 4)
    assert isinstance(document, Document)
    assert (document.data.decode(), document.offset, document.encoding) == (text, 3, "GB18030")
    assert CHINESE.detect("a.txt", ("\ufeff" + text).encode("gb18030")) == 0.9
    assert read("\ufeff".encode("gb18030")) == [Refused("empty", "a.txt", 4)]


@pytest.mark.parametrize(("text", "codec"), [(LAW, "gb18030"), (LAOZI, "big5"), (LAW, "utf-8")])
def test_a_file_cut_inside_its_last_character_is_read_without_it(text: str, codec: str) -> None:
    text = text.rstrip() + "山"
    document, cut = read(text.encode(codec)[:-1])
    assert isinstance(document, Document)
    assert isinstance(cut, Refused)
    assert document.data == text[:-1].encode()
    assert (cut.reason, cut.bytes) == ("character cut off at the end", len("山".encode(codec)) - 1)
    assert not cut.damaged


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        ("Ce café n'est pas très loin de l'hôtel où nous étions. ".encode("latin-1") * 5, "not UTF-8, GB18030 or Big5"),
        ("これは日本語の文章です。東京は日本の首都です。".encode("euc-jp") * 3, "not UTF-8, GB18030 or Big5"),
        ("東京は日本の首都であり、人口が多い。".encode("shift-jis") * 3, "not UTF-8, GB18030 or Big5"),
        ("서울은 대한민국의 수도이다. ".encode("euc-kr") * 5, "not UTF-8, GB18030 or Big5"),
        (LAW.encode("utf-16"), "UTF-16LE: convert it first, for example with iconv -f UTF-16LE -t UTF-8"),
        (b"", "empty"),
    ],
)
def test_what_is_not_chinese_is_not_converted(data: bytes, reason: str) -> None:
    (item,) = read(data)
    assert isinstance(item, Refused), item.data.decode()
    assert (item.reason, item.bytes) == (reason, len(data))


@pytest.mark.parametrize("codec", ["gb18030", "big5", "utf-8"])
@pytest.mark.parametrize("separator", ["", "\n", "\n\n"])
def test_long_files_are_divided_between_characters(codec: str, separator: str) -> None:
    text = (LAOZI.strip() + "ab" + separator) * 9000
    data = text.encode(codec)
    items = read(data)
    assert len(items) > 2
    assert all(isinstance(item, Document) for item in items)
    documents = [item for item in items if isinstance(item, Document)]
    assert b"".join(d.data for d in documents) == text.encode()
    ends = [0]
    for document in documents:
        assert document.offset == ends[-1]  # in the converted text
        ends.append(ends[-1] + len(document.data))


def test_scripts_are_told_apart() -> None:
    assert len(SIMPLIFIED) == len(TRADITIONAL)
    assert not set(SIMPLIFIED) & set(TRADITIONAL)
    assert dominant_script(SIMPLIFIED + TRADITIONAL) == "simplified and traditional"
    assert dominant_script("abc") == ""


@pytest.mark.parametrize(
    ("head", "low", "high"),
    [
        (LAW.encode(), 0.8, 1.0),
        (LAW.encode("gb18030")[:-1], 0.9, 0.9),
        (LAOZI.encode("big5")[:301], 0.9, 0.9),
        (b"Call me Ishmael.", 0.0, 0.0),
        ("これはひらがなばかりの日本語の文です。".encode(), 0.0, 0.2),
        ("naïve café à Orléans".encode("latin-1") * 20, 0.0, 0.0),
        (b"\0\1", 0.0, 0.0),
    ],
)
def test_detect(head: bytes, low: float, high: float) -> None:
    assert low <= CHINESE.detect("a.txt", head) <= high


def test_a_byte_stream_without_chinese_has_no_legacy_encoding() -> None:
    assert legacy_encoding(bytes(range(128, 256)) * 20) == ""


def test_characters_and_words() -> None:
    data = "我们在北京大学a学习。".encode()
    edges = CHINESE.reference_edges(data)
    assert list(edges["character"]) == [i for i in range(len(data)) if data[i] & 0xC0 != 0x80]
    if find_spec("jieba"):
        words = [data[i:j].decode() for i, j in zip(edges["word"], [*edges["word"][1:], len(data)], strict=True)]
        assert "".join(words) == data.decode()
        assert "北京大学" in words
