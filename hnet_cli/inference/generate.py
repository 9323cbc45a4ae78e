"""Continuing prompts byte by byte: the function behind `hnet sample`.

What is legal comes from the modality's automaton, so that what is printed is always valid; what is likely comes from
the model.
"""

from __future__ import annotations

import base64
import codecs
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from inspect import signature
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from hnet_cli.errors import NumericalError, UsageError
from hnet_cli.inference import render
from hnet_cli.inference.scoring import batch_bytes_of
from hnet_cli.inference.thresholds import UNCHANGED, Compression
from hnet_cli.inference.waiting import Ready, paces
from hnet_cli.inference.windows import BOS, own_modality
from hnet_cli.kernels.packing import send
from hnet_cli.kernels.reference import exact, pick
from hnet_cli.modality import Automaton, Modality
from hnet_cli.model import HNetForCausalLM
from hnet_cli.model.config import EOS
from hnet_cli.model.state import GenerationState

BATCH = 64
"""Rows that are continued at once."""
TYPICAL_ROWS, TYPICAL_BYTES = 16, 4096
"""Continuations and their bytes in all from which it is seen how a model cuts what it writes."""
DRAWS = 64
"""Random numbers that are made, and brought to a device, at once for a row."""


class Sampled(NamedTuple):
    """One byte of one row."""

    row: int
    byte: int
    depth: int
    """At how many stages, from the outermost, this byte begins a chunk; 0 inside a chunk."""


@dataclass(frozen=True)
class Choice:
    """Rules for drawing the next byte. Raises UsageError for values that mean nothing."""

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

    def __call__(self, logits: Tensor, uniform: Tensor) -> Tensor:
        """logits (B, V) float64, -inf where illegal; uniform (B,) float64 in [0, 1) -> bytes (B,) int64.

        Any byte of a row that has no logit above -inf, or one that is not a number.
        """
        if self.temperature == 0:
            return logits.argmax(1)
        if self.temperature != 1:
            logits = (logits - logits.amax(1, keepdim=True)) / self.temperature  # or a small one would overflow
        if self.top_k is not None and self.top_k < logits.shape[1]:
            order = logits.argsort(dim=1, descending=True, stable=True)
            logits = logits.scatter(1, order[:, self.top_k :], -torch.inf)
        p = logits.softmax(1)
        if self.top_p is not None and self.top_p < 1:
            ranked, order = p.sort(dim=1, descending=True, stable=True)
            cumulative = ranked.cumsum(1)
            enough = cumulative - ranked >= self.top_p * cumulative[:, -1:]
            p = p.scatter(1, order[:, 1:], ranked.masked_fill(enough, 0)[:, 1:])
        cumulative = p.cumsum(1)
        drawn = torch.searchsorted(cumulative, uniform[:, None] * cumulative[:, -1:], right=True)[:, 0]
        return drawn.clamp_(max=p.shape[1] - 1)


class Grammar:
    """An automaton as tables, and how far each state is from where output may end.

    They are on a device, or where that has no float64 on the CPU.
    """

    NEVER = 1 << 40

    def __init__(self, automaton: Automaton, device: torch.device | str = "cpu") -> None:
        self.automaton = automaton
        device = device if exact(torch.device(device)) == torch.float64 else "cpu"
        following = np.array(automaton.transitions, dtype=np.int64)  # (states, 256)
        states = len(following)
        distance = np.full(states + 1, self.NEVER, dtype=np.int64)  # the last is for -1: illegal
        distance[sorted(automaton.accepting)] = 0
        for _ in range(states):
            distance[:states] = np.minimum(distance[:states], distance[following].min(1) + 1)
        self.distance: list[int] = distance.tolist()
        self.longest = max(each for each in self.distance if each < self.NEVER)
        self.next, self.left = (torch.from_numpy(each).to(device) for each in (following, distance[following]))
        """(states, 256): where a byte leads, -1 if it is illegal, and how far it is from there."""
        self.accepting = torch.from_numpy(distance[:states] == 0).to(device)
        self.free = self.left < self.NEVER
        self.anything = bool((distance[following] < self.NEVER).all())

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

    def legal(self, states: Tensor, remaining: Tensor, least: int) -> Tensor:
        """states (B,) -> (B, 256) bool: the bytes that may come next when `remaining` (B,) are left, `least` or more.
        Inside a unit only those with which it can be finished in time. A new unit may begin with any byte: without
        those that are too long for the rest, Chinese would end in stray ASCII; instead the row ends where one is
        chosen."""
        if least > self.longest:
            return self.free[states]
        limit = torch.where(self.accepting[states], self.NEVER - 1, remaining - 1)
        return self.left[states] <= limit[:, None]


