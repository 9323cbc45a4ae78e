"""Tokens of byte-level BPE, for the Transformer that byte models are compared with. No torch in here.

A tokenizer is one `tokenizer.json` of the library `tokenizers`: trained on a dataset, or given (GPT-2's, Llama 3's).
Every byte string has tokens, and they decode to exactly it: what is valid UTF-8 goes through the tokenizer, any other
byte becomes the token of that byte.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import numpy as np

from hnet_cli import storage
from hnet_cli.config.run import bpe_of, ids_of
from hnet_cli.config.sources import Sources, words
from hnet_cli.data.dataset import Dataset
from hnet_cli.data.loader import Batch, shuffled
from hnet_cli.data.mixture import Mixture
from hnet_cli.errors import DamagedError, EnvironmentLimit, HNetError, InputError, UsageError
from hnet_cli.model.automaton import byte_letters
from hnet_cli.storage import shown
from hnet_cli.storage.reading import json_object
from hnet_cli.storage.reading import reason as short

FILE = "tokenizer.json"
SAMPLE_PER_ID, MOST_SAMPLE, PIECE = 1 << 11, 1 << 26, 1 << 16
"""Bytes that a vocabulary is learned from per id, in all at most, and in one stretch of the training split."""
LEAST_PIECE, FEWEST_PIECES = 256, 256
"""Bytes of a stretch at least, and stretches, where the number of bytes is given."""
LONGEST_WORD = 64
"""Characters at which text without spaces, such as DNA, is cut to learn from."""
_STRAY = re.compile("[\udc80-\udcff]+")  # bytes that are not UTF-8, decoded with `surrogateescape`
_LONG_WORD = re.compile(rf"\S{{{LONGEST_WORD + 1},}}")


def _library() -> Any:
    try:
        import tokenizers
    except ImportError as error:
        raise EnvironmentLimit(
            "a model of tokens needs the package tokenizers", "pip install 'hnet-cli[bpe]', or pip install tokenizers"
        ) from error
    return tokenizers


class Tokenizer:
    """A byte-level BPE that loses nothing."""

    def __init__(self, text: str, where: str | Path = FILE) -> None:
        """`text`: the content of a tokenizer.json. Raises InputError, naming `where`, for what is no byte-level BPE or
        changes the text, EnvironmentLimit without the library."""
        self.text = text
        """Content of the file as it is stored beside a model."""
        try:
            data = json_object(text.encode(), where)
            vocabulary = _checked(data)
            added = {token["id"]: token["special"] for token in ids_of(data)[0]}
            # special tokens are the model's marks, never something to find in the user's text
            plain = data | {"added_tokens": [], "truncation": None, "padding": None, "post_processor": None}
            self._library = _library().Tokenizer.from_str(json.dumps(plain))
        except EnvironmentLimit:
            raise
        except Exception as error:  # the library raises Exception itself
            reason = (
                short(error)
                if isinstance(error, ValueError | KeyError | TypeError | DamagedError)
                else "it cannot be read"
            )
            raise InputError(
                f"{shown(where)} is not a byte-level BPE that keeps every byte: {reason}",
                "give a tokenizer.json such as GPT-2's or Llama 3's, or bpe:4096",
            ) from error
        byte_of = {letter: byte for byte, letter in enumerate(byte_letters())}
        self._bytes = [b""] * (max([*vocabulary.values(), *added]) + 1)
        written = _written(data["model"], vocabulary)
        for token, number in vocabulary.items():
            if (token in written or number not in added) and byte_of.keys() >= set(token):
                self._bytes[number] = bytes(byte_of[letter] for letter in token)
        self._of_byte = np.array([vocabulary[letter] for letter in byte_letters()], np.int64)
        marks = [number for number, special in added.items() if special]
        self.bos = next((number for number in marks if not self._bytes[number]), len(self._bytes))
        """The mark before a sequence: the file's first special token, but for those that text can become; one id more
        than it has where it has none."""
        if marks and self.bos == len(self._bytes):
            reason = "its special tokens are all ordinary text too, so that no mark is left for the start"
            raise InputError(f"{where} cannot be used: {reason}", "give another tokenizer.json, or bpe:4096")
        self.size = max(len(self._bytes), self.bos + 1)
        """Ids are below this."""
        self.lengths = np.array([len(token) for token in self._bytes] + [0] * (self.size - len(self._bytes)), np.int64)
        """(size,): bytes of each token; 0 for marks."""

    def encode(self, sequences: Sequence[bytes]) -> list[np.ndarray]:
        """The tokens of each sequence, (n,) int64, all in one call of the library."""
        parts: list[tuple[int, str, bool]] = []
        for i, data in enumerate(sequences):
            text, start = data.decode("utf-8", errors="surrogateescape"), 0
            for match in _STRAY.finditer(text):
                parts += [(i, text[start : match.start()], False), (i, match[0], True)]
                start = match.end()
            parts.append((i, text[start:], False))
        encoded = iter(
            self._library.encode_batch_fast([text for _, text, stray in parts if not stray], add_special_tokens=False)
        )
        tokens_of: list[list[np.ndarray]] = [[] for _ in sequences]
        for i, text, stray in parts:
            if stray:
                tokens = self._of_byte[np.frombuffer(text.encode("utf-8", errors="surrogateescape"), np.uint8)]
            else:
                tokens = np.array(next(encoded).ids, np.int64)
            tokens_of[i].append(tokens)
        return [np.concatenate(arrays) for arrays in tokens_of]

    def decode(self, tokens: Iterable[int]) -> bytes:
        """The bytes of tokens; a mark has none."""
        return b"".join(self._bytes[token] for token in tokens if token < len(self._bytes))


def _checked(data: Any) -> dict[str, int]:
    """The vocabulary of a parsed tokenizer.json. Raises ValueError, KeyError, TypeError where it could lose a byte."""
    model = data["model"]
    if model["type"] != "BPE":
        raise ValueError(f"its model is {model['type']}")
    normalizer = data.get("normalizer")
    if normalizer is not None and normalizer != {"type": "Sequence", "normalizers": []}:
        raise ValueError(f"its normalizer ({normalizer.get('type')}) changes the text")
    before = data.get("pre_tokenizer") or {}
    steps = before.get("pretokenizers", []) if before.get("type") == "Sequence" else [before]
    kinds = [step.get("type") for step in steps]
    if kinds[-1:] != ["ByteLevel"] or not set(kinds[:-1]) <= {"Split", "Digits"}:
        raise ValueError(f"its pre-tokenizer is {', '.join(map(str, kinds))}, not ByteLevel once and last")
    if any(step.get("add_prefix_space") for step in steps):
        raise ValueError("it adds a space in front")
    if any(step.get("behavior") == "Removed" for step in steps):
        raise ValueError("its pre-tokenizer removes text")
    for step in steps:
        pattern = step.get("pattern", {}).get("Regex", "")
        if not is_tame(pattern):
            raise ValueError(f"its pattern could take forever on some text: {pattern[:60]!a}")
    if model.get("dropout") or model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
        raise ValueError("its tokens depend on chance or on their place in a word")
    vocabulary: dict[str, int] = model["vocab"]
    missing = [byte for byte, letter in enumerate(byte_letters()) if letter not in vocabulary]
    if missing:
        raise ValueError(f"{len(missing)} bytes have no token")
    if len(set(vocabulary.values())) < len(vocabulary):
        raise ValueError("two of its tokens have one id")
    return vocabulary


def _written(model: dict[str, Any], vocabulary: dict[str, int]) -> set[str]:
    """The tokens that text can become, though the file may call some of them special: each byte, and what is merged;
    with `ignore_merges` whatever is in the vocabulary."""
    if model.get("ignore_merges"):
        return set(vocabulary)
    merges = (merge.split(" ") if isinstance(merge, str) else merge for merge in model.get("merges") or ())
    return {*byte_letters(), *("".join(merge) for merge in merges)}


_PART = re.compile(
    r"""\\[pPxug]\{[^}]*\} | \\. | \[ (?:\\. | \[:\w+:\] | [^\]\\])+ \]   # a character or a class of them
    | (?P<open>\((?:\?(?::|[imsx]+:|[imsx]+\)|=|!))?) | (?P<close>\)) | (?P<bar>\|)
    | (?P<repeat>[*+?]|\{\d*,?\d*\}) [+?]? | .""",
    re.VERBOSE | re.DOTALL,
)
LONGEST_PATTERN = 4000
MOST_OPTIONAL = 6
MOST_TIMES = 9
"""A part that is repeated more often than this counts as one that is repeated without end."""


def is_tame(pattern: Any) -> bool:
    """True if a pattern of a pre-tokenizer takes at most the square of a text's length: the library tries all ways to
    match. No group is repeated; of the parts that follow each other at most two are, and few are optional.
    So are all published ones."""
    if not isinstance(pattern, str) or len(pattern) > LONGEST_PATTERN or re.search(r"\\[1-9k]|\(\?<", pattern):
        return False
    endless, optional, after_group = 0, 0, False
    for part in _PART.finditer(pattern):
        if times := part["repeat"]:
            most = {"?": "1", "*": "", "+": ""}.get(times, times.strip("{}").rpartition(",")[2])
            many = not most or int(most[:9]) > 1
            if after_group and many:
                return False
            endless += not most or int(most[:9]) > MOST_TIMES
            optional += not times.startswith("+")
        elif part["bar"]:
            endless = optional = 0
        if endless > 2 or optional > MOST_OPTIONAL:
            return False
        after_group = part["close"] is not None
    return True


# -- origins of a tokenizer --------------------------------------------------------------------------------------------


def of_run(run: Path, setting: str, data: Mixture | Dataset) -> Tokenizer:
    """The tokenizer of a run: of its newest checkpoint with an undamaged one, else of the run folder, else as set.

    Raises UsageError or InputError.
    """
    for folder in sorted((run / "checkpoints").glob("step-*"), reverse=True):
        with contextlib.suppress(HNetError, KeyError):
            storage.verify_file(folder, FILE, storage.read_manifest(folder)["files"][FILE])
            return of_setting(str(folder / FILE), data)
    if (run / "config.yaml").exists() and (run / FILE).exists():
        return of_setting(str(run / FILE), data)
    return of_setting(setting, data)


def of_model(folder: Path, vocabulary: int) -> Tokenizer:
    """The tokenizer of a model folder whose model has `vocabulary` ids. Raises DamagedError."""
    file = folder / FILE
    try:
        tokenizer = Tokenizer(storage.read_text(file, storage.TOKENIZER), file)
        check_size(tokenizer, vocabulary)
        return tokenizer
    except FileNotFoundError as error:
        raise DamagedError(f"{shown(folder)} has no {FILE}", "the folder is not a complete model") from error
    except (InputError, UsageError) as error:
        raise DamagedError(f"{shown(file)} cannot be used: {error}") from error


def of_setting(setting: str, data: Mixture | Dataset) -> Tokenizer:
    """The tokenizer that `tokenizer:` of a configuration means: "bpe:4096" learned from the data, else a file.

    Raises UsageError or InputError.
    """
    if (found := bpe_of(setting)) is not None:
        return learned(data, *found)
    try:
        return Tokenizer(storage.read_text(setting, storage.TOKENIZER), setting)
    except (OSError, DamagedError) as error:
        raise UsageError(f"cannot read the tokenizer {shown(setting)}: {error}") from error


@lru_cache(maxsize=4)
def _learned(sources: Sources, key: str, size: int, nbytes: int | None) -> Tokenizer:
    mixture, most, piece = Mixture.open(sources), min(MOST_SAMPLE, SAMPLE_PER_ID * size), PIECE
    if nbytes is not None:  # few bytes of many documents, as training reads them
        most, piece = nbytes, min(PIECE, max(LEAST_PIECE, nbytes // FEWEST_PIECES))
    if mixture.key != key:
        raise InputError(f"{words(sources)} was made anew while it was in use", "run the command again")
    parts = zip(mixture.datasets, mixture.shares, strict=True)
    samples = (_sample(dataset, max(1, int(share * most)), piece) for dataset, share in parts)
    return Tokenizer(learn(chain.from_iterable(samples), size))


def learned(data: Mixture | Dataset, size: int, nbytes: int | None = None) -> Tokenizer:
    """The byte-level BPE of at most `size` ids, with the mark, learned from about `nbytes` of the training split, by
    default `SAMPLE_PER_ID` for each; of a mixture, from as much of each source as its share says. Deterministic."""
    mixture = Mixture.of(data)
    return _learned(mixture.sources, mixture.key, size, nbytes)


def _sample(dataset: Dataset, most: int, piece: int = PIECE) -> Iterator[bytes]:
    """The training split as a model reads it, in stretches of `piece` bytes at most; shuffled, and `most` bytes, if it
    is larger than that."""
    ranges = dataset.ranges("train")
    counts = -(-ranges[:, 2] // piece)
    ends, total = np.cumsum(counts), int(counts.sum())
    whole, left = dataset.nbytes("train") <= most, most
    for number in range(total):
        place = number if whole else int(shuffled(np.array([number]), total, "tokenizer")[0])
        row = int(np.searchsorted(ends, place, side="right"))
        document, begin, length = ranges[row].tolist()
        start = piece * (place - int(ends[row] - counts[row]))
        at = int(dataset.table[document, 0]) + begin + start
        stored = dataset.shards.read(at, at + min(piece, length - start, left))
        yield dataset.translate(np.frombuffer(stored, np.uint8)).tobytes()
        left -= len(stored)
        if not left:
            break


def learn(sequences: Iterable[bytes], size: int) -> str:
    """The tokenizer.json of a byte-level BPE with at most `size` - 1 tokens; words are separated as GPT-2 does."""
    library = _library()

    def texts() -> Iterator[str]:
        for data in sequences:
            for text in _STRAY.split(data.decode("utf-8", errors="surrogateescape")):
                start = 0
                for word in _LONG_WORD.finditer(text):
                    yield text[start : word.start()]
                    yield from (word[0][i : i + LONGEST_WORD] for i in range(0, len(word[0]), LONGEST_WORD))
                    start = word.end()
                yield text[start:]

    tokenizer = library.Tokenizer(library.models.BPE())
    tokenizer.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = library.decoders.ByteLevel()
    alphabet = library.pre_tokenizers.ByteLevel.alphabet()
    trainer = library.trainers.BpeTrainer(vocab_size=size - 1, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(texts(), trainer)
    text: str = tokenizer.to_str(pretty=True)
    return text


def check_size(tokenizer: Tokenizer, vocabulary: int) -> None:
    """Raise UsageError where a model of `vocabulary` ids has too few for the tokenizer."""
    if tokenizer.size > vocabulary:
        raise UsageError(f"the tokenizer has {tokenizer.size:,} ids, but model.vocab_size is {vocabulary:,}")


# -- batches -----------------------------------------------------------------------------------------------------------


def tokenised(batch: Batch, tokenizer: Tokenizer) -> Batch:
    """The same sequences as tokens, each after the tokenizer's mark. A token's weight is the mean of its bytes'; as in
    scoring, none has bytes that count and bytes of weight 0.

    `offsets` stay those of bytes; `inputs`, `targets` and `lengths` are (T,) int64.
    """
    data, edges = batch.targets.tobytes(), batch.cu_seqlens
    if batch.weights is not None:
        edges = np.union1d(edges, np.flatnonzero(np.diff(batch.weights > 0)) + 1)
    parts = tokenizer.encode([data[a:b] for a, b in pairwise(edges.tolist())])
    targets = np.concatenate(parts)
    ends = np.cumsum([0, *map(len, parts)])
    cu_seqlens = ends[np.searchsorted(edges, batch.cu_seqlens)].astype(np.int32)
    inputs = np.empty_like(targets)
    inputs[1:] = targets[:-1]
    inputs[cu_seqlens[:-1]] = tokenizer.bos
    weights, lengths = batch.weights, tokenizer.lengths[targets]
    if weights is not None:
        weights = (np.add.reduceat(weights, np.cumsum(lengths) - lengths) / lengths).astype(np.float32)
    return Batch(inputs, targets, weights, cu_seqlens, batch.documents, batch.offsets, lengths)
