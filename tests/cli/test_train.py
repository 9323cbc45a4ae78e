"""`hnet train` as people and programs meet it: plans, resuming, signals, full disks."""

import json
import os
import re
import resource
import shlex
import shutil
import signal
import subprocess
import threading
from pathlib import Path

import pytest
from clikit import check_mistake, child, hnet, wait_for
from rowkit import rows_file

from hnet_cli.checkpoints.find import newest
from hnet_cli.cli.app import run
from hnet_cli.storage import FolderLock


@pytest.mark.parametrize(
    ("line", "code", "message"),
    [
        ("train --foo", 2, "see hnet train --help"),
        ("train --preset nanno", 2, "did you mean 'nano'?"),
        ("train --preset nowhere.yaml", 2, "nowhere.yaml does not exist"),
        ("train --preset bad.yaml", 2, "bad.yaml:2: unknown key 'stepz'"),
        ("train --set lr", 2, "section.key=value"),
        ("train --set train.stepz=1", 2, "'steps'"),
        ("train --data nowhere", 3, "nowhere does not exist"),
        ("train --data genome.fa", 3, "`hnet prepare` makes a dataset of it"),
        ("train --data runs", 3, "no dataset.json"),
        ("train --data data/file:0 --data data/genome:1", 2, "--data data/file:0: the weight must be above 0"),
        ("train --data data/file:x --data data/genome:1", 2, "--data data/file:x: the weight must be a number"),
        ("train --data data/file:8 --data data/genome", 2, "gives data/genome no weight"),
        ("train --data data/file:8 --data data/genome:1", 2, "cannot be mixed: a model reads their bytes differently"),
        ("train --data data/file:8 --data data/file:1", 2, "hold the same data"),
        ("train --data data/file:8 --data nowhere:1", 3, "nowhere does not exist"),
        ("train --set data=[a,b]", 2, "data: [{path: a, weight: 8}, {path: b, weight: 1}]"),
        ("train --set train.sequence_length=65536 --set train.batch_bytes=65536", 3, "less than one sequence"),
        ("train --device tpu", 2, "use cpu, cuda"),
        ("train --device mps", 69, "there is no mps"),
        ("train --device cuda:99", 69, "cuda:99"),
        ("train --preset tiny.yaml --run runs/fox", 73, "add --resume"),
        ("train --preset tiny.yaml --run file.txt", 73, "file.txt"),
        ("train --run nowhere --resume", 3, "no run to resume"),
        ("train --preset bad.yaml --strict", 2, "--resume"),
        ("train --preset bad.yaml --strict --dry-run", 2, "--resume"),
        ("train --start starter:klingon", 3, "no starter model is called 'starter:klingon'"),
        ("train --start nowhere", 3, "there is no model at nowhere"),
        (
            "train --preset tiny.yaml --set train.start=gone --run x",
            3,
            "train.start: there is no model at gone (--start",
        ),
        ("train --start genome.fa", 4, "`hnet convert` makes a model of official weights"),
        ("train --start starter:text --run runs/fox --resume", 2, "--start begins a run"),
        ("train --start starter:text --set train.stepz=1", 2, "'steps'"),
    ],
)
def test_a_mistake_is_one_line_and_a_code(home, capsys, line, code, message):
    check_mistake(home, capsys, line, code, message)


def test_a_damaged_dataset_is_named(own, capsys):
    file = own / "data/file/split-train.bin"
    file.write_bytes(b"x" * file.stat().st_size)
    assert hnet("train --preset tiny.yaml --data data/file --run x") == 4
    assert "split-train.bin is damaged" in capsys.readouterr().err
    assert not (own / "x").exists()


DOCUMENTED = re.search(
    r"(?<=^hnet )train --data .*", (Path(__file__).parents[2] / "docs/data.md").read_text(), re.MULTILINE
)