class Chooser:
    """The next byte of every row, chosen where the logits are; of a step the host reads the bytes and nothing else.

    On a device without float64 the logits are read instead.
    """

    def __init__(
        self,
        choice: Choice,
        grammar: Grammar,
        states: Sequence[int],
        rows: Sequence[int],
        seed: int,
        max_bytes: int,
        eos: int | None,
    ) -> None:
        device = grammar.next.device
        self.choice, self.grammar, self.eos, self.device = choice, grammar, eos, device
        self.states, self.left = torch.tensor(states, device=device), torch.full((len(rows),), max_bytes, device=device)
        self.max_bytes, self.chosen = max_bytes, [0] * len(rows)
        """Bytes of each row so far, on the host."""
        self.random = [np.random.default_rng([seed, row]) for row in rows]
        self.uniform = torch.zeros(len(rows), DRAWS, dtype=torch.float64, device=device)
        self.going: tuple[list[int], Tensor | None] = (list(range(len(rows))), None)
        """Rows of the last step, and the same on the device; None: all."""

    @torch.inference_mode()
    def __call__(self, rows: list[int], logits: Tensor) -> tuple[list[int], list[int], Tensor]:
        """logits (R, V) of these rows, ascending -> the rows that go on, their bytes, and these on the device, (R',).

        Raises NumericalError where logits are not finite.
        """
        if rows != self.going[0]:
            self.going = rows, torch.tensor(rows, device=self.device) if len(rows) < len(self.chosen) else None
        index = self.going[1]
        scores = logits[:, :256].to(self.device).double()
        broken = scores.sum(1) * 0  # not-a-number in place of the byte
        states, left = pick(self.states, index), pick(self.left, index)
        if not self.grammar.anything:
            legal = self.grammar.legal(states, left, self.max_bytes - max(self.chosen[row] for row in rows))
            legal = legal[:, : scores.shape[1]]
            if self.eos is not None:
                legal[:, self.eos] |= self.grammar.accepting[states]
            scores = scores.masked_fill(~legal, -torch.inf)
        drawn = self.choice(scores, self._draw(rows, index))
        going = self.grammar.left[states, drawn] < left
        if self.eos is not None:
            going &= drawn != self.eos
        after = self.grammar.next[states, drawn]
        if index is None:
            self.states, self.left = after, left - 1
        else:
            self.states[index], self.left[index] = after, left - 1
        found = (torch.where(going, drawn, -1) + broken).tolist()
        if any(map(math.isnan, found)):
            raise NumericalError("the model gives logits that are not finite", "its weights are damaged or overflow")
        kept = [at for at, byte in enumerate(found) if byte >= 0]
        for row in rows:
            self.chosen[row] += 1
        if len(kept) < len(rows):
            drawn = drawn[torch.tensor(kept, dtype=torch.int64, device=self.device)]
        return [rows[at] for at in kept], [int(found[at]) for at in kept], drawn

    def _draw(self, rows: list[int], index: Tensor | None) -> Tensor:
        """The next random number of each row, (R,), made for many steps at once."""
        columns = [self.chosen[row] % DRAWS for row in rows]
        empty = [row for row, column in zip(rows, columns, strict=True) if not column]
        if empty:
            fresh = torch.from_numpy(np.stack([self.random[row].random(DRAWS) for row in empty]))
            self.uniform[torch.tensor(empty, device=self.device)] = send(fresh, self.device)
        if min(columns) == max(columns):
            return pick(self.uniform[:, columns[0]], index)
        return self.uniform[torch.tensor([rows, columns], device=self.device).unbind()]


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
    if seed < 0:
        raise UsageError(f"--seed must be 0 or more, not {seed}")
    if max_bytes < 1:
        raise UsageError(f"--max-bytes must be at least 1, not {max_bytes}")
    device = model.embeddings.weight.device
    grammar = Grammar(automaton or Automaton.of_alphabet(bytes(range(256))), device)
    read = [prompt.translate(input_table) for prompt in prompts]
    states = [grammar.after(prompt) for prompt in read]
    parts = [slice(low, low + BATCH) for low in range(0, len(read), BATCH)]
    return chain.from_iterable(
        _generate(model, read[part], states[part], max_bytes, choice, seed, grammar, eos, first_row + part.start)
        for part in parts
    )


