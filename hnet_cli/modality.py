"""The plugin contract: modalities, and how the installed ones are found.

A modality turns a user's files into documents of bytes and says how to weigh, split, judge, draw and continue them. The
core knows bytes only: it never names a modality. Plugins register under the entry-point group `hnet.modalities`

    [project.entry-points."hnet.modalities"]
    morse = "my_package.morse:Morse"

and import nothing of hnet but this module and `hnet_cli.errors`. Only `name`, `summary` and `documents` are mandatory.
"""

from __future__ import annotations

import codecs
import io
import random
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import BinaryIO, ClassVar, Literal, NamedTuple

from hnet_cli.errors import EnvironmentLimit, InputError, UsageError

GROUP = "hnet.modalities"
COMPRESSIONS = (".gz", ".bgz", ".bz2", ".xz", ".zst")
MARK = codecs.BOM_UTF8
"""The byte order mark with which some programs begin text in UTF-8; it is no part of the text."""
MARK_LEFT_OUT = "byte order mark"
"""End of the `Refused.reason` of a mark: one character of the source, as `segment` counts them."""


@dataclass(frozen=True, slots=True)
class Source:
    """One readable input: a file, a member of an archive, a row of a JSONL file, or standard input.

    `open()` gives the decompressed bytes from the start; it may be called again except for standard input.
    """

    name: str
    """The name shown to the user and written to segment output: `corpus.tar:books/a.txt`, `x.jsonl:17`, `-`."""
    open: Callable[[], BinaryIO]
    group: str = ""
    """The group to give to documents that must fall on one side of the split: the repository, the file."""
    whole: bool = False
    """True where the source is one document already (a row of JSONL or parquet)."""
    offset: int = 0
    """Position of its first byte in the file, if it is a stretch of a large one; see `Modality.divisible`."""
    completion: int | None = None
    """Bytes of the prompt that it begins with, if it is a row of prompt and completion. Plugins need not look at it."""

    @staticmethod
    def of_bytes(data: bytes, name: str = "-", group: str = "", completion: int | None = None) -> Source:
        """A source over bytes in memory."""
        return Source(name, lambda: io.BytesIO(data), group, whole=True, completion=completion)


class Document(NamedTuple):
    """Bytes that belong together: a book, a source file, a stretch of a chromosome without gaps.

    A tuple: there may be millions, and a frozen dataclass takes three times as long to make.
    """

    data: bytes
    """The bytes as stored; the model reads them through `Modality.input_table`."""
    name: str
    """Name within the source: the record of a FASTA file, else the source's own name."""
    source: str
    group: str = ""
    """Documents of one group fall on one side of the split. "": the group that `select` or `select_members` put the
    source into with others; if none, a group of its own, with all documents of the same bytes."""
    offset: int = 0
    """Position of data[0]: bytes from the start of the decompressed source (of its UTF-8 form where the plugin
    converts the encoding, as `notes` then says), or bases from the start of the record. Below 0 in a row of prompt and
    completion, which has its 0 where the completion begins."""
    notes: tuple[str, ...] = ()
    """Remarks for the user, short and countable like `Refused.reason`: "converted from GB18030", "traditional
    characters". `prepare` counts documents by note."""
    encoding: str = "UTF-8"
    """The encoding of the source, if the plugin converts (`Modality.converts`)."""

    @property
    def prompt(self) -> int:
        """Number of bytes it begins with that count for nothing: those of a prompt."""
        return max(0, -self.offset)


