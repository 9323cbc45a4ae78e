"""Continuing prompts byte by byte: the function behind `hnet sample`.

What is legal comes from the modality's automaton, so that what is printed is always valid; what is likely comes from
the model.
"""

from __future__ import annotations

import base64
import codecs
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import torch

from hnet_cli.errors import NumericalError, UsageError
from hnet_cli.inference import render
from hnet_cli.inference.waiting import Ready, paces
from hnet_cli.inference.windows import BOS
from hnet_cli.modality import Automaton, Modality
from hnet_cli.model import HNetForCausalLM

EOS = 255
"""What official checkpoints write at the end of a document; models trained here never do."""
BATCH = 64
"""Rows that are continued at once."""


class Sampled(NamedTuple):
    """One byte of one row."""

    row: int
    byte: int
    depth: int
    """At how many stages, from the outermost, this byte begins a chunk; 0 inside a chunk."""


@dataclass(frozen=True)
class Choice:
    """How the next byte is drawn. Raises UsageError for values that mean nothing."""

    temperature: float = 1.0
    """0 takes the most likely byte always."""
    top_k: int | None = None
    """Only the k most likely bytes, of equals the first."""
    top_p: float | None = None
    """Only the most likely bytes that together have this probability."""

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise UsageError(f"--temperature must be 0 or more, not {self.temperature}")
        if self.top_k is not None and self.top_k < 1:
            raise UsageError(f"--top-k must be at least 1, not {self.top_k}")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise UsageError(f"--top-p must be above 0 and at most 1, not {self.top_p}")

    def __call__(self, logits: np.ndarray, uniform: np.ndarray) -> np.ndarray:
        """logits (B, V) float64, -inf where illegal; uniform (B,) in [0, 1) -> bytes (B,) int64."""
        if self.temperature == 0:
            return logits.argmax(1)
        p = logits - logits.max(1, keepdims=True)
        if self.temperature != 1:
            p /= self.temperature
        if self.top_k is not None and self.top_k < p.shape[1]:
            np.put_along_axis(p, np.argsort(-p, 1, kind="stable")[:, self.top_k :], -np.inf, 1)
        np.exp(p, out=p)
        if self.top_p is not None and self.top_p < 1:
            p[~self._nucleus(p)] = 0
        cumulative = p.cumsum(1)
        drawn = (cumulative > uniform[:, None] * cumulative[:, -1:]).argmax(1)
        missed = p[np.arange(len(p)), drawn] == 0  # by rounding, or none is above
        if missed.any():
            drawn[missed] = p[missed].argmax(1)
        return drawn

    def _nucleus(self, p: np.ndarray) -> np.ndarray:
        """Which bytes are kept, (B, V) bool: most likely first and of equals the first, while those before have less
        than top_p."""
        ranked = -np.sort(-p, axis=1)
        before = ranked.cumsum(1) - ranked
        many = np.maximum(1, (before < self.top_p * ranked.sum(1, keepdims=True)).sum(1))
        kept = p >= ranked[np.arange(len(p)), many - 1][:, None]
        for row in np.flatnonzero(kept.sum(1) > many):
            kept[row] = False
            kept[row, np.argsort(-p[row], kind="stable")[: many[row]]] = True
        return kept


class Grammar:
    """An automaton as tables, and how far each state is from where output may end."""

    NEVER = 1 << 40

    def __init__(self, automaton: Automaton) -> None:
        self.automaton = automaton
        self.next = np.array(automaton.transitions, dtype=np.int64)  # (states, 256)
        states = len(self.next)
        self.distance = np.full(states + 1, self.NEVER, dtype=np.int64)  # the last is for -1: illegal
        self.distance[sorted(automaton.accepting)] = 0
        for _ in range(states):
            self.distance[:states] = np.minimum(self.distance[:states], self.distance[self.next].min(1) + 1)
        self.accepting = self.distance[:states] == 0
        self.longest = self.distance[self.distance < self.NEVER].max()
        self.free = self.distance[self.next] < self.NEVER

    def after(self, prompt: bytes) -> int:
        """The state after a prompt. Raises UsageError naming the first byte that is illegal."""
        state = self.automaton.start
        for at, byte in enumerate(prompt):
            state = self.automaton.transitions[state][byte]
            if state < 0:
                raise UsageError(
                    f"the prompt is not valid for this model's modality: byte {at} is 0x{byte:02x}",
                    "correct the prompt, or sample without rules with --raw",
                )
        return state

    def legal(self, states: np.ndarray, remaining: np.ndarray | int) -> np.ndarray:
        """states (B,) -> (B, 256) bool: the bytes that may come next when `remaining` (B,) are left. Inside a unit only
        those with which it can be finished in time. A new unit may begin with any byte: without those that are too long
        for the rest, Chinese would end in stray ASCII; instead the row ends where one is chosen."""
        if np.min(remaining) > self.longest:
            return self.free[states]
        left: np.ndarray = self.distance[self.next[states]]
        limit = np.where(self.accepting[states], self.NEVER - 1, remaining - 1)
        return np.less_equal(left, limit[:, None])