def _generate(
    model: HNetForCausalLM,
    prompts: Sequence[bytes],
    states: Sequence[int],
    max_bytes: int,
    choice: Choice,
    seed: int,
    grammar: Grammar,
    eos: int | None,
    first_row: int,
) -> Iterator[Sampled]:
    going = [at for at, state in enumerate(states) if grammar.distance[state] <= max_bytes]
    if not going:
        return
    rows, kept = [first_row + at for at in going], [BOS + prompts[at] for at in going]
    memory, logits = read_prompts(model, kept, max(map(len, kept)) + max_bytes)
    ready = Ready(list(range(len(kept))), logits, [])
    chooser = Chooser(choice, grammar, [states[at] for at in going], rows, seed, max_bytes, eos)
    pace, last = paces(model, memory), [0] * len(kept)
    while ready.rows:
        fed, data, tokens = chooser(ready.rows, ready.logits)
        for row, byte in zip(fed, data, strict=True):
            last[row] = byte
        ready = pace.feed(fed, tokens)
        yield from (Sampled(rows[row], last[row], deep) for row, deep in zip(ready.rows, ready.depth, strict=True))


@torch.inference_mode()
def read_prompts(model: HNetForCausalLM, prompts: Sequence[bytes], max_length: int) -> tuple[GenerationState, Tensor]:
    """The state after the prompts, a row each, and the logits (B, V) of what comes next.

    Equal prompts are read once, long ones in blocks: what a pass needs grows neither with their number nor with their
    length. Autocast does not apply, as in `prefill`.
    """
    distinct = {prompt: row for row, prompt in enumerate(dict.fromkeys(prompts))}
    texts = list(distinct)
    block, longest = max(1, batch_bytes_of(model) // len(texts)), max(map(len, texts))
    logits = model.lm_head.weight.new_zeros(len(texts), model.config.vocab_size)
    with torch.autocast(logits.device.type, enabled=False):
        state = model.allocate_state(len(texts), max_length)
        if longest <= block:
            logits = model.prefill(texts, state)
        else:
            for low in range(0, longest, block):
                now = [text[low : low + block] for text in texts]
                table = model.extend(now, state).logits
                ends = torch.tensor([len(part) for part in now if part], device=table.device).cumsum(0)
                logits[[row for row, part in enumerate(now) if part]] = table[ends - 1]
    if len(texts) < len(prompts):
        places = [distinct[prompt] for prompt in prompts]
        state.select(places)
        logits = logits[places]
    return state, logits


def typical(model: HNetForCausalLM, prompt: bytes, modality: Modality | None = None, raw: bool = False) -> list[bytes]:
    """Documents, as the model reads them, such as a prompt begins: the prompt itself if it has `TYPICAL_BYTES`, else
    with continuations drawn from the model, the same every time; `raw`: without the modality's rules."""
    table = modality.input_table if modality else None
    read = prompt.translate(table)
    if len(read) >= TYPICAL_BYTES:
        return [read]
    texts = [bytearray(read) for _ in range(TYPICAL_ROWS)]
    most, automaton = TYPICAL_BYTES // TYPICAL_ROWS, modality.automaton() if modality and not raw else None
    for each in generate(model, [prompt] * TYPICAL_ROWS, max_bytes=most, automaton=automaton, input_table=table):
        texts[each.row].append(each.byte)
    return list(map(bytes, texts))


def continuations(
    model: HNetForCausalLM,
    prompt: bytes,
    n: int = 1,
    compression: Compression = UNCHANGED,
    *,
    max_bytes: int = 256,
    temperature: float = 0.8,
    **options: Any,
) -> list[bytes]:
    """`n` continuations of a prompt, valid for the modality that the model's configuration names, if it does.

    `options` as for `generate`; `compression` holds for this call. Raises UsageError, NumericalError.
    """
    known = signature(generate).parameters.keys() - {"model", "prompts", "eos"}
    if unknown := sorted(options.keys() - known):
        raise UsageError(f"sample has no option {unknown[0]!r}", "see `hnet sample --help`")
    modality = own_modality(model)
    rules = {"automaton": modality.automaton(), "input_table": modality.input_table} if modality else {}
    rows = [bytearray() for _ in range(n)]
    with compression.used(model, lambda: typical(model, prompt, modality)):
        for each in generate(
            model, [prompt] * n, max_bytes=max_bytes, temperature=temperature, eos=EOS, **(rules | options)
        ):
            rows[each.row].append(each.byte)
    return list(map(bytes, rows))


# -- what people and programs see --------------------------------------------------------------------------------------


class Printer:
    r"""Turns bytes into text as they come: whole characters only, nothing that a terminal would obey, \r\n as \n.

    With `chunks`, the first character of every chunk is preceded by `render.SEPARATOR`, once per stage, or chunks have
    coloured backgrounds. A chunk that begins inside a character is shown from the next one on.
    """

    def __init__(self, modality: Modality | None = None, chunks: bool = False, colour: bool = False) -> None:
        self.display = (modality or Modality()).display
        self.chunks, self.colour = chunks, colour
        self.decoder = codecs.getincrementaldecoder("utf-8")("backslashreplace")
        self.depth = self.later = self.hue = 0
        self.returned = False
        """The last character was a carriage return, which waits for the next one: with a line feed it is a line end."""

    def prompt(self, data: bytes) -> str:
        """The prompt as text, without marks; a character that it ends inside is shown with what completes it."""
        return self._shown(self.decoder.decode(data))

    def feed(self, byte: int, depth: int = 0) -> str:
        """The text that `byte` completes, "" inside a character."""
        if self.decoder.getstate()[0]:
            self.later = max(self.later, depth)
        else:
            self.depth = max(self.depth, depth)
        return self._show(self.decoder.decode(bytes([byte])))

    def finish(self) -> str:
        """The rest of a character that never became complete."""
        return self._show(self.decoder.decode(b"", True), last=True)

    def _shown(self, text: str, last: bool = False) -> str:
        text = "\r" * self.returned + text
        self.returned = text.endswith("\r") and not last
        text = text.removesuffix("\r") if self.returned else text
        return self.display(text.replace("\r\n", "\n").encode())

    def _show(self, text: str, last: bool = False) -> str:
        text, depth = self._shown(text, last), self.depth
        if not text:
            return ""
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
    model: HNetForCausalLM,
    prompts: Sequence[bytes],
    modality: Modality | None = None,
    *,
    n: int = 1,
    show_chunks: bool = False,
    **options: Any,
) -> Iterator[dict[str, Any]]:
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
