"""Distortions that a reader sees through. Text: the five of BLT (arXiv 2412.09871), which the paper uses (App. D.1).
Everywhere: the same content in another layout, which byte models lean on more than readers do."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from random import Random
from string import ascii_letters, ascii_lowercase, ascii_uppercase

from hnet_cli.modality import Perturbation

from ._bytes import words


def _of_text(distort: Callable[[str, Random], str]) -> Perturbation:
    """A distortion of text, applied to bytes; bytes that are not UTF-8 pass unchanged."""

    def perturb(data: bytes, random: Random) -> bytes:
        text = data.decode("utf-8", "surrogateescape")
        return distort(text, random).encode("utf-8", "surrogateescape")

    return perturb


def _per_character(change: Callable[[str, Random], str]) -> Perturbation:
    """A distortion of each character of a text by itself."""
    return _of_text(lambda text, random: "".join(change(char, random) for char in text))


def _substituted(pattern: str, by: str) -> Perturbation:
    """Replace each match of a pattern in a text."""
    return _of_text(lambda text, random: re.sub(pattern, lambda match: by, text))


LINE_END = r"\r\n|\r|\n"
LINES: Mapping[str, Perturbation] = {
    "CRLF": _substituted(LINE_END, "\r\n"),
    "CR": _substituted(LINE_END, "\r"),
}
"""Line ends of Windows, and those of old Macintoshes."""

PAPER = ("AntSpeak", "Drop", "RandomCase", "Repeat", "UpperCase")
TEXT: Mapping[str, Perturbation] = {
    "AntSpeak": _of_text(lambda text, random: " ".join(text.upper())),
    "Drop": _per_character(lambda char, random: "" if random.random() < 0.1 else char),
    "RandomCase": _per_character(lambda char, random: char.upper() if random.random() < 0.5 else char.lower()),
    "Repeat": _per_character(lambda char, random: char * random.randint(2, 4) if random.random() < 0.2 else char),
    "UpperCase": _of_text(lambda text, random: text.upper()),
    "BlankLines": _substituted(" +", "\n\n"),
    "Tabs": _substituted(" ", "\t"),
    "NoSpaces": _substituted(" ", ""),
    **LINES,
    "LineSeparator": _substituted(LINE_END, "\u2028"),
}
"""AntSpeak: upper case, a space between any two characters. Drop: each character is left out with probability 0.1.
RandomCase: upper or lower case with even chances. Repeat: with probability 0.2 a character stands two to four times.
UpperCase. BlankLines: one between any two words. Tabs: for spaces. NoSpaces: line ends stay. LineSeparator: U+2028 for
line ends."""

# Characters that sound the same (or nearly) and are confused in typing; and characters that look alike.
SOUND = (
    "的地得 在再 他她它 做作坐座 是事市式 那哪 以已意 和合河 有又友右 会回汇 年念 时十实石 这着 为位未 中种重 国果 人任"
    " 上商 到道 就旧 了乐 不步部 一医衣 我握 来赖 个各 也页 要药 能弄 发法 工公功 生声升 于与语 成城程 学雪 经精"
    " 机鸡基 方房 行形型 家加 心新 同童 电店 明鸣 等灯 向象像 前钱 性姓 长常场"
)
LOOK = (
    "人入八 大太犬 日曰目 土士 未末 己已巳 天夫 千干于 刀力刁 田由甲申 午牛 木本术 王玉主 白百自 贝见 东车"
    " 今令 问间 处外 折拆析 治冶 便使 侯候 徒徙 抢枪 住往 晴睛 传侍 设没 辩辨 准淮"
)


def _confused(groups: str) -> Perturbation:
    """Replace half of the characters that have a double by one."""
    doubles: dict[str, str] = {}
    for group in groups.split():
        for char in group:
            doubles.setdefault(char, group.replace(char, ""))
    return _per_character(
        lambda char, random: random.choice(doubles[char]) if char in doubles and random.random() < 0.5 else char
    )


SHIFT = ord("！") - ord("!")  # from ASCII to full-width forms
MARKS = dict(zip("。、《》“”「」\u3000", '.,<>"""" ', strict=True))


def _wide(char: str, random: Random) -> str:
    return chr(ord(char) + SHIFT) if "!" <= char <= "~" else "\u3000" if char == " " else char


def _narrow(char: str, random: Random) -> str:
    return chr(ord(char) - SHIFT) if "！" <= char <= "～" else MARKS.get(char, char)


CHINESE: Mapping[str, Perturbation] = {
    "Homophone": _confused(SOUND),
    "LookAlike": _confused(LOOK),
    "FullWidth": _per_character(_wide),
    "HalfWidth": _per_character(_narrow),
    "Drop": TEXT["Drop"],
    "Repeat": TEXT["Repeat"],
    "WideSpaces": _of_text(lambda text, random: re.sub(r"(?<=\S)(?=\S)", "\u3000", text)),
    "LineBreaks": _of_text(lambda text, random: re.sub(r"(.{20})(?=.)", r"\1\n", text)),
    **LINES,
}
"""Homophone, LookAlike: half of the characters of a table of common confusions. FullWidth, HalfWidth: of letters,
digits and punctuation. Drop and Repeat as in text. WideSpaces: a full-width one between any two characters, as titles
are set. LineBreaks: after every 20 characters of a line, as from a page that was scanned."""

