"""The command line as people and programs meet it: exit codes, one line per error, data on standard output only."""

import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from runkit import TINY, fox

from hnet_cli.checkpoints.find import newest
from hnet_cli.cli.app import app, run
from hnet_cli.storage import FolderLock

ROOT = Path(__file__).parents[2]
CHILD = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from hnet_cli.cli.app import run
code = run(sys.argv[1:])
print("torch imported" if "torch" in sys.modules else "no torch", file=sys.stderr)
sys.exit(code)
"""


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A folder with a genome, a text, a dataset of each, and a finished run on the text."""
    home = tmp_path_factory.mktemp("home")
    bases = "".join(random.Random(0).choices("ACGT", k=20_000))
    (home / "genome.fa").write_text(">chr1\n" + "\n".join(bases[i : i + 60] for i in range(0, 20_000, 60)) + "\n")
    (home / "empty.txt").write_text("")
    (home / "tiny.yaml").write_text(TINY)
    fox(home).rename(home / "file.txt")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        patch.delenv("HNET_MODEL", raising=False)
        assert hnet("-q prepare genome.fa") == 0
        assert hnet("-q prepare file.txt") == 0
        assert hnet("-q train --preset tiny.yaml --run runs/fox") == 0
    return home


@pytest.fixture
def home(prepared, monkeypatch):
    """`prepared` as the current folder; not to be written to."""
    monkeypatch.chdir(prepared)
    monkeypatch.delenv("HNET_MODEL", raising=False)
    return prepared


@pytest.fixture
def own(prepared, tmp_path, monkeypatch):
    """A copy of `prepared` as the current folder."""
    shutil.copytree(prepared, tmp_path / "own")
    monkeypatch.chdir(tmp_path / "own")
    monkeypatch.delenv("HNET_MODEL", raising=False)
    return tmp_path / "own"


def hnet(line):
    """The exit code of a command line, run in this process."""
    return run(line.split())


