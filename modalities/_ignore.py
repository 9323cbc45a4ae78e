"""Patterns of .gitignore files, as git reads them.

Written here because git's verdicts are what people rely on, and the library for it, pathspec, gives others: for classes
such as `[[:digit:]]`, escapes in brackets, names that are not ASCII (git compares bytes) and what stands below a folder
that a later line takes back. The rules: `git help gitignore`, and for names `wildmatch.c` of git. Two stars that follow
a letter, as in `a**/b`, are one here, as that says; git itself takes some of them for folders.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from hnet_cli.modality import MARK

CLASSES = {
    **{b"alnum": b"0-9A-Za-z", b"alpha": b"A-Za-z", b"blank": b" \t", b"cntrl": b"\0-\x1f\x7f", b"digit": b"0-9"},
    **{b"graph": b"!-~", b"lower": b"a-z", b"print": b" -~", b"punct": rb"!-/:-@\[-`{-~", b"space": b" \t-\r"},
    **{b"upper": b"A-Z", b"xdigit": b"0-9A-Fa-f"},
}
"""Contents of brackets in a regular expression for the classes of POSIX."""
TOKEN = re.compile(
    rb"(?P<folders>(?:(?<=/)|\A)\*\*+(?=/|\Z))|(?P<star>\*+)|(?P<any>\?)|(?P<bracket>\[)|\\(?P<escaped>.)|(?P<literal>[^\\])",
    re.DOTALL,
)
MEMBER = re.compile(rb"\[:(?P<name>[^]]{0,64}):\]|(\\.|[^\\])(?:-(\\.|[^]\\]))?", re.DOTALL)


class Malformed(ValueError):
    """A pattern that fits nothing."""


@dataclass(frozen=True, slots=True)
class Rule:
    """A line of a .gitignore file."""

    ignores: bool
    """False for a line that takes back."""
    folders_only: bool
    name: re.Pattern[bytes] | None
    """The last name of a path. None: the rule is about the whole path below the file."""
    groups: Sequence[Sequence[re.Pattern[bytes]]]
    """The names of a path, in order, divided where any folders may stand between (`**`)."""

    @classmethod
    def of(cls, line: bytes) -> Rule | None:
        """The rule of a line; None for one that is empty, a comment or malformed."""
        line = _without_spaces(line)
        if not line or line.startswith(b"#"):
            return None
        ignores = not line.startswith(b"!")
        line = line if ignores else line[1:]
        folders_only = line.endswith(b"/")
        line = line[:-1] if folders_only else line
        anchored = b"/" in line
        try:
            groups = list(_groups(line.removeprefix(b"/") if anchored else line, anchored))
        except Malformed:
            return None
        return cls(ignores, folders_only, None if anchored else groups[0][0], groups)

    def fits(self, names: Sequence[bytes]) -> bool:
        """True for a path of these names, below the .gitignore file, that the groups are about."""
        first, last, size = self.groups[0], self.groups[-1], len(names)
        low = len(first)
        if len(self.groups) == 1:
            return size == low and _fits(first, names, 0)
        high = size - (len(last) or 1)  # at the end of a pattern ** is at least one name
        if low > high or not _fits(first, names, 0) or not _fits(last, names, high):
            return False
        for group in self.groups[1:-1]:  # the first place leaves most to the next
            places = range(low, high - len(group) + 1)
            if (at := next((at for at in places if _fits(group, names, at)), None)) is None:
                return False
            low = at + len(group)
        return True


def _fits(patterns: Sequence[re.Pattern[bytes]], names: Sequence[bytes], at: int) -> bool:
    return all(map(re.Pattern.fullmatch, patterns, names[at : at + len(patterns)]))


def _without_spaces(line: bytes) -> bytes:
    """The line without its line end, and without spaces at the end that no backslash keeps."""
    line = line.removesuffix(b"\r")
    bare = line.rstrip(b" ")
    slashes = len(bare) - len(bare.rstrip(b"\\"))
    return bare + b" " * (slashes % 2 and len(bare) < len(line))


def _groups(line: bytes, anchored: bool) -> Iterator[list[re.Pattern[bytes]]]:
    """The groups of a pattern, each name as a regular expression. Raises Malformed."""
    group, name = list[re.Pattern[bytes]](), list[bytes | None]()  # None: a star
    at, whole = 0, False  # True where the pattern ends in **
    while at < len(line):
        if (found := TOKEN.match(line, at)) is None:
            raise Malformed
        at = found.end()
        if found["folders"] and anchored:
            yield group
            group, whole, at = [], at == len(line), at + 1
        elif found["folders"] or found["star"]:
            name.append(None)
        elif found["any"]:
            name.append(b".")
        elif found["bracket"]:
            at, content = _bracket(line, at)
            name.append(content)
        elif (letter := found["escaped"] or found["literal"]) == b"/":
            group.append(_name(name))
            name, whole = [], False
        else:
            name.append(re.escape(letter))
    if name or not whole:
        group.append(_name(name))
    yield group


def _name(parts: Sequence[bytes | None]) -> re.Pattern[bytes]:
    """A name. What stands between two stars is fixed at the first place where it fits: no other leaves more to the
    second one, and without that, time would grow with the length of a name to the power of the number of stars."""
    pieces = [b""]
    for part in parts:
        if part is None:
            pieces.append(b"")
        else:
            pieces[-1] += part
    first, *others = pieces
    inner = b"".join(b"(?>.*?" + piece + b")" for piece in others[:-1])
    return re.compile(first + inner + b"".join(b".*" + piece for piece in others[-1:]), re.DOTALL)


def _bracket(line: bytes, at: int) -> tuple[int, bytes]:
    """The position after a bracket expression whose content begins at `at`, and a regular expression of what is in it.

    Raises Malformed for one without an end and for a class that there is not.
    """
    members, negated = list[bytes](), line[at : at + 1] in (b"!", b"^")
    start = at = at + negated
    while at == start or line[at : at + 1] != b"]":
        if (found := MEMBER.match(line, at)) is None:
            raise Malformed
        at = found.end()
        if found["name"] is not None:
            if found["name"] not in CLASSES:
                raise Malformed
            members.append(CLASSES[found["name"]])
            continue
        first, last = found[2][-1:], (found[3] or b"")[-1:]
        members.append(re.escape(first) + (b"-" + re.escape(last)) * (first <= last))  # of "z-a" z is left
    return at + 1, b"[" + b"^" * negated + b"".join(members) + b"]"


Rules = tuple[tuple[int, list[Rule]], ...]
"""The .gitignore files from the root down, each with the number of folders above it, the last line first."""


class Ignored:
    """Judges whether git would ignore a path below the root, by the .gitignore files there and below.

    The deepest file with a matching line decides, in it the last such line, and nothing below an ignored folder comes
    back. `content` reads a file, b"" where there is none.
    """

    def __init__(self, content: Callable[[Path], bytes]) -> None:
        self.content = content
        self.known: dict[str, tuple[bool, Rules]] = {"": (False, self._rules((), "", 0))}
        """By folder: whether it is ignored, and the .gitignore files that decide about what is in it."""

    def __call__(self, path: Path) -> str:
        names, folder = [name.encode("utf-8", "surrogateescape") for name in path.parts], ""
        ignored, rules = self.known[folder]
        for depth, name in enumerate(path.parts[:-1], 1):
            folder += f"{name}/"
            if folder not in self.known:
                ignored = ignored or _named(rules, names[:depth], folder=True)
                self.known[folder] = ignored, self._rules(rules, folder, depth)
            ignored, rules = self.known[folder]
        return "named by .gitignore" if ignored or _named(rules, names, folder=False) else ""

    def _rules(self, above: Rules, folder: str, depth: int) -> Rules:
        lines = self.content(Path(folder, ".gitignore")).removeprefix(MARK).split(b"\n")
        rules = [rule for rule in map(Rule.of, reversed(lines)) if rule]
        return (*above, (depth, rules)) if rules else above


def _named(rules: Rules, names: Sequence[bytes], folder: bool) -> bool:
    name = names[-1]
    for depth, lines in reversed(rules):
        below = names[depth:]
        for rule in lines:
            if (folder or not rule.folders_only) and (rule.name.fullmatch(name) if rule.name else rule.fits(below)):
                return rule.ignores
    return False