WORD = re.compile(r"[A-Za-z_]\w*", re.ASCII)
SHAPE = str.maketrans(ascii_letters, "a" * 26 + "A" * 26)
MOST_LETTERS = 8  # no text has as many names as there are of so many letters
RESERVED = words(
    """
    and as assert async await break class continue def del elif else except finally for from global if import in is
    lambda nonlocal not or pass raise return try while with yield None True False self cls int float double char void
    bool string str bytes list dict set tuple object type print len range include define public private protected
    static const final new delete this super extends implements interface package namespace using switch case default
    do goto sizeof struct union enum typedef volatile unsigned signed long short extern inline register var let
    function typeof instanceof throw throws catch export undefined null nil true false fn mut pub impl trait match use
    mod crate where loop move ref go func chan defer select map end then begin elsif unless require module endif ifdef
    ifndef pragma auto template typename virtual operator friend
    """
)


def _shape(word: str) -> str:
    """The form of a name that renaming keeps: which characters are letters of which case, and all others."""
    return word.translate(SHAPE)


def _rename(text: str, random: Random) -> str:
    """Give every identifier another name of the same length, the same at every place."""
    taken = dict.fromkeys(WORD.findall(text))
    used = Counter(map(_shape, taken))
    own: defaultdict[str, list[str]] = defaultdict(list)
    for word in taken:
        if word not in RESERVED and len(word) > 1 and not word.startswith("__"):
            own[_shape(word)].append(word)
    given = {word for words in own.values() for word in words}
    names: dict[str, str] = {}

    def letter(char: str) -> str:
        alphabet = ascii_lowercase if char.islower() else ascii_uppercase if char.isupper() else char
        return random.choice(alphabet) if len(alphabet) > 1 else char

    def renamed(match: re.Match[str]) -> str:
        word = match[0]
        if word not in given:
            return word
        while word not in names:
            shape = _shape(word)
            if used[shape] >= 26 ** min(MOST_LETTERS, sum(map(shape.count, "aA"))):
                # No name is free: those without a new one go round among the names that there were.
                random.shuffle(own[shape])
                for old, new in zip(own[shape], own[shape][1:] + own[shape][:1], strict=True):
                    names.setdefault(old, new)
                break
            new = "".join(map(letter, word))
            if new not in taken:
                names[word] = new
                taken[new] = None
                used[shape] += 1
        return names[word]

    return WORD.sub(renamed, text)


def _indent(text: str, random: Random) -> str:
    """Indent by tabs instead of four spaces and by two spaces instead of tabs."""

    def changed(match: re.Match[str]) -> str:
        white = match[0]
        return "\t" * (len(white) // 4) + " " * (len(white) % 4) if "\t" not in white else white.replace("\t", "  ")

    return re.sub(r"(?m)^[ \t]+", changed, text)


def _spaces(text: str, random: Random) -> str:
    """Double each single space between two other characters with probability 0.2."""
    return re.sub(r"(?<=\S) (?=\S)", lambda match: "  " if random.random() < 0.2 else " ", text)


CODE: Mapping[str, Perturbation] = {
    "Rename": _of_text(_rename),
    "Indent": _of_text(_indent),
    "Spaces": _of_text(_spaces),
    "Drop": TEXT["Drop"],
    "BlankLines": _substituted(LINE_END, "\n\n"),
    "Trailing": _of_text(lambda text, random: re.sub(r"(?m)$(?=\n)", lambda match: " " * random.randint(1, 3), text)),
    **LINES,
}
"""Rename: every identifier, consistently, to random letters. Indent: tabs for spaces and the reverse. Spaces: some
doubled. Drop as in text; this one breaks the program. BlankLines: one after every line. Trailing: one to three spaces
at the end of every line."""


def _substitute(data: bytes, random: Random) -> bytes:
    bases = bytearray(data)
    for at, base in enumerate(data):
        if random.random() < 0.1:
            bases[at] = random.choice([other for other in b"ACGT" if other != base & 0xDF])
    return bytes(bases)


def _filled(data: bytes, random: Random) -> bytes:
    """Random bases in stretches of 50, a tenth of all: unknown ones that some program has filled in."""
    bases = bytearray(data)
    for at in range(0, len(data), 50):
        if random.random() < 0.1:
            bases[at : at + 50] = bytes(random.choices(b"ACGT", k=len(bases[at : at + 50])))
    return bytes(bases)


COMPLEMENT = bytes.maketrans(b"ACGTUacgtu", b"TGCAAtgcaa")


def reverse_complement(data: bytes) -> bytes:
    """The other strand, read in its own direction. U is read as T."""
    return data.translate(COMPLEMENT)[::-1]


DNA: Mapping[str, Perturbation] = {
    "Substitution": _substitute,
    "Deletion": lambda data, random: bytes(base for base in data if random.random() >= 0.02),
    "ReverseComplement": lambda data, random: reverse_complement(data),
    "Filled": _filled,
}
"""Substitution: a tenth of the bases by another. Deletion: of a fiftieth of the bases. ReverseComplement. Filled: a
tenth of all stretches of 50 bases is random. Lower case, U and N need none: the first two are read as upper case and T,
and N never reaches a model."""