def child(line, **options):
    """`hnet` in a process of its own, on one core and without a GPU."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", CHILD, *line.split()]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, text=True, env=environment, **(pipes | options))


def limit(what, size):
    """For `preexec_fn`: a resource limit of the child."""
    return lambda: resource.setrlimit(what, (size, size))


# -- help --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [[], *([c.name or c.callback.__name__] for c in app.registered_commands)])
def test_help(command, capsys):
    assert run([*command, "--help"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith(f"Usage: {' '.join(['hnet', *command])}")
    assert err == ""


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


# -- errors ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "code", "said"),
    [
        ("trian", 2, "Did you mean 'train'?"),
        ("train --foo", 2, "see hnet train --help"),
        ("train --preset nanno", 2, "did you mean 'nano'?"),
        ("train --preset nowhere.yaml", 2, "nowhere.yaml: No such file"),
        ("train --preset bad.yaml", 2, "bad.yaml:2: unknown key 'stepz'"),
        ("train --set lr", 2, "section.key=value"),
        ("train --set train.stepz=1", 2, "'steps'"),
        ("train --data nowhere", 3, "nowhere does not exist"),
        ("train --data genome.fa", 3, "`hnet prepare` makes a dataset of it"),
        ("train --data runs", 3, "no dataset.json"),
        ("train --set train.sequence_length=65536 --set train.batch_bytes=65536", 3, "less than one sequence"),
        ("train --device tpu", 2, "use cpu, cuda or cuda:N"),
        ("train --device cuda:99", 69, "cuda:99"),
        ("train --preset tiny.yaml --run runs/fox", 73, "add --resume"),
        ("train --preset tiny.yaml --run file.txt", 73, "file.txt"),
        ("train --run nowhere --resume", 3, "no run to resume"),
        ("segment", 2, "FILE..."),
        ("segment nowhere.txt", 3, "nowhere.txt does not exist"),
        ("segment empty.txt --model runs/fox", 3, "empty.txt"),
        ("segment file.txt --model nowhere", 3, "there is no model at nowhere"),
        ("segment file.txt --model data/file", 4, "is not a model"),
        ("segment file.txt --model starter:klingon", 3, "starter:klingon"),
        ("segment genome.fa --model runs/fox", 3, "looks like dna, but runs/fox is a model of text"),
        ("segment file.txt --model runs/fox --stage 7", 2, "no stage '7' (this model has one: 0)"),
        ("segment file.txt --model runs/fox --format bed", 2, "bed"),
        ("segment file.txt --model runs/fox --modality klingon", 2, "installed: "),
        ("segment file.txt --model runs/fox --out runs", 2, "is a folder"),
        ("segment file.txt --model runs/fox --out no/where", 74, "no/where"),
        ("sample runs/fox --max-bytes 0", 2, "--max-bytes"),
        ("sample runs/fox --prompt a --prompt-file file.txt", 2, "exclude each other"),
        ("sample runs/fox --prompt-file nowhere", 3, "nowhere does not exist"),
        ("sample runs/fox --device cuda:99", 69, "cuda:99"),
        ("prepare", 2, "INPUT..."),
        ("prepare nowhere --out x", 3, "nowhere does not exist"),
        ("prepare empty.txt --out x", 3, "empty.txt"),
        ("prepare file.txt", 73, "exists already"),
        ("prepare file.txt --modality dna --out x", 3, "file.txt"),
        ("prepare file.txt --modality klingon --out x", 2, "installed: "),
        ("prepare file.txt --val 2 --out x", 2, "--val"),
        ("prepare file.txt --val 0.1 --val-input file.txt --out x", 2, "exclude each other"),
        ("prepare --join data/file --val 0.1", 2, "--join"),
        ("prepare file.txt --out . --overwrite", 73, "it is a folder already"),
        ("prepare file.txt --out / --overwrite", 73, "it is a folder already"),
        ("prepare rows.jsonl --field nope --out x", 3, "rows.jsonl:1: row has no text in field 'nope'"),
        ("train --preset bad.yaml --strict", 2, "--resume"),
        ("sample runs/fox --seed -1", 2, "--seed"),
        ("sample runs/fox --raw --show-chunks", 2, "exclude each other"),
        ("sample begun", 4, "begun has no complete checkpoint"),
        ("runs runs/fox --out .", 73, "it is a folder already"),
        ("presets nanno", 2, "did you mean 'nano'?"),
        ("convert nowhere.pt x", 3, "nowhere.pt"),
        ("quickstart --out data", 73, "exists already"),
        ("quickstart --out file.txt", 73, "exists already"),
    ],
)
def test_a_mistake_is_one_line_and_a_code(home, capsys, line, code, said):
    (home / "bad.yaml").write_text("extends: nano\ntrain: { stepz: 1 }\n")
    (home / "rows.jsonl").write_text('{"text": "a fox"}\n')
    (home / "begun").mkdir(exist_ok=True)
    (home / "begun/config.yaml").write_text("extends: nano\n")
    before = sorted(home.rglob("*"))
    assert hnet(line) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert "Traceback" not in err
    assert [text.startswith("hnet: ") for text in err.splitlines()].count(True) == 1
    assert err.splitlines()[-1].startswith("hnet: ")
    assert said in err
    assert sorted(home.rglob("*")) == before


def test_a_damaged_model_is_named(own, capsys):
    file = newest(own / "runs/fox") / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    for line in (["sample", str(file.parent)], ["segment", "file.txt", "--model", str(file.parent)]):
        assert run(line) == 4
        assert "model.safetensors is damaged" in capsys.readouterr().err


def test_a_damaged_dataset_is_named(own, capsys):
    file = own / "data/file/split-train.bin"
    file.write_bytes(b"x" * file.stat().st_size)
    assert hnet("train --preset tiny.yaml --data data/file --run x") == 4
    assert "split-train.bin is damaged" in capsys.readouterr().err
    assert not (own / "x").exists()


def test_a_live_run_is_refused(own, capsys):
    with FolderLock(own / "runs/fox"):
        assert hnet("train --preset tiny.yaml --run runs/fox --resume") == 73
    assert f"in use by process {os.getpid()}" in capsys.readouterr().err


def test_verbose_shows_where_an_error_came_from(home, capsys):
    assert hnet("-v sample nowhere") == 3
    err = capsys.readouterr().err
    assert "Traceback" in err
    assert err.splitlines()[-1].startswith("hnet: there is no model at nowhere")
    assert hnet("sample nowhere") == 3
    assert "Traceback" not in capsys.readouterr().err


def test_names_cannot_steer_the_terminal(own, capsys):
    """A file name, a key, a model's name with escape sequences."""
    evil = "evil\x1b[2J\x07.txt"
    shutil.copy("file.txt", evil)
    Path("evil.yaml").write_text('"tr\\e[2Jain": 1\n')
    lines = [["prepare", evil], ["prepare", evil], ["segment", evil, "--model", "runs/fox", "--format", "jsonl"],
             ["sample", f"no{evil}"], ["train", "--preset", "evil.yaml"], ["segment", f"no{evil}"],
             ["train", "--preset", "tiny.yaml", "--data", f"data/{evil[:-4]}"]]  # fmt: skip
    assert [run(line) for line in lines] == [0, 73, 0, 3, 2, 3, 0]
    out, err = capsys.readouterr()
    assert not {"\x1b", "\x07"} & set(out + err)
    assert "evil\\x1b[2J" in err


# -- what is printed where ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "keys"),
    [
        ("prepare file.txt --out x --json",
         {"path", "modality", "documents", "bytes", "refused", "splits", "baselines"}),
        ("train --preset tiny.yaml --data data/file --run y --json", {"run", "steps", "seconds", "val_bpb"}),
        ("train --preset tiny.yaml --data data/file --dry-run --json",
         {"parameters", "flops_per_byte", "memory_needed", "memory_free", "fits", "seconds", "epochs"}),
        ("sample runs/fox --max-bytes 9 --json", {"text"}),
        ("presets --json", {"nano", "2stage-xl"}),
        ("presets nano --json", {"model", "train", "description"}),
        ("sample runs/fox --max-bytes 9 --json --show-chunks", {"text", "boundaries"}),
        ("doctor --json", set()),
    ],
)  # fmt: skip
def test_programs_can_listen(own, capsys, line, keys):
    assert hnet(line) == 0
    assert keys <= json.loads(capsys.readouterr().out).keys()


