"""`hnet presets`: what one trains comes first, and everything printed can be used."""

import json

from clikit import check_mistake

from hnet_cli.cli.app import run
from hnet_cli.config.run import resolve


def test_what_one_trains_stands_before_the_papers_and_the_line_up(capsys):
    assert run(["presets"]) == 0
    words = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    order = [words.index(name) for name in ("nano", "nano-dna", "small", "base", "2stage-xl", "retrofit", "llamabyte")]
    assert order == sorted(order)
    assert "llamabyte-nano" not in words


def test_one_is_printed_as_yaml_that_can_be_used(capsys, tmp_path):
    for name in ("nano", "nano-dna", "space-xl"):
        assert run(["presets", name]) == 0
        file = tmp_path / f"{name}.yaml"
        file.write_text(capsys.readouterr().out)
        assert resolve(str(file)) == resolve(name)


def test_every_name_is_in_the_json(capsys):
    assert run(["presets", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert len(listed) == 68
    assert listed["dna-mamba-nano"]["parameters"] == resolve("dna-mamba-nano").model.num_parameters


def test_a_mistake_is_one_line_and_a_code(home, capsys):
    check_mistake(home, capsys, "presets nanno", 2, "did you mean 'nano'?")
    check_mistake(home, capsys, "train --preset nano --set train.lr=true", 2, "train.lr must be a number")