@dataclass(frozen=True, slots=True)
class Refused:
    """A part of a source that is not used, and why. Never silent: `prepare` counts these by reason."""

    reason: str
    """Short and countable: "not UTF-8", "protein, not DNA", "run of N"."""
    where: str
    """Name and position for the first message about it."""
    bytes: int = 0
    damaged: bool = False
    """True if it was meant to be read but could not be: not JSON, not UTF-8, truncated. `prepare` fails where that is
    more than 1% of the input, unless told otherwise; the share left out by choice is not limited."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """A learned chunk of a document: the half-open byte range [start, end) of `Document.data`."""

    stage: int
    start: int
    end: int
    probability: float


@dataclass(frozen=True, slots=True)
class Gold:
    """A stretch of bytes and the starts of the units in it that people have marked."""

    data: bytes
    """The bytes as stored, like `Document.data`."""
    edges: Mapping[str, Sequence[int]]
    """Positions by kind of unit, ascending. Position 0 does not count: a document begins with a boundary."""
    name: str = "-"


@dataclass(frozen=True, slots=True)
class Shown:
    """A feature as pages show it: [start, end) in a document, which it may reach beyond."""

    kind: str
    """ "gene", "exon" or "CDS"."""
    start: int
    end: int
    strand: int = 0
    """1, -1; 0: not known."""
    name: str = ""


class Annotation:
    """Knowledge about records by coordinates, read by `Modality.annotation`, asked document by document."""

    def names(self) -> Collection[str]:
        """Names of the annotated records, as `Document.name` has them; none: not known."""
        return ()

    def edges(self, document: Document) -> Mapping[str, Sequence[int]]:
        """Positions in the document where annotated features begin, by kind, as in `Gold.edges`."""
        return {}

    def regions(self, document: Document) -> Mapping[str, Sequence[int]]:
        """Positions in the document by kind of place, ascending; kinds may overlap."""
        return {}

    def shown(self, document: Document) -> Sequence[Shown]:
        """The features in the document that a page shows, by start."""
        return ()

    def left_out(self, read: Mapping[str, int]) -> Mapping[str, tuple[int, str]]:
        """By reason, the number of rows that say nothing and where the first is. `read`: for each record that is read,
        the position up to which it is."""
        return {}


@dataclass(frozen=True, slots=True)
class Variant:
    """One place where two sequences differ, with its surroundings; all bytes as the model reads them."""

    name: str
    before: bytes
    reference: bytes
    alternative: bytes
    after: bytes
    begins: bool = False
    """True if `before` reaches back to the beginning of its record."""
    ends: bool = False
    """True if `after` reaches the end of its record."""
    fields: Mapping[str, str] = field(default_factory=dict)
    """Fields of the file about it; those without a value are missing."""
    baselines: Mapping[str, float] = field(default_factory=dict)
    """Model-free baseline scores."""
    record: str = field(kw_only=True)
    """The name of its record, as `Document.name` has it."""
    position: int = field(kw_only=True)
    """Position of the first byte of `reference` in the record, from 0: by it neighbours share what is read."""


Perturbation = Callable[[bytes, random.Random], bytes]
"""(document, random generator) -> the distorted document."""


@dataclass(frozen=True)
class Automaton:
    """A deterministic automaton over bytes that tells the legal next bytes, so that samples are always valid.

    `transitions[state][byte]` is the next state, -1 where the byte is illegal; output ends only in an accepting state.
    """

    transitions: tuple[tuple[int, ...], ...]
    start: int = 0
    accepting: frozenset[int] = field(default_factory=lambda: frozenset({0}))

    @staticmethod
    def of_alphabet(alphabet: bytes) -> Automaton:
        """One state; any sequence over `alphabet` is valid."""
        return Automaton((tuple(0 if byte in alphabet else -1 for byte in range(256)),))

    def run(self, data: bytes, state: int | None = None) -> int:
        """The state after `data`; -1 as soon as a byte is illegal."""
        state = self.start if state is None else state
        for byte in data:
            if state < 0:
                break
            state = self.transitions[state][byte]
        return state


SYNTAX = ("", "keyword", "name", "string", "number", "comment")
"""Kinds of `Modality.syntax`; "name" is the name of a function, class or type."""


class Modality:
    """Base of all modalities; see the module's docstring. Instances are stateless and cheap."""

    name: ClassVar[str]
    summary: ClassVar[str]
    """One line for `hnet prepare --help` and `hnet doctor`."""
    example: ClassVar[str] = ""
    """A few lines as documents of it are, to see chunks of."""
    presets: ClassVar[Mapping[str, str]] = {"nano": "nano", "small": "small", "base": "base"}
    """The default preset for each size."""
    line_up: ClassVar[tuple[str, ...]] = ()
    """Members of the default comparison (`hnet_cli.training.lineup`); none: the paper's for English."""
    formats: ClassVar[tuple[str, ...]] = ()
    """Output formats of `hnet segment` beyond the common ones, drawn by `render`."""
    input_table: ClassVar[bytes | None] = None
    """256 bytes: the byte that the model reads for each stored byte (`bytes.translate`). None: as stored."""
    loss_weights: ClassVar[tuple[float, ...] | None] = None
    """256 weights above 0 by stored byte for the loss of predicting it. None: all 1."""
    records: ClassVar[bool] = False
    """True if a source holds records: `Document.name` is the record's, and `offset` counts from its start."""
    unit: ClassVar[str] = "byte"
    """A position of a document, as people call it."""
    margin: ClassVar[Literal["offset", "line", "row"]] = "offset"
    """Before a line on a page: its offset, or its number; "row": there are no lines, and sixty letters make one."""
    converts: ClassVar[bool] = False
    """True if documents may be in another encoding than their source; `Document.encoding` then tells which."""
    verbatim: ClassVar[frozenset[str]] = frozenset()
    """Extensions of files that are documents as they are, though they look like JSON rows; not so with `--field`."""
    scored_noise: ClassVar[tuple[str, ...]] = ()
    """Names of the `perturbations` that the robustness score of tasks averages; none: all."""
    consults: ClassVar[frozenset[str]] = frozenset()
    """Names of files and folders in an archive that decide about its other members (.gitignore). If there are any,
    archives are walked twice."""

    def detect(self, name: str, head: bytes) -> float:
        """Likelihood (0 to 1) that a file `name` whose decompressed bytes begin with `head` is of this modality."""
        return 0.0

    def select(self, root: Path, files: Iterable[Path]) -> Iterator[tuple[Path, str] | Refused]:
        """The files to read below a folder that the user gave: (file, group), or a refusal. Default: all, each its own
        group. `files` are absolute, sorted; code uses this for .gitignore, vendored folders and repository groups.

        Group "": what is below the folder belongs together. Where nothing else is given each file is its own group all
        the same, so that the split has something to choose from."""
        for file in files:
            yield file, file.relative_to(root).as_posix()

    def select_members(self, consulted: Mapping[str, bytes]) -> Callable[[str, int, bytes], tuple[str, str]]:
        """`select` for the members of an archive: (path, size, first 8 KiB) -> (reason not to read it or "", group).

        `consulted`: content by path of the members that `consults` names; b"" for folders. Groups as in `select`.
        Default: all are read, each its own group.
        """
        return lambda path, size, head: ("", path)

    def divisible(self, head: bytes) -> bool:
        """True if a plain file that begins with `head` may be read in stretches that begin and end with lines, so that
        several processes read it at once. `documents` then counts from `Source.offset`."""
        return False

    def documents(self, source: Source) -> Iterator[Document | Refused]:
        """The documents of a source in order, and refusals. Memory must not grow with the source."""
        raise NotImplementedError

    def cut(self, data: bytes, near: int) -> int:
        """The largest position <= near where a document may be divided (0 if none). Default: `near` itself."""
        return near

    def automaton(self) -> Automaton:
        """Legal output of `hnet sample`. Default: any byte but the two that mark document ends."""
        return Automaton.of_alphabet(bytes(range(254)))

    def letters(self) -> bytes:
        """The alphabet of a modality whose output is any sequence over one, at most 7 bits a byte; else empty."""
        (first, *others) = self.automaton().transitions
        legal = bytes(byte for byte, state in enumerate(first) if state >= 0)
        return b"" if others or len(legal) > 128 else legal

    def display(self, data: bytes) -> str:
        """Safe text for a terminal: nothing in it can move the cursor or change colours."""
        return escape(data.decode("utf-8", "replace"))

    def reference_edges(self, data: bytes) -> Mapping[str, Sequence[int]]:
        """Positions in `data`, ascending, where units known without training begin, by kind ("word", "character",
        "token"). `segment` and `eval` report the fraction of the learned boundaries that falls on them, beside chance.
        Position 0 may be among them; callers leave it out, since every document begins with a boundary."""
        return {}

    # -- for `hnet eval` -----------------------------------------------------------------------------------------------

    def units(self, document: Document) -> Mapping[str, Sequence[int]]:
        """`reference_edges` of a document whose name may tell more, such as the programming language."""
        return self.reference_edges(document.data)

    def settle(self, data: bytes) -> Sequence[int] | None:
        """For each position 0 to len(data), the position, at or after it, where people read a boundary there: inside a
        character at the next character, in white space at the next word. None: unchanged."""
        return None

    def gold(self, source: Source) -> Iterator[Gold | Refused]:
        """The marked stretches of a gold file. Raises UsageError for a modality that has no such files."""
        raise UsageError(f"modality {self.name} reads no gold files")

    def annotation(self, source: Source) -> Annotation:
        """An annotation by coordinates. Raises UsageError for a modality that has none, InputError for a bad file."""
        raise UsageError(f"modality {self.name} has no annotation by coordinates")

    def perturbations(self) -> Mapping[str, Perturbation]:
        """Distortions by name that a reader of this modality would see through."""
        return {}

    def mirror(self, data: bytes) -> bytes | None:
        """The same content read in the other direction: the reverse complement. None where there is none."""
        return None

    def variants(self, calls: Source, reference: Source, flank: int) -> Iterator[Variant | Refused]:
        """The variants of a file of calls in the reference it refers to, with up to `flank` bytes on either side.
        Raises UsageError for a modality that has none."""
        raise UsageError(f"modality {self.name} has no variants")

    def syntax(self, document: Document) -> bytes | None:
        """The kind of each byte of a document in its language, for colours: (n,) indices into `SYNTAX` as bytes.
        None where there is none."""
        return None

    def render(self, document: Document, chunks: Iterable[Chunk], format: str) -> Iterator[str]:
        """Lines of one of this modality's own `formats` for a document."""
        raise UsageError(f"modality {self.name} has no output format {format!r}")


