"""Morse code as a modality of `hnet`: dots, dashes, and spaces between letters and words.

    pip install ./examples/hnet-morse
    hnet prepare --modality morse messages.txt

The whole contract is in `hnet_cli/modality.py`; `hnet doctor` checks that a plugin keeps it.
"""

from __future__ import annotations

from collections.abc import Iterator

from hnet_cli.modality import Automaton, Document, Modality, Refused, Source

ALPHABET = b".- /\n"


class Morse(Modality):
    """Text files of `.`, `-`, `/`, spaces and line ends; anything else is refused."""

    name = "morse"
    summary = "Morse code, written with . - and /"

    def detect(self, name: str, head: bytes) -> float:
        """Likelihood, from 0 to 1, that the first bytes of a file are Morse code."""
        return 0.9 if head and not head.strip(ALPHABET) else 0.0

    def documents(self, source: Source) -> Iterator[Document | Refused]:
        """One document per file."""
        with source.open() as stream:
            data = stream.read()
        if data and not data.strip(ALPHABET):
            yield Document(data, source.name, source.name, source.group)
        else:
            yield Refused("not Morse", source.name, len(data))

    def automaton(self) -> Automaton:
        """The bytes that sampling may write."""
        return Automaton.of_alphabet(ALPHABET)
