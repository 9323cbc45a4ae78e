"""Boundaries by rules that read bytes one after the other: regular expressions, and the vocabulary of a tokenizer.

Such a rule is a deterministic automaton over bytes: one table look-up per byte, no backtracking, the same result
however a document is cut, and never a look ahead. Lookarounds, references and word borders of Python's `re` have no
such table, which is why the expressions are parsed here. No torch in here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

MOST_STATES = 1 << 14
"""Upper limit of the states of a vocabulary's automaton, 1 kB of memory each; of an expression's a sixteenth of it."""
MOST_PATTERN = 500
"""Upper limit of the characters of an expression."""
MOST_REPEATS = 64
MOST_WORK = 1 << 18
"""Upper limit of the positions in all states of an expression's automaton together, those looked at on the way counted
too: a second of work."""

Bytes = frozenset[int]
EVERY: Bytes = frozenset(range(256))
DIGIT: Bytes = frozenset(b"0123456789")
SPACE: Bytes = frozenset(b" \t\n\r\f\v")
WORD: Bytes = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ_") | DIGIT
CLASSES = {"d": DIGIT, "D": EVERY - DIGIT, "s": SPACE, "S": EVERY - SPACE, "w": WORD, "W": EVERY - WORD}
ESCAPES = {"n": 10, "r": 13, "t": 9, "f": 12, "v": 11, "0": 0}
NEWLINE: Bytes = frozenset([10])


@dataclass(frozen=True, eq=False)
class Automaton:
    """S states, of which 0 is that of a document that has not begun."""

    following: np.ndarray
    """(S, 256) int32: the state after a byte."""
    boundary: np.ndarray
    """(S, 256) bool: that byte begins a chunk."""

    def run(self, data: bytes, state: int = 0) -> tuple[np.ndarray, int]:
        """Boundaries of bytes read from a state, (n,) bool, and the state after them."""
        table, states = self.following.ravel().tolist(), [0] * len(data)
        for i, byte in enumerate(data):
            states[i] = state
            state = table[state << 8 | byte]
        return self.boundary[states, np.frombuffer(data, np.uint8)], state


# -- regular expressions -----------------------------------------------------------------------------------------------


@lru_cache(maxsize=16)
def of_pattern(pattern: str) -> Automaton:
    """The rule that a byte begins a chunk where a match of `pattern` ends with it, wherever the match began.

    Syntax: characters, escapes, `.`, sets, groups, `|`, `?`, `*`, `+`, `{m,n}`, over the bytes of UTF-8. Raises
    ValueError for anything else, for an expression that matches nothing or the empty string, and for one too large.
    """
    if len(pattern) > MOST_PATTERN:
        raise ValueError(f"a chunker's expression has at most {MOST_PATTERN} characters, this one has {len(pattern)}")
    parser = _Parser(pattern)
    net = parser.whole()
    first = net.reach({0})
    if net.end in first:
        raise ValueError(f"the chunker's expression {pattern!r:.60} matches the empty string, that is everywhere")
    kinds, moves = net.moves()
    numbers, found, work = {first: 0}, [first], 0
    following: list[np.ndarray] = []
    boundary: list[np.ndarray] = []
    for states in found:  # grows while it is walked
        targets: dict[int, list[int]] = {}
        for state in states:
            for kind, target in moves[state]:
                targets.setdefault(kind, []).append(target)
        row, marks = np.zeros(kinds.max() + 1, np.int32), np.zeros(kinds.max() + 1, bool)
        for kind in range(len(row)):
            after = net.reach({0, *targets.get(kind, ())})  # a match may begin at any byte
            work += len(after)
            if after not in numbers:
                if len(found) >= MOST_STATES // 16:
                    raise ValueError(f"the chunker's expression {pattern!r:.60} needs too many states")
                numbers[after] = len(found)
                found.append(after)
            row[kind], marks[kind] = numbers[after], net.end in after
        if work > MOST_WORK:
            raise ValueError(f"the chunker's expression {pattern!r:.60} needs too many positions at once")
        following.append(row[kinds])
        boundary.append(marks[kinds])
    return Automaton(np.stack(following), np.stack(boundary))


class _Net:
    """Positions in an expression; 0 is before it."""

    def __init__(self) -> None:
        self.reads: list[list[tuple[Bytes, int]]] = []
        self.free: list[list[int]] = []
        self.end = -1

    def new(self) -> int:
        if len(self.free) > 20 * MOST_PATTERN:
            raise ValueError("the chunker's expression repeats too much")
        self.reads.append([])
        self.free.append([])
        return len(self.free) - 1

    def reach(self, states: Iterable[int]) -> frozenset[int]:
        """The positions that are reached without reading a byte."""
        seen = set(states)
        waiting = list(seen)
        while waiting:
            more = [to for to in self.free[waiting.pop()] if to not in seen]
            seen.update(more)
            waiting += more
        return frozenset(seen)

    def moves(self) -> tuple[np.ndarray, list[list[tuple[int, int]]]]:
        """Kinds of bytes, (256,) int64, of which the expression tells none of a kind apart; and per position pairs of
        a kind that it reads and the position after."""
        sets = dict.fromkeys(accepted for reads in self.reads for accepted, _ in reads)
        signs: dict[tuple[bool, ...], int] = {}
        of_byte = [signs.setdefault(tuple(byte in each for each in sets), len(signs)) for byte in range(256)]
        read = {each: sorted({of_byte[byte] for byte in each}) for each in sets}
        return np.array(of_byte), [[(kind, to) for each, to in reads for kind in read[each]] for reads in self.reads]


class _Parser:
    """Recursive descent; every part is a list of alternatives of sequences, added to a net between two positions."""

    def __init__(self, pattern: str) -> None:
        self.pattern, self.at, self.net = pattern, 0, _Net()

    def refuse(self, reason: str) -> ValueError:
        return ValueError(f"the chunker's expression {self.pattern!r:.60}, character {self.at}: {reason}")

    def peek(self) -> str:
        return self.pattern[self.at : self.at + 1]

    def take(self) -> str:
        self.at += 1
        return self.pattern[self.at - 1 : self.at]

    def whole(self) -> _Net:
        start = self.net.new()
        self.net.end = self.alternatives(start, 0)
        if self.peek():
            raise self.refuse("a ) without a (")
        return self.net

    def alternatives(self, start: int, depth: int) -> int:
        if depth > 20:
            raise self.refuse("groups nested more than 20 deep")
        ends = [self.sequence(start, depth)]
        while self.peek() == "|":
            self.take()
            ends.append(self.sequence(start, depth))
        end = self.net.new()
        for each in ends:
            self.net.free[each].append(end)
        return end

    def sequence(self, start: int, depth: int) -> int:
        while self.peek() not in ("", "|", ")"):
            start = self.repeated(start, depth)
        return start

    def repeated(self, start: int, depth: int) -> int:
        """An atom with its quantifier: the atom is parsed again for every repetition."""
        begin, before = self.at, start
        start = self.net.new()  # of its own: a repetition comes back to it, and to nothing else
        self.net.free[before].append(start)
        end = self.atom(start, depth)
        least, most = self.quantifier()
        after, passed = self.at, [start]

        def again(origin: int) -> int:
            self.at = begin
            return self.atom(origin, depth)

        if (least, most) == (1, 1):
            return end
        copies = [end]
        for _ in range(max(least, most or 0, 1) - 1):
            copies.append(again(copies[-1]))
        passed += copies
        last = self.net.new()
        if most is None:
            self.net.free[passed[-1]].append(passed[-2])
        for number in range(least, len(passed)):
            self.net.free[passed[number]].append(last)
        self.at = after
        return last

    def quantifier(self) -> tuple[int, int | None]:
        simple = {"?": (0, 1), "*": (0, None), "+": (1, None)}.get(self.peek() or " ")
        if simple:
            self.take()
            least, most = simple
        elif self.peek() == "{":
            close = self.pattern.find("}", self.at)
            low, comma, high = self.pattern[self.at + 1 : close].partition(",") if close > 0 else ("", "", "")
            if not low.isascii() or not low.isdigit() or not (high == "" or (high.isascii() and high.isdigit())):
                raise self.refuse("{ without a number of repetitions; \\{ is the character")
            least, most = int(low[:4]), (int(high[:4]) if high else None) if comma else int(low[:4])
            if max(least, most or 0) > MOST_REPEATS or (most is not None and most < max(least, 1)):
                raise self.refuse(f"repetitions must be at most {MOST_REPEATS}, the larger number last")
            self.at = close + 1
        else:
            return 1, 1
        if self.peek() and self.peek() in "?*+{":
            raise self.refuse("two quantifiers in a row")
        return least, most

    def atom(self, start: int, depth: int) -> int:
        char = self.take()
        if char == "(":
            if self.peek() == "?":
                if self.pattern[self.at : self.at + 2] != "?:":
                    raise self.refuse("lookarounds and flags have no table; (?:...) groups")
                self.at += 2
            end = self.alternatives(start, depth + 1)
            if self.take() != ")":
                raise self.refuse("a ( without a )")
            return end
        if char in "?*+{":
            raise self.refuse(f"{char} has nothing to repeat")
        if char in "^$":
            raise self.refuse(f"{char} is not known; \\{char} is the character")
        if char == "[":
            return self.read(start, self.set_of_bytes())
        if char == ".":
            return self.read(start, EVERY - NEWLINE)
        if char == "\\":
            return self.read(start, self.escaped())
        if "\ud800" <= char <= "\udfff":
            raise self.refuse("half of a surrogate pair is no character")
        for byte in char.encode():
            start = self.read(start, frozenset([byte]))
        return start

    def read(self, start: int, accepted: Bytes) -> int:
        end = self.net.new()
        self.net.reads[start].append((accepted, end))
        return end

    def escaped(self) -> Bytes:
        char = self.take()
        if char in CLASSES:
            return CLASSES[char]
        if char in ESCAPES:
            return frozenset([ESCAPES[char]])
        if char == "x":
            digits = self.take() + self.take()
            try:
                return frozenset(bytes.fromhex(digits))
            except ValueError:
                raise self.refuse("\\x needs two hexadecimal digits") from None
        if not char or not char.isascii() or char.isalnum():
            raise self.refuse(f"\\{char} is not known")
        return frozenset(char.encode())

    def member(self) -> Bytes:
        """One entry of a set; of a character outside of ASCII there is no byte."""
        char = self.take()
        if not char:
            raise self.refuse("a [ without a ]")
        if char == "\\":
            return self.escaped()
        if not char.isascii():
            raise self.refuse(f"a set is one of bytes, and {char!r} has several; use (?:...|...)")
        return frozenset(char.encode())

    def set_of_bytes(self) -> Bytes:
        negated = self.peek() == "^"
        if negated:
            self.take()
        found: set[int] = set()
        first = True
        while first or self.peek() != "]":  # a ] that comes first is a member
            low, first = self.member(), False
            if self.peek() == "-" and self.pattern[self.at + 1 : self.at + 2] not in ("]", ""):
                self.take()
                low = self._range(low, self.member())
            found |= low
        self.take()
        return EVERY - found if negated else frozenset(found)

    def _range(self, low: Bytes, high: Bytes) -> Bytes:
        if len(low) != 1 or len(high) != 1 or min(low) > min(high):
            raise self.refuse("a range of a set goes from one byte to a later one")
        return frozenset(range(min(low), min(high) + 1))


# -- vocabularies ------------------------------------------------------------------------------------------------------


def byte_letters() -> list[str]:
    """The character that stands for each byte in a byte-level vocabulary: itself where it can be printed."""
    printed = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = iter(range(256, 512))
    return [chr(byte if byte in printed else next(others)) for byte in range(256)]


@lru_cache(maxsize=16)
def of_tokens(text: str) -> Automaton:
    """`of_vocabulary` of tokens in byte letters, set apart by spaces. Raises ValueError for any other character."""
    byte_of = {letter: byte for byte, letter in enumerate(byte_letters())}
    if strange := set(text) - {" ", *byte_of}:
        raise ValueError(f"chunker.tokens has {min(strange)!r}, which stands for no byte")
    return of_vocabulary([bytes(map(byte_of.__getitem__, token)) for token in text.split(" ")])


def of_vocabulary(tokens: Sequence[bytes]) -> Automaton:
    """The rule that a chunk goes on as long as its bytes begin some token, and the next byte begins another one.

    These are the borders of longest matches, as far as they are known without reading ahead: what a tokenizer merges
    depends on bytes to come. Every byte may begin a chunk. Raises ValueError for too many tokens.
    """
    children: list[dict[int, int]] = [{}]
    for token in [*(bytes([byte]) for byte in range(256)), *tokens]:
        node = 0
        for byte in token:
            if byte not in children[node]:
                if len(children) >= MOST_STATES:
                    raise ValueError(f"the chunker's vocabulary needs over {MOST_STATES:,} states: take a smaller one")
                children[node][byte] = len(children)
                children.append({})
            node = children[node][byte]
    root = np.array([children[0][byte] for byte in range(256)], np.int32)
    following = np.tile(root, (len(children), 1))
    boundary = np.ones((len(children), 256), bool)
    for node, inside in enumerate(children[1:], 1):
        read = list(inside)
        following[node, read] = list(inside.values())
        boundary[node, read] = False
    return Automaton(following, boundary)