def test_raw_records_know_no_rules(home, capsys):
    line = ["sample", "runs/fox", "--max-bytes", "60", "--temperature", "9", "--json"]
    assert run([*line, "--raw"]) == 0
    assert "bytes" in json.loads(capsys.readouterr().out)
    assert run(line) == 0
    assert "text" in json.loads(capsys.readouterr().out)


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


def test_a_dry_run_prints_the_plan_and_does_nothing(home, capsys):
    before = sorted(home.rglob("*"))
    assert hnet("train --preset tiny.yaml --data data/file --dry-run") == 0
    out, err = capsys.readouterr()
    assert out == ""
    for part in ("level1.main_network", "FLOPs per byte", "GiB needed", "4 steps", "runs/file-tiny"):
        assert part in err
    assert sorted(home.rglob("*")) == before


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


def test_a_reader_that_has_seen_enough(home):
    process = child("segment file.txt --model runs/fox --format tsv")
    assert process.stdout.readline().startswith("source\t")
    process.stdout.close()
    err = process.stderr.read()
    assert process.wait() == 0
    assert "Traceback" not in err
    assert "hnet: " not in err


# -- the mission, in a folder of one's own -----------------------------------------------------------------------------


def test_the_first_three_commands(own):
    """As written in the README, on a machine that cannot hold the model (here by its memory limit)."""
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
    assert "Data: data/genome" in err
    assert "Preset: nano-dna (the default for dna on cpu)" in err
    assert "Run: runs/genome-nano-dna" in err
    assert hnet("sample --max-bytes 1") == 0
    assert "Model: runs/fox" in capsys.readouterr().err
    assert hnet("segment file.txt") == 0
    assert "Model: runs/fox (text, by the look of file.txt)" in " ".join(capsys.readouterr().err.split())


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


def test_resume_alone_goes_on_with_the_newest_run_that_is_not_finished(own, capsys):
    """Whatever dataset and preset the defaults would be: those of another run."""
    os.utime("data/genome/dataset.json")
    shutil.copytree("runs/fox", "runs/later")
    config = Path("runs/fox/config.yaml")
    config.write_text(config.read_text().replace("steps: 4", "steps: 5"))
    os.utime("runs/later/config.yaml")
    assert hnet("train --resume --set train.steps=5") == 0
    err = capsys.readouterr().err
    assert "Run: runs/fox (the newest that goes on; --run names another)" in err
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
    assert 10 < json.loads(capsys.readouterr().out)["steps"] < 100_000


def test_segment_tells_what_prepare_would(own, capsys):
    """Of documents that are not as in the file; and a limit of bytes falls between characters."""
    Path("twice.fa").write_text(">alpha\nACGTACGTAA\n>alpha\nACGTTTTGGA\n")
    assert hnet("segment twice.fa --model starter:dna --format bed") == 0
    out, err = capsys.readouterr()
    assert "\nalpha#2\t0\t" in out
    assert "name of an earlier record, told apart as NAME#2, NAME#3: 1" in err
    Path("law.txt").write_bytes(("中华人民共和国城市绿化条例" * 9).encode("gb18030"))
    assert hnet("segment law.txt --model starter:chinese --format jsonl --max-bytes 100") == 0
    out, err = capsys.readouterr()
    assert "converted from GB18030 to UTF-8: 1" in err
    assert "There is more: this is the first 99 bytes" in err
    assert all("text" in json.loads(line) for line in out.splitlines())


# -- signals and full disks --------------------------------------------------------------------------------------------


def wait_for(path):
    """Until a file is there."""
    for _ in range(1200):
        if path.exists():
            return
        time.sleep(0.05)
    raise AssertionError(f"{path} never came")


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
    step = int(newest(own / "a").name.removeprefix("step-"))
    assert f"after step {step} of" in said
    assert run(["train", "--run", "a", "--resume", "--set", f"train.steps={step + 1}"]) == 0
    assert f"Going on from step {step} " in capsys.readouterr().err


def test_a_second_ctrl_c(own, capsys):
    """Steps are long here: the first would wait for the end of one."""

    def interrupt():
        wait_for(own / "a/config.yaml")
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.3)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    user = threading.Thread(target=interrupt)
    user.start()
    code = hnet("train --preset tiny.yaml --data data/file --run a --set train.batch_bytes=65536")
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


@pytest.mark.parametrize(("share", "few"), [(0.01, True), (0.5, False)])
def test_prepare_says_when_too_little_is_held_out(tmp_path, monkeypatch, capsys, share, few):
    monkeypatch.chdir(tmp_path)
    Path("fox.txt").write_text("The quick brown fox jumps over the lazy dog.\n" * 1000, encoding="utf-8")
    assert hnet(f"prepare fox.txt --val {share}") == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "To beat on the held-out bytes: xz" in said
    assert ("held-out bytes are too few" in said) == few