@pytest.mark.slow
def test_the_documented_mixture(own, capsys):
    """Trained, looked at and evaluated: each source, and the whole as their mean."""
    assert DOCUMENTED is not None
    (own / "code").mkdir()
    (own / "code/a.py").write_text("".join(f"def f{n}(x):\n    return x + {n}\n\n" for n in range(400)))
    assert hnet("-q prepare file.txt --out data/books") == 0
    assert hnet("-q prepare code --modality code --out data/code") == 0
    assert hnet(f"{DOCUMENTED[0]} --preset tiny.yaml --run runs/x --set train.samples=false") == 0
    said = capsys.readouterr().err
    assert re.search(
        r"step +2 +validation [\d.]+ bits per byte on [\d,]+ of .*\n +of these books [\d.]+, code [\d.]+\n", said
    )
    assert re.search(r"share of the bytes read +88.9% +11.1%", said)
    assert re.search(r"training split read +[\d.]+% of it +[\d.]+% of it", said)
    assert "What it is trained on" in (own / "runs/x/report.html").read_text()
    assert hnet("runs runs/x") == 0
    assert re.search(r"\nsource +share of the bytes.*\nbooks +88.9%.*\ncode +11.1%", capsys.readouterr().out)
    assert hnet("eval runs/x --json --no-samples --max-bytes 1024") == 0
    result = json.loads(capsys.readouterr().out)
    sources = result["sources"]
    assert [(source["name"], source["modality"]) for source in sources] == [("books", "text"), ("code", "code")]
    assert result["bpb"] == pytest.approx(sum(source["share"] * source["bpb"] for source in sources))
    assert all(source["bytes"] <= 512 and "order_k" in source["baselines"] for source in sources)
    assert hnet("eval runs/x runs/fox --no-samples --max-bytes 1024") == 0
    out = capsys.readouterr().out
    assert re.search(r"bits per byte +share +runs/x +95% +runs/fox +95% +difference +95% +xz +order-k\n", out)
    assert re.search(r"\nall +[\d.]+ ", out)


def test_a_live_run_is_refused(own, capsys):
    with FolderLock(own / "runs/fox"):
        assert hnet("train --preset tiny.yaml --run runs/fox --resume") == 73
    assert f"in use by process {os.getpid()}" in capsys.readouterr().err


def test_a_dry_run_prints_the_plan_and_does_nothing(home, capsys):
    before = sorted(home.rglob("*"))
    assert hnet("train --preset tiny.yaml --data data/file --dry-run") == 0
    out, err = capsys.readouterr()
    assert out == ""
    for part in ("level1.main_network", "FLOPs per byte", "GiB needed", "4 steps", "runs/file-tiny"):
        assert part in err
    assert sorted(home.rglob("*")) == before


@pytest.mark.slow
@pytest.mark.parametrize(("setting", "matters"), [("ratio_loss_weight=0.03", True), ("ratio_loss_weight=0", False)])
def test_what_another_number_of_micro_batches_would_change_is_said(home, capsys, setting, matters):
    micro = "--set train.micro_batches=auto --set train.batch_bytes=65536"
    assert hnet(f"train --preset tiny.yaml --data data/file --dry-run {micro} --set train.{setting}") == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "Micro-batches: 4 of 16.4 kB" in said
    assert ("so another number makes another step" in said) == matters


@pytest.mark.parametrize(
    ("run", "said"),
    [("file.txt", "file.txt is a file"), ("file.txt/new", "file.txt is a file"), ("runs/fox", "already holds a run")],
)
@pytest.mark.parametrize("how", ["--dry-run", "--set train.steps=5"])
def test_a_run_that_has_no_place_is_refused_by_a_dry_run_too(own, capsys, run, said, how):
    Path("file.txt").touch()
    assert hnet(f"train --preset tiny.yaml --data data/file --run {run} {how}") == 73
    assert said in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.slow
