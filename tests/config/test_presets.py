"""The presets that ship: every name there ever was, resolved to what it was."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from hnet_cli.config.presets import line_up, preset, preset_data, preset_names, shipped
from hnet_cli.config.run import resolve, to_data, to_yaml
from hnet_cli.config.train import TrainConfig

OFFICIAL = Path(__file__).parents[1] / "golden/parity/official_keys"

RECORDED = json.loads((Path(__file__).parents[1] / "data/presets.json").read_text())
"""Settings by dotted key of the 66 presets of the first release: all of nano, of the others what differs from it.
Since then `micro_batches` of small and base is `auto`, the main network of nano learns more slowly, and nano,
nano-chinese and nano-code have attention over bytes."""


def flat(data, prefix=""):
    for key, value in data.items():
        yield from flat(value, f"{prefix}{key}.") if isinstance(value, dict) else [(prefix + key, value)]


@pytest.mark.parametrize("name", RECORDED)
def test_a_preset_resolves_to_what_was_recorded(name):
    recorded = RECORDED["nano"] | RECORDED[name]
    resolved = json.loads(json.dumps(dict(flat(to_data(resolve(name))))))
    assert {key: resolved.get(key) for key in recorded} == recorded
    new = {key.removeprefix("train."): value for key, value in resolved.items() if key not in recorded}
    new = {key: value for key, value in new.items() if key not in ("description", "source", "name")}
    assert new == {key: getattr(TrainConfig(), key, None) for key in new}  # settings added since then


def test_all_names_are_there():
    assert len(RECORDED) == 66
    assert set(RECORDED) | {"small-chinese", "base-chinese"} == set(preset_names())


@pytest.mark.parametrize("name", preset_names())
def test_a_preset_resolves_says_what_it_is_and_survives_being_saved(name, tmp_path):
    config = resolve(name)
    assert config.name == name
    assert config.description
    assert config.source
    file = tmp_path / "config.yaml"
    file.write_text(to_yaml(config))
    assert resolve(str(file)) == config


@pytest.mark.parametrize("path", sorted(OFFICIAL.glob("*.json")), ids=lambda path: path.stem)
def test_the_papers_presets_are_the_official_configurations(path):
    official = json.loads(path.read_text())
    config = resolve(path.stem.removeprefix("hnet_").replace("_", "-").lower())
    assert config.model.to_dict() == official["config"]
    assert config.model.num_parameters == official["num_parameters"]
    assert config.train.target_ratios == {1: [6], 2: [3, 3]}[config.model.num_stages]
    assert config.train.ratio_loss_weight == 0.03
    assert config.train.alignment_loss_weight == 0
    assert config.train.batch_bytes == 256 * 8192


def test_the_papers_dna_models_have_its_sizes():
    """Table 5 of the paper: 64M and 66M."""
    assert round(resolve("dna-t15").model.num_parameters / 1e6) == 64
    assert round(resolve("dna-m15").model.num_parameters / 1e6) == 66


@pytest.mark.parametrize("name", ["2stage-xl", "nano-dna", "llamabyte-nano", "transformer-2x-l", "base-dna"])
def test_the_text_of_a_preset_can_be_edited_extended_and_used(tmp_path, name):
    (tmp_path / "copy.yaml").write_text(preset(name).text)
    (tmp_path / "child.yaml").write_text(f"extends: {name}\ntrain: {{ seed: 5 }}\n")
    copy, child, config = resolve(str(tmp_path / "copy.yaml")), resolve(str(tmp_path / "child.yaml")), resolve(name)
    assert (copy.name, child.name, child.train.seed) == ("copy", "child", 5)
    assert (copy.model, copy.train) == (config.model, config.train) == (child.model, replace(child.train, seed=0))


def test_a_mistake_is_placed_in_the_file_of_the_preset():
    lines = (Path(__file__).parents[2] / "presets/nano.yaml").read_text().splitlines()
    for key, mark in preset("nano-dna").marks.items():
        file, _, line = mark.partition(":")
        assert file == "presets/nano.yaml"
        assert lines[int(line) - 1].lstrip().startswith(f"{key.rpartition('.')[2]}:")


def test_what_one_trains_comes_first():
    groups = [preset.group for preset in shipped().values()]
    assert next(iter(shipped())) == "nano"
    assert list(dict.fromkeys(groups)) == ["to train", "the paper's", "for hnet retrofit", "line-up"]
    assert set(line_up()["paper"]) < set(line_up()["members"])


@pytest.mark.parametrize("name", ["nano-chinese", "spacebyte-l", "transformer-2x-l"])
def test_sections_without_pydantic(name):
    """benchmarks/gpu.py runs where pydantic is missing."""
    data = preset_data(name)
    assert data["model"]["d_model"] == list(resolve(name).model.d_model)
    data["model"].clear()
    assert preset_data(name)["model"]