def suffix(name: str) -> str:
    """The extension of `name` without that of a compression, in lower case: ".fa" of "a/Genome.FA.gz"."""
    path = Path(name.lower())
    return Path(path.stem).suffix if path.suffix in COMPRESSIONS else path.suffix


def begin_text(stream: io.BufferedReader, name: str) -> io.BufferedReader:
    """`stream`, which is at the beginning of text in UTF-8, after its byte order mark if it has one.

    Raises InputError for text in UTF-16 or UTF-32, with `name`.
    """
    head = stream.peek(4096)[:4096]
    if reason := wide_reason(head):
        raise InputError(f"{name} is {reason}")
    if head.startswith(MARK):
        stream.read(len(MARK))
    return stream


_WIDE = {b"\xff\xfe\0\0": "UTF-32LE", b"\0\0\xfe\xff": "UTF-32BE", b"\xff\xfe": "UTF-16LE", b"\xfe\xff": "UTF-16BE"}
_WIDE_MARKS = tuple(_WIDE)
# Code points of letters and marks that most text is made of: Latin, Greek, Cyrillic; punctuation; CJK, kana, Hangul.
_USUAL = (
    *((9, 14), (32, 127), (160, 0x530), (0x2010, 0x2040), (0x3000, 0x3100), (0x4E00, 0xA000), (0xAC00, 0xD7A4)),
    (0xFF00, 0xFFF0),
)


