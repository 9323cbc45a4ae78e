"""Rows of prompt and completion answered: the share whose greedy continuation is the completion, to the byte.

A row is right if the model, given the prompt, writes the completion and then ends. Greedy decoding takes the most
likely legal byte each time, as `hnet sample --temperature 0` does; the legal ones are the modality's. Beside it stands
the share of rows of which every byte is the most likely one given the true bytes before it: the same rows, where rules
and rounding decide nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from hnet_cli.errors import UsageError
from hnet_cli.evaluation.resampling import share_interval
from hnet_cli.inference.continuations import loglikelihoods
from hnet_cli.inference.generate import BATCH, Grammar, generate
from hnet_cli.inference.windows import BOS
from hnet_cli.modality import Automaton, Document, Modality
from hnet_cli.model import HNetForCausalLM
from hnet_cli.model.config import EOS

MOST_ROWS = 1000
"""Rows that are answered unless more are asked for."""
SHOWN, SHOWN_CHARACTERS = 10, 500
"""Wrong rows that are told, and characters of each of their texts."""
END = bytes([EOS])


class Row(NamedTuple):
    """A prompt and its completion, as the model reads them."""

    name: str
    prompt: bytes
    completion: bytes


def rows_of(documents: Sequence[Document], table: bytes | None = None, most: int | None = None) -> list[Row]:
    """The rows among documents as they are stored, `most` of them spread evenly; `table` as `Modality.input_table`.

    Raises UsageError where there is none.
    """
    whole = [each for each in documents if each.offset <= 0 and each.data.endswith(END)]
    if not whole:
        hint = "give a dataset of such rows, or their file with --prompt-field and --completion-field"
        raise UsageError("--exact is of rows of prompt and completion, and there are none", hint)
    wanted = min(len(whole), most or MOST_ROWS)
    chosen = [whole[number * len(whole) // wanted] for number in range(wanted)]
    return [
        Row(each.name, each.data[: -each.offset].translate(table), each.data[-each.offset : -1].translate(table))
        for each in chosen
    ]


def answers(
    model: HNetForCausalLM,
    rows: Sequence[Row],
    modality: Modality | None = None,
    update: Callable[[int], None] = lambda done: None,
) -> list[bytes]:
    """The greedy continuation of each prompt, up to where it ends; of one that does not, a little more than the longest
    completion in its batch has bytes. `update` gets the number of rows done."""
    automaton = modality.automaton() if modality else Automaton.of_alphabet(bytes(range(EOS)))
    beyond = Grammar(automaton).longest + 1
    found = [b""] * len(rows)
    order = sorted(range(len(rows)), key=lambda at: len(rows[at].completion))
    for low in range(0, len(order), BATCH):
        batch = order[low : low + BATCH]
        written = [bytearray() for _ in batch]
        most = len(rows[batch[-1]].completion) + beyond
        prompts = [rows[at].prompt for at in batch]
        for byte in generate(model, prompts, max_bytes=most, temperature=0, automaton=automaton, eos=EOS):
            written[byte.row].append(byte.byte)
        for at, own in zip(batch, written, strict=True):
            found[at] = bytes(own)
        update(low + len(batch))
    return found


def figures(
    model: HNetForCausalLM,
    rows: Sequence[Row],
    modality: Modality | None = None,
    update: Callable[[int], None] = lambda done: None,
) -> dict[str, Any]:
    """`hnet eval --exact`: rows, exact and forced (with _ci95, Wilson), `trivial` rules, the first `wrong` rows.

    `trivial`: the share that is right if the answer is always the most common completion of these rows, or the prompt
    without the white space around it. Raises NumericalError, and UsageError for a model of tokens.
    """
    given = answers(model, rows, modality, update)
    right = [answer == row.completion for answer, row in zip(given, rows, strict=True)]
    forced = loglikelihoods(model, [(BOS + row.prompt, row.completion + END) for row in rows])[1]
    common = Counter(row.completion for row in rows).most_common(1)[0][1]
    copied = sum(row.prompt.strip() == row.completion for row in rows)
    wrong = [number for number, is_right in enumerate(right) if not is_right]
    return {
        "rows": len(rows),
        **_share("exact", sum(right), len(rows)),
        **_share("forced", int(forced.sum()), len(rows)),
        "trivial": {"most_common": common / len(rows), "copy": copied / len(rows)},
        "wrong": [
            {
                "name": rows[number].name,
                "prompt": _text(rows[number].prompt, end=True),
                "completion": _text(rows[number].completion),
                "answer": _text(given[number]),
            }
            for number in wrong[:SHOWN]
        ],
    }


def _share(name: str, hits: int, of: int) -> dict[str, Any]:
    return {name: hits / of, f"{name}_ci95": share_interval(hits, of)}


def _text(data: bytes, end: bool = False) -> str:
    """The first characters, or those at the `end`."""
    text = data.decode(errors="backslashreplace")
    return text[-SHOWN_CHARACTERS:] if end else text[:SHOWN_CHARACTERS]
