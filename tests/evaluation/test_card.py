"""Published folders: the same model, figures of `hnet eval`, and nothing of the machine that made them."""

import json
import re
from dataclasses import replace

import pytest
from runkit import dataset, tiny
from segmentkit import MODEL, TEXT

import hnet_cli
from hnet_cli import provenance
from hnet_cli.checkpoints.find import find, load
from hnet_cli.config.sources import DataSource
from hnet_cli.errors import BusyError
from hnet_cli.evaluation.card import Card, drawn, publish, text
from hnet_cli.inference.chunk_objects import chunks_of
from hnet_cli.training.loop import train


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("published")
    train(tiny("train.steps=4"), dataset(folder / "data" / "fox"), folder / "runs" / "a")
    return folder / "runs" / "a"


def test_a_folder_that_others_can_use(run, tmp_path, monkeypatch):
    monkeypatch.chdir(run.parents[1])
    target = tmp_path / "my-model"
    data = [str(run.parents[1] / "data" / "fox")]
    figures = publish(str(run), target, Card("mit", ["en"], "me/base"), data=data, max_bytes=3000)
    assert find(target) == target
    model = load(target)
    assert all((model.state_dict()[name] == value).all() for name, value in load(run).state_dict().items())
    card = (target / "README.md").read_text()
    header = card.split("---")[1]
    assert '\nlicense: "mit"\nlanguage: ["en"]\nbase_model: "me/base"\n' in header
    assert f"| bits per byte | {figures['bpb']:.3f}" in card
    assert f"{figures['baselines']['xz']:.3f}" in card
    assert figures["bpb"] == hnet_cli.evaluate(run, data, max_bytes=3000, samples=False)["bpb"]
    assert "![Chunks that it has learned](chunks.svg)" in card
    trained, published = card.partition("## Made with")[2].strip().splitlines()
    assert (
        trained == f"- {provenance.line(json.loads((target / 'config.json').read_text())['hnet']['made']['before'][0])}"
    )
    assert published.startswith("- hnet ")
    for file in ("README.md", "config.json", "chunks.svg", "modeling_hnet.py", "generation_config.json"):
        assert str(run.parents[1]) not in (target / file).read_text()
    config = json.loads((target / "config.json").read_text())
    assert config["auto_map"]["AutoModelForCausalLM"] == "modeling_hnet.HNetForCausalLM"
    with pytest.raises(BusyError):
        publish(str(run), target)


def test_commands_of_the_card_can_be_pasted(run, tmp_path):
    publish(str(run), tmp_path / "my model")
    card = (tmp_path / "my model" / "README.md").read_text()
    assert "hnet segment file.txt --model 'my model' " in card
    assert "`hnet play 'my model'`" in card
    assert 'from_pretrained("my model"' in card


def test_a_model_of_a_mixture_has_figures_on_each_source(tmp_path):
    sources = [DataSource(path=str(dataset(tmp_path / name)), weight=weight) for name, weight in (("a", 3), ("b", 1))]
    train(replace(tiny("train.steps=2", "train.eval_every=0"), data=sources), sources, tmp_path / "run")
    figures = publish(str(tmp_path / "run"), tmp_path / "model", Card("mit"), max_bytes=2000)
    card = (tmp_path / "model" / "README.md").read_text()
    assert f"in their shares: {figures['bpb']:.3f}" in card
    for source in figures["sources"]:
        part = card.partition(f"### {source['name']}")[2]
        assert part.index(f"| bits per byte | {source['bpb']:.3f}") < 400
    assert card.count("| bits per byte |") == 2
    assert str(tmp_path) not in card


def test_a_card_without_figures_or_words(tmp_path):
    assert publish("starter:dna", tmp_path / "dna") == {}
    card = (tmp_path / "dna" / "README.md").read_text()
    assert "license" not in card
    assert "## Figures" not in card
    assert 'tags: ["h-net", "byte-level", "dynamic-chunking", "dna"]' in card


def test_a_card_obeys_nothing_that_the_model_began_with(run, tmp_path):
    made = {
        "hnet": "1",
        "command": "hnet <img src=x>",
        "before": [{"hnet": "0", "command": "a\n# Heading\n<script>"}, 3],
    }
    card = text(load(run), "name", Card(), {}, made, False)
    made_with = card.partition("## Made with")[2].strip().splitlines()
    assert [line[:7] for line in made_with] == ["- hnet "] * 2
    assert "<" not in "".join(made_with)


def test_the_picture_has_every_letter_and_obeys_nothing():
    picture = drawn(chunks_of(MODEL, TEXT.encode()))
    assert "<script" not in picture
    assert "\x1b" not in picture
    letters = "".join(re.findall(r"<text[^>]*>([^<]*)</text>", picture))
    assert "scripting" not in letters
    assert len(re.findall("<rect", picture)) == len(re.findall("<text", picture)) > 5
