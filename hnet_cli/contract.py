"""Check that a modality keeps the contract of `hnet_cli.modality`: for `hnet doctor` and for plugin authors' tests.

    from hnet_cli.contract import check_modality
    assert check_modality(Morse()) == []

No torch in here.
"""

from __future__ import annotations

from typing import Any

from hnet_cli.config.presets import preset_names
from hnet_cli.modality import Document, Modality, Refused, Source

_SAMPLES = (
    b"",
    b"hello world\n",
    b">a\nACGTACGTACGT\n",
    "\u4e2d\u6587\uff0c\u4f60\u597d\u3002".encode(),
    b"\0\xff\x80\x1b[31m",
)


def check_modality(plugin: Any) -> list[str]:
    """Violations of the contract of `hnet_cli.modality`, one line each; empty for a modality that keeps it.

    Tiny inputs of several kinds are tried; each must give documents or refusals with a reason, never raise.
    """
    if not isinstance(plugin, Modality):
        return ["is not a hnet_cli.modality.Modality"]
    problems: list[str] = []
    for check in (_check_description, _check_documents, _check_automaton, _check_display):
        try:
            problems += check(plugin)
        except Exception as error:
            problems.append(f"{check.__name__.removeprefix('_check_')}: {type(error).__name__}: {error}")
    return problems


def _check_description(plugin: Modality) -> list[str]:
    problems = []
    for field in ("name", "summary"):
        value = getattr(plugin, field, None)
        if not isinstance(value, str) or not value or "\n" in value:
            problems.append(f"{field} must be one line of text, not {value!r}")
    if missing := {"nano", "small", "base"} - plugin.presets.keys():
        problems.append(f"presets lacks {', '.join(sorted(missing))}")
    for size_name, preset in plugin.presets.items():
        if preset not in preset_names() and not preset.endswith((".yaml", ".yml")):
            problems.append(f"presets[{size_name!r}] names no preset: {preset!r}")
    table = plugin.input_table
    if table is not None and (not isinstance(table, bytes) or len(table) != 256):
        problems.append("input_table must be None or 256 bytes")
    weights = plugin.loss_weights
    if weights is not None and (len(weights) != 256 or not all(0 < w < float("inf") for w in weights)):
        problems.append("loss_weights must be None or 256 finite numbers above 0")
    return problems


def _check_documents(plugin: Modality) -> list[str]:
    problems = []
    for sample in _SAMPLES:
        shown = repr(sample[:20])
        score = plugin.detect("x", sample)
        if not 0 <= score <= 1:
            problems.append(f"detect gave {score!r} for {shown}: it must be between 0 and 1")
        items = list(plugin.documents(Source.of_bytes(sample, "x")))
        if sample and not items:
            problems.append(f"documents gave nothing for {shown}: neither a document nor a reason")
        for item in items:
            if isinstance(item, Refused):
                if not item.reason:
                    problems.append(f"documents refused {shown} without a reason")
            elif not isinstance(item, Document):
                problems.append(f"documents gave a {type(item).__name__}: it must be a Document or Refused")
            elif not isinstance(item.data, bytes) or not item.data:
                problems.append(f"documents gave a Document without bytes for {shown}")
            elif not 0 <= plugin.cut(item.data, len(item.data) // 2) <= len(item.data) // 2:
                problems.append("cut must give a position from 0 to `near`")
    return problems


def _check_automaton(plugin: Modality) -> list[str]:
    automaton = plugin.automaton()
    states = range(len(automaton.transitions))
    if any(len(row) != 256 for row in automaton.transitions):
        return ["automaton: every state needs 256 transitions"]
    if any(state != -1 and state not in states for row in automaton.transitions for state in row):
        return ["automaton: a transition leads to a state that does not exist"]
    if automaton.start not in states or not automaton.accepting <= set(states):
        return ["automaton: start and accepting states must exist"]
    ahead = {state: {to for to in automaton.transitions[state] if to >= 0} for state in states}
    reached, front = {automaton.start}, {automaton.start}
    while front := {to for state in front for to in ahead[state]} - reached:
        reached |= front
    alive = set(automaton.accepting)
    while more := {state for state in states if ahead[state] & alive} - alive:
        alive |= more
    if not reached <= alive:
        return ["automaton: from some state no accepting state can be reached, so output could never end"]
    return []


def _check_display(plugin: Modality) -> list[str]:
    for sample in _SAMPLES:
        text = plugin.display(sample)
        if any((ord(char) < 32 and char not in "\n\t") or 127 <= ord(char) < 160 for char in text):
            return [f"display gave control characters for {sample[:20]!r}: they can take over a terminal"]
        for kind, edges in plugin.reference_edges(sample).items():
            if list(edges) != sorted(set(edges)) or any(not 0 <= edge <= len(sample) for edge in edges):
                return [f"reference_edges[{kind!r}] must ascend and stay inside the data"]
    return []
