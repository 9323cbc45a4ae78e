"""Rules of every command: help, exit codes, one line per error, data on standard output only."""

import json
import os
import resource
import shutil
from pathlib import Path

import pytest
from clikit import check_mistake, child, hnet, limit

from hnet_cli.checkpoints.find import newest
from hnet_cli.cli.app import app, run


@pytest.mark.parametrize(
    ("line", "code", "message"),
    [
        ("trian", 2, "Did you mean 'train'?"),
    ],
)
def test_a_mistake_is_one_line_and_a_code(home, capsys, line, code, message):
    check_mistake(home, capsys, line, code, message)


@pytest.mark.parametrize("command", [[], *([c.name or c.callback.__name__] for c in app.registered_commands)])
def test_help(command, capsys):
    assert run([*command, "--help"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith(f"Usage: {' '.join(['hnet', *command])}")
    assert err == ""


@pytest.mark.parametrize(
    ("command", "usage"),
    [
        ("segment", "FILE..."),
        ("eval", "[MODEL] [MODEL2] [FILE...]"),
        ("convert", "SRC DST"),
        ("presets", "[NAME]"),
        ("doctor", ""),
    ],
)
def test_arguments_have_the_placeholders_that_were_given_them(capsys, command, usage):
    assert run([command, "--help"]) == 0
    assert capsys.readouterr().out.splitlines()[0] == f"Usage: hnet {command} [OPTIONS] {usage}".rstrip()


def test_no_summary_is_cut_off(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert run(["--help"]) == 0
    assert "..." not in capsys.readouterr().out.partition("Commands:")[2]


def test_the_version(capsys):
    assert hnet("--version") == 0
    assert capsys.readouterr().out.startswith("hnet 0.")


def test_hnet_alone_shows_its_help(capsys):
    assert run([]) == 2
    out, err = capsys.readouterr()
    assert (out, err.splitlines()[0]) == ("", "Usage: hnet [OPTIONS] COMMAND [ARGS]...")


def test_verbose_shows_where_an_error_came_from(home, capsys):
    assert hnet("-v sample nowhere") == 3
    err = capsys.readouterr().err
    assert "Traceback" in err
    assert err.splitlines()[-1].startswith("hnet: there is no model at nowhere")
    assert hnet("sample nowhere") == 3
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.slow
def test_names_cannot_steer_the_terminal(own, capsys):
    """A file name, a key, a model's name with escape sequences."""
    evil = "evil\x1b[2J\x07.txt"
    shutil.copy("file.txt", evil)
    Path("evil.yaml").write_text('"tr\\e[2Jain": 1\n')
    lines = [
        ["prepare", evil],
        ["prepare", evil],
        ["segment", evil, "--model", "runs/fox", "--format", "jsonl"],
        ["sample", f"no{evil}"],
        ["train", "--preset", "evil.yaml"],
        ["segment", f"no{evil}"],
        ["train", "--preset", "tiny.yaml", "--data", f"data/{evil[:-4]}"],
    ]
    assert [run(line) for line in lines] == [0, 73, 0, 3, 2, 3, 0]
    out, err = capsys.readouterr()
    assert not {"\x1b", "\x07"} & set(out + err)
    assert "evil\\x1b[2J" in err


@pytest.mark.parametrize(
    ("line", "keys"),
    [
        (
            "prepare file.txt --out x --json",
            {"path", "modality", "documents", "bytes", "refused", "splits", "baselines"},
        ),
        ("train --preset tiny.yaml --data data/file --run y --json", {"run", "steps", "seconds", "val_bpb"}),
        (
            "train --preset tiny.yaml --data data/file --dry-run --json",
            {"parameters", "flops_per_byte", "memory_needed", "memory_free", "fits", "seconds", "epochs"},
        ),
        ("sample runs/fox --max-bytes 9 --json", {"text"}),
        ("presets --json", {"nano", "2stage-xl"}),
        ("presets nano --json", {"model", "train", "description"}),
        ("sample runs/fox --max-bytes 9 --json --show-chunks", {"text", "boundaries"}),
        ("doctor --json", set()),
    ],
)
def test_programs_can_listen(own, capsys, line, keys):
    assert hnet(line) == 0
    assert keys <= json.loads(capsys.readouterr().out).keys()


@pytest.mark.slow
def test_standard_output_is_for_data(own, capsys):
    assert hnet("prepare file.txt --out x") == 0
    assert hnet("train --preset tiny.yaml --data x --run y") == 0
    out, err = capsys.readouterr()
    assert out == ""
    assert "bits per byte" in err
    assert "hnet sample y" in err
    assert hnet("segment file.txt --model y --stage 0 --format plain") == 0
    assert capsys.readouterr().out.replace("|", "") == Path("file.txt").read_text()
    assert {path.name for path in Path("y").iterdir()} >= {"log.txt", "report.html", "config.yaml", "metrics.jsonl"}
    assert "step 4  saved" in Path("y/log.txt").read_text()


def test_quiet(own, capsys):
    assert hnet("-q prepare file.txt --out x") == 0
    assert hnet("-q train --preset tiny.yaml --data x --run y") == 0
    assert capsys.readouterr() == ("", "")
    assert hnet("-q sample nowhere") == 3
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_the_first_three_commands(own):
    """The README's command on a machine that cannot hold the model (here by its memory limit)."""
    shutil.rmtree(own / "data")
    assert hnet("prepare --modality dna genome.fa") == 0
    too_large = child("train --preset 2stage-xl", preexec_fn=limit(resource.RLIMIT_AS, 4 * 2**30))
    out, err = too_large.communicate()
    assert (too_large.returncode, out) == (69, "")
    assert "no torch" in err  # which is why it answers at once
    said = err.splitlines()[-2]
    assert said.startswith("hnet: 2stage-xl (1.60G parameters) needs about ")
    assert "but cpu (" in said
    assert "presets that fit: " in said
    assert "nano-dna" in said
    assert not (own / "runs/genome-2stage-xl").exists()
    assert hnet("segment file.txt") == 0


def test_defaults_are_said(own, capsys):
    os.utime("data/genome/dataset.json")
    assert hnet("train --device cpu --set train.sequence_length=1000000 --set train.batch_bytes=1000000") == 3
    err = capsys.readouterr().err
    assert "Data: data/genome (prepared " in err
    assert "Preset: nano-dna (the default for dna on cpu)" in err
    assert "Run: runs/genome-nano-dna" in err
    assert hnet("sample --max-bytes 1") == 0
    assert "Model: runs/fox" in capsys.readouterr().err
    assert hnet("segment file.txt") == 0
    assert "Model: runs/fox (text by the look of file.txt; finished " in " ".join(capsys.readouterr().err.split())


def test_a_damaged_model_is_named(own, capsys):
    file = newest(own / "runs/fox") / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    for line in (["sample", str(file.parent)], ["segment", "file.txt", "--model", str(file.parent)]):
        assert run(line) == 4
        assert "model.safetensors is damaged" in capsys.readouterr().err
