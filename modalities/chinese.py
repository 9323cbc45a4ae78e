"""Chinese, simplified or traditional, in UTF-8, GB18030 (with GB2312 and GBK) or Big5; stored in UTF-8.

Units known without training: `character` starts and, where the optional package jieba is installed, `word` starts.
"""

from __future__ import annotations

import codecs
import logging
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec

import numpy as np

from hnet_cli.modality import Gold, Perturbation, Refused, Source, suffix

from ._bytes import binary_reason
from ._gold import gold
from ._noise import CHINESE
from ._utf8 import MARKS, Utf8, code_points, decoded, han_count

LEGACY = {"gb18030": "GB18030", "big5hkscs": "Big5"}  # Python codec: name shown
CP936, CP936_REPLACE = "hnet-cp936", "hnet-cp936-replace"
EURO = "euro sign of cp936"

# One character per place: the same words in the two scripts. Only characters that the other script does not use.
SIMPLIFIED = "这们来为国说时会对过经学现动还进开实军长关业将两间问应战头见产话给门员论处义认条气题变总电数报结类"
TRADITIONAL = "這們來為國說時會對過經學現動還進開實軍長關業將兩間問應戰頭見產話給門員論處義認條氣題變總電數報結類"
_SIMPLIFIED, _TRADITIONAL = frozenset(SIMPLIFIED), frozenset(TRADITIONAL)
# The most frequent characters of modern and classical Chinese cover a third to a half of any running text, and about
# none of what bytes give when they are decoded with the wrong codec.
FREQUENT = (
    frozenset(
        "的一是不了在人有我他个中上大和地到以要就出可也你生能而子那得于着下自之年发后作里用道行所然家种事成方多么去法"
        "如都同当没面起看定天分好小部其些主样理心她本前但因只从想日者意无力它与把机十民第公此已工使情明性知全三又点正"
        "外高由很最重并物手向文体政美相被利什二等或新己制身果加西月合回代内信表化老世位次度任常先海通教原东立及比解水"
        "名真走各入口平系活更打女四神何安少才反受目太再王曰矣焉乎於後個裡與無從當沒體發樣並點種"
    )
    | _SIMPLIFIED
    | _TRADITIONAL
)


class Chinese(Utf8):
    name = "chinese"
    presets = {"nano": "nano-chinese", "small": "small-chinese", "base": "base-chinese"}  # noqa: RUF012
    line_up = ("transformer", "space", "2stage")  # paper, section 3.2
    summary = "Chinese, simplified or traditional; GB18030 and Big5 are converted to UTF-8"
    example = "春天来了，河边的柳树发了新芽。\n孩子们放学以后常常在桥上看船，老人坐在树下喝茶，谈论今年的收成和天气。\n"
    encodings = "UTF-8, GB18030 or Big5"
    errors = CP936
    converts = True

    def detect(self, name: str, head: bytes) -> float:
        if binary_reason(head) or suffix(name) in (".fa", ".fasta"):
            return 0.0
        text = decoded(head)
        if text is None:
            return 0.9 if legacy_encoding(head) else 0.0
        sample = "".join(text[:4096].split())
        han = han_count(sample)
        kana = kana_count(sample)
        if han <= 0.2 * len(sample):
            return 0.3 * han / max(1, len(sample))
        # A tenth of kana among the Chinese characters makes it Japanese, which is text like any other.
        return 0.1 if kana > 0.1 * (han + kana) else 0.6 + 0.35 * han / len(sample)

    def encoding(self, head: bytes) -> str:
        """UTF-8 if `head` is, else the legacy encoding whose characters are Chinese."""
        return "utf-8" if decoded(head) is not None else legacy_encoding(head) or "utf-8"

    def shown(self, encoding: str) -> str:
        return LEGACY.get(encoding, "UTF-8")

    def notes(self, text: str, encoding: str, piece: bytes) -> tuple[str, ...]:
        notes = [f"converted from {LEGACY[encoding]} to UTF-8"] if encoding in LEGACY else []
        if encoding == "gb18030" and text.count("€") > piece.count("€".encode(encoding)):
            notes.append(EURO)
        if script := dominant_script(text):
            notes.append(f"{script} characters")
        return tuple(notes)

    def reference_edges(self, data: bytes) -> Mapping[str, Sequence[int]]:
        """`character`: every start of a UTF-8 character. `word`: every start of a word in the segmentation of jieba
        (Chinese words are not marked in writing, so this is another program's opinion, not the truth)."""
        _, starts = code_points(data)
        edges: dict[str, Sequence[int]] = {"character": starts.tolist()}
        if find_spec("jieba"):
            edges["word"] = _jieba_words(data, starts)
        return edges

    def gold(self, source: Source) -> Iterator[Gold | Refused]:
        """CoNLL-U, SIGHAN's words separated by spaces, or SIGMORPHON's morphemes; see `_gold`."""
        return gold(source, spaced=False)

    def perturbations(self) -> Mapping[str, Perturbation]:
        return CHINESE


def legacy_encoding(head: bytes) -> str:
    """The legacy encoding in which `head` is Chinese, or "".

    Every candidate decodes; the right one gives frequent characters and hardly any undecodable bytes.
    """
    if head.startswith(MARKS["gb18030"][1]):
        return "gb18030"
    text = head[:65536].decode("utf-8", "replace")
    if 3 * text.count("\ufffd") < sum(char > "\x7f" for char in text):
        return ""  # UTF-8 with some bytes that are wrong
    best, best_score = "", 0.15
    for codec in LEGACY:
        text = head[:65536].decode(codec, CP936_REPLACE)
        if kana_count(text) > 0.25 * sum(char > "\x7f" for char in text):
            return ""  # EUC-JP, whose kana stand in the same places in GB18030
        frequent = sum(char in FREQUENT for char in text)
        score = (frequent - 5 * text[:-2].count("\ufffd")) / max(1, han_count(text))
        if score > best_score:
            best, best_score = codec, score
    return best


def _euro(error: UnicodeError) -> tuple[str, int]:
    """Error handler: the byte 0x80 is the euro sign where Windows wrote GBK (code page 936)."""
    if isinstance(error, UnicodeDecodeError) and error.encoding == "gb18030" and error.object[error.start] == 0x80:
        return "€", error.start + 1
    raise error


def _euro_or_replace(error: UnicodeError) -> tuple[str | bytes, int]:
    try:
        return _euro(error)
    except UnicodeError:
        return codecs.replace_errors(error)


codecs.register_error(CP936, _euro)
codecs.register_error(CP936_REPLACE, _euro_or_replace)


def kana_count(text: str) -> int:
    """Number of characters of the Japanese syllabaries in `text`."""
    return sum("\u3040" <= char <= "\u30ff" for char in text)


def dominant_script(text: str) -> str:
    """ "simplified", "traditional", "simplified and traditional", or "" where too few characters differ."""
    sample = text[:2048]
    simplified = sum(char in _SIMPLIFIED for char in sample)
    traditional = sum(char in _TRADITIONAL for char in sample)
    if simplified + traditional < 3:
        return ""
    share = simplified / (simplified + traditional)
    return "simplified" if share > 0.9 else "traditional" if share < 0.1 else "simplified and traditional"


def _jieba_words(data: bytes, starts: np.ndarray) -> list[int]:
    import jieba  # imported here: it loads a dictionary of 5 MB

    jieba.setLogLevel(logging.WARNING)
    text = data.decode("utf-8", "surrogateescape")
    return starts[[start for _, start, _ in jieba.tokenize(text)]].tolist() if text else []