def generate(
    model: HNetForCausalLM,
    prompts: Sequence[bytes],
    *,
    max_bytes: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
    automaton: Automaton | None = None,
    input_table: bytes | None = None,
    eos: int | None = None,
    first_row: int = 0,
) -> Iterator[Sampled]:
    """Continue each prompt by at most `max_bytes` bytes; each comes as soon as the model has read it.

    With an automaton every row ends in an accepting state: a row that would have to break off inside a unit (such as a
    character) ends before it. `eos` ends a row where it is drawn at an accepting state, and is not given out.
    `input_table` as in `Modality`. Rows are interleaved; they are numbered from `first_row` and draw from (seed, row),
    so that a row does not depend on the others.
    Raises UsageError for a prompt that is illegal, at once; NumericalError where the model gives no finite logits.
    """
    if model.tokenizer is not None:
        raise UsageError("a model of tokens cannot be sampled from byte by byte", "it is there to be compared with")
    choice = Choice(temperature, top_k, top_p)
    if max_bytes < 1:
        raise UsageError(f"--max-bytes must be at least 1, not {max_bytes}")
    grammar = Grammar(automaton or Automaton.of_alphabet(bytes(range(256))))
    read = [prompt.translate(input_table) for prompt in prompts]
    states = np.array([grammar.after(prompt) for prompt in read], dtype=np.int64)
    parts = [slice(low, low + BATCH) for low in range(0, len(read), BATCH)]
    return chain.from_iterable(
        _generate(model, read[part], states[part], max_bytes, choice, seed, grammar, eos, first_row + part.start)
        for part in parts
    )


def _generate(
    model: HNetForCausalLM,
    prompts: Sequence[bytes],
    states: np.ndarray,
    max_bytes: int,
    choice: Choice,
    seed: int,
    grammar: Grammar,
    eos: int | None,
    first_row: int,
) -> Iterator[Sampled]:
    rows = np.arange(first_row, first_row + len(prompts))
    going = grammar.distance[states] <= max_bytes
    rows, states = rows[going], states[going]
    random = [np.random.default_rng([seed, row]) for row in rows.tolist()]
    if not len(rows):
        return
    kept = [BOS + prompt for prompt, goes in zip(prompts, going.tolist(), strict=True) if goes]
    memory = model.allocate_state(len(kept), max(map(len, kept)) + max_bytes)
    ready = Ready(list(range(len(kept))), model.prefill(kept, memory), [])
    left, last = np.full(len(kept), max_bytes), np.zeros(len(kept), dtype=np.int64)
    pace = paces(model, memory)
    while ready.rows:
        at, scores = np.array(ready.rows), ready.logits[:, :256].cpu().double().numpy()
        if not np.isfinite(scores).all():
            raise NumericalError("the model gives logits that are not finite", "its weights are damaged or overflow")
        legal = grammar.legal(states[at], left[at])[:, : scores.shape[1]]
        if eos is not None:
            legal[:, eos] |= grammar.accepting[states[at]]
        possible = np.asarray(legal.any(1)) & (left[at] > 0)
        uniform = np.array([random[row].random() for row in at.tolist()])
        if not legal.all():
            scores = np.where(legal | ~possible[:, None], scores, -np.inf)
        chosen = choice(scores, uniform)
        after = grammar.next[states[at], chosen]
        going = np.logical_and(possible, grammar.distance[after] < left[at])
        if eos is not None:
            going &= chosen != eos
        at = at[going]
        states[at], last[at] = after[going], chosen[going]
        left[at] -= 1
        ready = pace.feed(at.tolist(), torch.from_numpy(last[at]))
        done = np.array(ready.rows, dtype=np.int64)
        yield from map(Sampled, rows[done].tolist(), last[done].tolist(), ready.depth)


# -- what people and programs see --------------------------------------------------------------------------------------