def wide_encoding(head: bytes) -> str:
    """The encoding, as iconv calls it, of text in UTF-16 or UTF-32 that begins with `head`; "" for anything else.

    Told by its mark; without one, if there is a zero byte, by what it decodes to.
    """
    if head.startswith(_WIDE_MARKS):
        return next(name for mark, name in _WIDE.items() if head.startswith(mark))
    if b"\0" not in head[:4096]:
        return ""
    scores = {name: _usual_share(head[:4096], name) for name in _WIDE.values()}
    best = max(scores, key=scores.__getitem__)
    return best if scores[best] > 0.9 else ""


def _usual_share(head: bytes, codec: str) -> float:
    """Share of usual characters in what `head` decodes to, ASCII counting twice; 0 where it does not."""
    try:
        text = codecs.getincrementaldecoder(codec)().decode(head)
    except UnicodeDecodeError:
        return 0.0
    usual = sum(any(low <= ord(char) < high for low, high in _USUAL) for char in text)
    ascii_too = sum(" " <= char < "\x7f" for char in text)
    return (usual + ascii_too) / len(text) if usual > 0.9 * len(text) > 3 else 0.0


def wide_reason(head: bytes) -> str:
    """The reason why text in UTF-16 or UTF-32 is not read, or ""."""
    name = wide_encoding(head)
    return f"{name}: convert it first, for example with iconv -f {name} -t UTF-8" if name else ""


def escape(text: str, keep: str = "\n\t") -> str:
    """`text` with every control character (but those in `keep`) and bidirectional override shown as an escape, and so
    the halves of surrogate pairs that stand for bytes of file names which are not UTF-8."""
    return _unsafe(keep).sub(lambda match: _escaped(ord(match[0])), text)


def _escaped(code: int) -> str:
    if 0xDC80 <= code < 0xDD00:  # a byte, by Python's surrogateescape
        code -= 0xDC00
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


@cache
def _unsafe(keep: str) -> re.Pattern[str]:
    codes = (*range(32), *range(127, 160), *range(0x202A, 0x202F), *range(0x2066, 0x206A), *range(0xD800, 0xE000))
    return re.compile(f"[{re.escape(''.join(chr(code) for code in codes if chr(code) not in keep))}]")


def _installed() -> dict[str, EntryPoint]:
    points: dict[str, EntryPoint] = {}
    for point in entry_points(group=GROUP):
        other = points.setdefault(point.name, point)
        if other.value != point.value:
            packages = " and ".join(sorted(p.dist.name if p.dist else "?" for p in (other, point)))
            message = f"two installed packages offer a modality called {point.name!r}: {packages}"
            raise UsageError(message, "uninstall one of them")
    return points


def names() -> list[str]:
    """Names of the installed modalities, without importing them."""
    return sorted(_installed())


def get(name: str) -> Modality:
    """The modality called `name`. Only that plugin is imported, so a broken neighbour cannot hurt.

    Raises UsageError for an unknown name and EnvironmentLimit where the plugin's own import fails.
    """
    installed = _installed()
    if name not in installed:
        raise UsageError(f"no modality is called {name!r}", f"installed: {', '.join(sorted(installed))}")
    try:
        modality = installed[name].load()()
    except Exception as error:
        raise EnvironmentLimit(f"modality {name!r} cannot be loaded: {type(error).__name__}: {error}") from error
    if not isinstance(modality, Modality):
        raise EnvironmentLimit(f"modality {name!r} ({installed[name].value}) is not a hnet_cli.modality.Modality")
    return modality