def test_a_plan_that_reads_its_data_again_and_again_is_noted(own, capsys):
    """The number of steps that is named is one that is not noted."""
    Path("few.txt").write_text("The quick brown fox.\n" * 100)
    assert hnet("-q prepare few.txt") == 0
    line = "train --preset tiny.yaml --data data/few --set train.batch_bytes=8192 --set train.eval_every=0"
    said = r"note: 5 steps read the 2.1 kB of data (19|20) times; .* train.steps=4\."
    assert hnet(f"{line} --run a --set train.steps=5 --dry-run") == 0
    assert re.search(said, capsys.readouterr().err)
    assert hnet(f"{line} --run a --set train.steps=4") == 0
    assert "note:" not in capsys.readouterr().err
    assert hnet(f"{line} --run b --set train.steps=80000 --minutes 0.05 --dry-run") == 0
    err = capsys.readouterr().err
    assert "note:" not in err  # the time decides, not the steps
    assert 1 <= int(re.search(r"In 0.05 minutes about ([\d,]+) of these steps.", err)[1].replace(",", "")) < 80000


def test_going_on_keeps_the_settings_of_the_run(own, capsys):
    assert hnet("train --preset nano --run runs/fox --resume") == 0
    err = capsys.readouterr().err
    assert "goes on with its own settings, not those of nano: train.steps=4" in err
    assert "its model" in err
    assert hnet("train --run runs/fox --resume --set train.steps=6 --json") == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["steps"] == 6
    assert "Going on from step 4" in err
    assert "note:" not in err


@pytest.mark.slow
def test_resume_alone_goes_on_with_the_newest_run_that_is_not_finished(own, capsys):
    """Whatever dataset and preset the defaults would be: those of another run."""
    os.utime("data/genome/dataset.json")
    shutil.copytree("runs/fox", "runs/later")
    config = Path("runs/fox/config.yaml")
    config.write_text(config.read_text().replace("steps: 4", "steps: 5"))
    os.utime("runs/later/config.yaml")
    assert hnet("train --resume --set train.steps=5") == 0
    err = capsys.readouterr().err
    assert "Run: runs/fox (stopped " in err
    assert "Going on from step 4" in err
    assert "It is finished" not in err
    with FolderLock(Path("runs/later")):  # the one that is running is newer: it is meant, and busy
        later = Path("runs/later/config.yaml")
        later.write_text(later.read_text() + "\n")
        assert hnet("train --resume") == 73
        assert "runs/later" in capsys.readouterr().err
    assert hnet("train --run runs/fox --resume") == 0
    assert "It is finished: all 5 steps are done." in capsys.readouterr().err
    shutil.rmtree("runs")
    assert hnet("train --resume --dry-run --device cpu") == 0  # nothing to go on with: as without --resume
    assert "Run: runs/genome-nano-dna" in capsys.readouterr().err


def test_minutes_end_a_run(own, capsys):
    line = "train --preset tiny.yaml --data data/file --run a --set train.steps=100000 --set train.eval_every=0"
    assert hnet(f"{line} --set train.checkpoint_every=100000 --minutes 0.02 --json") == 0
    assert 1 < json.loads(capsys.readouterr().out)["steps"] < 100_000


@pytest.mark.slow
def test_stopped_by_a_signal(own, capsys):
    line = "train --preset tiny.yaml --data data/file --run a --set train.steps=1000000"
    process = child(line, stderr=subprocess.STDOUT)
    wait_for(own / "a/best")
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate()
    assert process.returncode == 75
    said = next(text for text in out.splitlines() if text.startswith("hnet: "))
    assert said.startswith("hnet: stopped by SIGTERM after step ")
    assert said.endswith("saved in a (go on with: hnet train --run a --resume)")
    page = (own / "a/report.html").read_text()
    assert '<span class="badge stopped">' in page
    assert 'class="life"' not in page  # it is not followed any more
    step = int(newest(own / "a").name.removeprefix("step-"))
    assert f"after step {step} of" in said
    assert run(["train", "--run", "a", "--resume", "--set", f"train.steps={step + 1}"]) == 0
    assert f"Going on from step {step} " in capsys.readouterr().err