class Printer:
    """Turns bytes into text as they come: whole characters only, nothing that a terminal would obey.

    With `chunks`, the first character of every chunk is preceded by `render.SEPARATOR`, once per stage, or chunks have
    coloured backgrounds. A chunk that begins inside a character is shown from the next one on.
    """

    def __init__(self, modality: Modality | None = None, chunks: bool = False, colour: bool = False) -> None:
        self.display = (modality or Modality()).display
        self.chunks, self.colour = chunks, colour
        self.decoder = codecs.getincrementaldecoder("utf-8")("backslashreplace")
        self.depth = self.later = self.hue = 0

    def prompt(self, data: bytes) -> str:
        """The prompt as text, without marks; a character that it ends inside is shown with what completes it."""
        return self.display(self.decoder.decode(data).encode())

    def feed(self, byte: int, depth: int = 0) -> str:
        """The text that `byte` completes, "" inside a character."""
        if self.decoder.getstate()[0]:
            self.later = max(self.later, depth)
        else:
            self.depth = max(self.depth, depth)
        return self._show(self.decoder.decode(bytes([byte])))

    def finish(self) -> str:
        """What is left of a character that never became complete."""
        return self._show(self.decoder.decode(b"", True))

    def _show(self, text: str) -> str:
        if not text:
            return ""
        text, depth = self.display(text.encode()), self.depth
        self.depth, self.later = self.later, 0
        if not self.chunks:
            return text
        self.hue += depth > 0
        return render.paint(text, self.hue) if self.colour else render.SEPARATOR * depth + text


def sample(
    model: HNetForCausalLM,
    prompts: Sequence[bytes],
    modality: Modality | None = None,
    *,
    n: int = 1,
    show_chunks: bool = False,
    colour: bool = False,
    **options: Any,
) -> Iterator[str]:
    """Pieces of text for a terminal: every prompt with its continuation, `n` times, numbered if there are several.

    A single continuation comes byte by byte, several come one after the other when they are ready. `options` as for
    `generate`; without a modality any byte is legal, and those that are no text are shown as \\xff.
    """
    rows = [prompt for prompt in prompts for _ in range(n)]
    rules = {"automaton": modality.automaton(), "input_table": modality.input_table} if modality else {}
    sampled = generate(model, rows, **(rules | options))
    if len(rows) == 1:
        printer = Printer(modality, show_chunks, colour)
        yield printer.prompt(rows[0])
        yield from (text for each in sampled if (text := printer.feed(each.byte, each.depth)))
        yield printer.finish() + "\n"
        return
    printers = [Printer(modality, show_chunks, colour) for _ in rows]
    texts = [printer.prompt(prompt) for printer, prompt in zip(printers, rows, strict=True)]
    for each in sampled:
        texts[each.row] += printers[each.row].feed(each.byte, each.depth)
    for row, (printer, text) in enumerate(zip(printers, texts, strict=True)):
        yield f"==> {row + 1} of {len(rows)} <==\n{text}{printer.finish()}\n"


def sample_bytes(model: HNetForCausalLM, prompts: Sequence[bytes], *, n: int = 1, **options: Any) -> Iterator[bytes]:
    """`hnet sample --raw`: prompts and continuations as they are, one row after the other, any byte legal."""
    rows = [prompt for prompt in prompts for _ in range(n)]
    for row, prompt in enumerate(rows):
        sampled = generate(model, [prompt], first_row=row, **options)
        yield prompt
        yield from (bytes([each.byte]) for each in sampled)


def sample_records(
    model: HNetForCausalLM, prompts: Sequence[bytes], modality: Modality | None = None, *, n: int = 1,
    show_chunks: bool = False, **options: Any,
) -> Iterator[dict[str, Any]]:  # fmt: skip
    """`hnet sample --json`: a record per row. "prompt" and "text" are strings where the bytes are UTF-8, else
    "prompt_bytes" and "bytes" hold them in base64. "bytes_per_chunk" has a number per stage, null without chunks;
    with `show_chunks` "boundaries" has a list per stage: the bytes of the continuation, from 0, that begin a chunk."""
    rows = [prompt for prompt in prompts for _ in range(n)]
    rules = {"automaton": modality.automaton(), "input_table": modality.input_table} if modality else {}
    sampled: list[list[Sampled]] = [[] for _ in rows]
    for each in generate(model, rows, **(rules | options)):
        sampled[each.row].append(each)
    for row, (prompt, own) in enumerate(zip(rows, sampled, strict=True)):
        data = bytes(each.byte for each in own)
        stages = range(model.config.num_stages)
        begun = [[at for at, each in enumerate(own) if each.depth > stage] for stage in stages]
        yield {
            **_text(prompt, "prompt", "prompt_bytes"),
            **_text(data, "text", "bytes"),
            "row": row,
            "seed": options.get("seed", 0),
            "length": len(data),
            "bytes_per_chunk": [round(len(data) / len(starts), 4) if starts else None for starts in begun],
            **({"boundaries": begun} if show_chunks else {}),
        }


def _text(data: bytes, name: str, name_of_bytes: str) -> dict[str, str]:
    try:
        return {name: data.decode()}
    except UnicodeDecodeError:
        return {name_of_bytes: base64.b64encode(data).decode()}
