"""Rows of prompt and completion: files and datasets of them."""

import json
from pathlib import Path

from runkit import dataset

from hnet_cli.data.dataset import Dataset

WORDS = ("walk", "talk", "jump", "play", "cook", "open", "call", "turn", "look", "help", "work", "ask", "lift", "pick")
PAIRS = [
    (f"{word} {person}\n", f"{person} {word}ed")
    for word in WORDS
    for person in ("I", "you", "she", "we", "they", "Zoë", "the old man", "one of them")
]
"""(prompt, completion): 112 of about 24 bytes."""


def rows_file(file: Path, pairs=PAIRS) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps({"prompt": p, "completion": c}) + "\n" for p, c in pairs))
    return file


def rows_dataset(folder: Path, pairs=PAIRS) -> Dataset:
    """A dataset of rows; a tenth of them is held out. There are enough bytes for any pairs."""
    filler = [(f"{'many words ' * 12}{number}\n", "x") for number in range(20)] if len(pairs) < 100 else []
    return Dataset.open(dataset(folder, rows_file(folder / "rows.jsonl", [*pairs, *filler])))