@pytest.mark.slow
def test_a_second_ctrl_c(own, capsys):
    """Steps are long here: the first would wait for the end of one. What it raises may be lost in a callback of the
    garbage collector, as the test's own library has one; then a third ends it."""
    ended = threading.Event()

    def interrupt():
        wait_for(own / "a/config.yaml")
        for pause in (0.3, 4, 4):
            os.kill(os.getpid(), signal.SIGINT)
            if ended.wait(pause):
                return

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    user = threading.Thread(target=interrupt)
    user.start()
    code = hnet("train --preset tiny.yaml --data data/file --run a --set train.batch_bytes=65536")
    ended.set()
    user.join()
    signal.signal(signal.SIGINT, before)
    assert code == 130
    assert capsys.readouterr().err.splitlines()[-1] == "hnet: interrupted"
    assert hnet("-q train --run a --resume --set train.batch_bytes=256") == 0


def test_a_full_disk(own, capsys):
    before = newest(own / "runs/fox")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    code = hnet("train --run runs/fox --resume --set train.steps=5")
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert code == 74
    err = capsys.readouterr().err
    assert "runs/fox/checkpoints/step-00000005 needs 1," in err.splitlines()[-1]
    assert "Traceback" not in err
    assert newest(own / "runs/fox") == before
    assert hnet("-q train --run runs/fox --resume") == 0


@pytest.mark.slow
def test_a_run_found_from_another_folder_finds_its_data(own, tmp_path, capsys, monkeypatch):
    """A dataset of the same name in the current folder is not taken for it."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    (elsewhere / "file.txt").write_text("Quite another text, as short as it may be.\n" * 400)
    assert hnet("-q prepare file.txt") == 0
    project = os.path.relpath(own)
    capsys.readouterr()
    assert hnet(f"train --run {project}/runs/fox --resume --set train.steps=6 --json") == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["steps"] == 6
    assert str(own / "data" / "file") in err
    assert hnet(f"eval {own}/runs/fox --max-bytes 500 --json") == 0
    assert str(own) in capsys.readouterr().err
    assert hnet(f"-q train --preset {project}/tiny.yaml --data data/file --run {own}/runs/far") == 0
    monkeypatch.chdir(own)
    assert hnet("eval runs/far --max-bytes 500 --json") == 0
    assert str(elsewhere / "data" / "file") in capsys.readouterr().err
    own.rename(tmp_path / "moved")
    monkeypatch.chdir(tmp_path)
    assert hnet("eval moved/runs/fox --max-bytes 500 --json") == 0
    assert "moved/data/file" in capsys.readouterr().err


@pytest.mark.slow
def test_the_example_of_fine_tuning_runs(tmp_path, monkeypatch, capsys):
    """The commands of docs/fine-tuning.md, on fewer rows and for two steps."""
    monkeypatch.chdir(tmp_path)
    rows_file(tmp_path / "words.jsonl")
    page = (Path(__file__).parents[2] / "docs/fine-tuning.md").read_text(encoding="utf-8")
    block = re.search(r"```sh\n(hnet prepare words\.jsonl.*?)```", page, re.DOTALL)
    assert block is not None
    commands = [shlex.split(line.replace("$'", "'")) for line in block[1].splitlines()]
    fewer = {"train": ["--set", "train.steps=2", "--set", "train.batch_bytes=2048"], "sample": ["--max-bytes", "9"]}
    for _, name, *arguments in commands:
        assert run([name, *arguments, *fewer.get(name, [])]) == 0, capsys.readouterr().err
    out, err = capsys.readouterr()
    assert "answered exactly" in out
    assert "Start: starter:text, its architecture" in err
    assert {command[1] for command in commands} == {"prepare", "train", "eval", "sample"}
