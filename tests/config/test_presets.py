"""The presets that ship: every name there ever was, resolved to what it was."""

import json
from pathlib import Path

import pytest

from hnet_cli.config.presets import preset_names
from hnet_cli.config.run import resolve, to_data

RECORDED = json.loads((Path(__file__).parents[1] / "data/presets.json").read_text())
"""Settings by dotted key of the 66 presets of the first release: all of nano, of the others what differs from it."""


def flat(data, prefix=""):
    for key, value in data.items():
        yield from flat(value, f"{prefix}{key}.") if isinstance(value, dict) else [(prefix + key, value)]


@pytest.mark.parametrize("name", RECORDED)
def test_a_preset_resolves_to_what_was_recorded(name):
    recorded = RECORDED["nano"] | RECORDED[name]
    resolved = json.loads(json.dumps(dict(flat(to_data(resolve(name))))))
    assert {key: resolved.get(key) for key in recorded} == recorded


def test_all_names_are_there():
    assert len(RECORDED) == 66
    assert set(RECORDED) == set(preset_names())
