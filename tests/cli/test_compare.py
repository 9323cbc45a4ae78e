"""`hnet compare`: three tiny members, stopped, killed and resumed; another comparison in the folder; mistakes."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from pagekit import checked
from runkit import SETTINGS, dataset

from hnet_cli.cli import app as cli
from hnet_cli.comparison.plan import Request, choose, describe, write
from hnet_cli.config.run import resolve, to_yaml
from hnet_cli.errors import DamagedError, UsageError

ROOT = Path(__file__).parents[2]

# -- a real comparison -------------------------------------------------------------------------------------------------

CLOCK = {"seconds", "bytes_per_s", "curve_seconds", "equal_time", "stable_seconds", "verdict", "run", "unsteady"}
"""Keys of what depends on the clock or the folder."""


def timeless(told):
    if isinstance(told, dict):
        return {key: timeless(value) for key, value in told.items() if key not in CLOCK}
    return [timeless(each) for each in told] if isinstance(told, list) else told


@pytest.fixture(scope="module")
def arena(tmp_path_factory):
    """A dataset and three members as files: an H-Net, the same with fixed chunks, a plain network of tokens."""
    folder = tmp_path_factory.mktemp("arena")
    dataset(folder)
    settings = [*(line for line in SETTINGS if "_every" not in line), "train.batch_bytes=512"]
    flat = ["tokenizer=bpe:300", "model.arch_layout=[T1]", "model.d_model=[64]", "model.d_intermediate=[0]",
            "train.target_ratios=[]", "model.attn_cfg={num_heads: [2], rotary_emb_dim: [16], window_size: [-1]}",
            "train.lr_multipliers=auto",
    ]  # fmt: skip
    for name, own in {"learned": [], "fixed": ["model.chunker=fixed:4"], "plain": flat}.items():
        write_preset(folder / f"{name}.yaml", [*settings, *own])
    return folder


def write_preset(file, settings):
    file.write_text(to_yaml(resolve("nano", settings)))


def arguments(arena, run, *more, names="learned,fixed,plain"):
    line_up = ",".join(str(arena / f"{name}.yaml") for name in names.split(","))
    return ["compare", "--data", str(arena / "dataset"), "--line-up", line_up, "--bytes", "5120", "--device", "cpu",
            "--run", str(run), "--max-bytes", "1500", "--json", *more]  # fmt: skip


def compared(capsys, *given, **named):
    capsys.readouterr()
    assert cli.run(arguments(*given, **named)) == 0, capsys.readouterr().err
    return json.loads(capsys.readouterr().out)


def when(condition, act):
    """A thread that acts as soon as the condition holds."""

    def watch():
        until = time.monotonic() + 120
        while time.monotonic() < until and not condition():
            time.sleep(0.005)
        act()

    thread = threading.Thread(target=watch)
    thread.start()
    return thread


def test_a_comparison_killed_and_stopped_goes_on_to_the_same_figures(arena, tmp_path, capsys):
    whole = compared(capsys, arena, tmp_path / "whole")
    names = [model["name"] for model in whole["models"]]
    assert names == ["learned", "fixed", "plain"]
    assert whole["reference"] == "fixed"
    for model in whole["models"]:
        assert model["bytes"] == 5120
        assert model["curve"][-1][0] == 5120
        low, high = model["bpb_ci95"]
        assert low < model["bpb"] < high
        assert 0 < model["robustness"]["score"] < 120
    fixed = whole["models"][1]
    assert fixed["bytes_per_chunk"] == pytest.approx(4, abs=0.2)
    assert whole["models"][2]["bytes_per_chunk"] > 1.2  # bytes per token
    assert whole["models"][0]["differences"]["fixed"]["bpb"] == pytest.approx(whole["models"][0]["bpb"] - fixed["bpb"])
    checked((tmp_path / "whole" / "compare.html").read_text())

    broken = tmp_path / "broken"
    command = [sys.executable, "-m", "hnet_cli", *arguments(arena, broken)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    when((broken / "runs" / "learned-s0" / "latest").exists, lambda: process.send_signal(signal.SIGKILL)).join()
    assert process.wait() == -signal.SIGKILL
    term = when((broken / "runs" / "fixed-s0" / "latest").exists, lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert cli.run(arguments(arena, broken)) == 75
    term.join()
    assert "hnet compare --run" in capsys.readouterr().err
    assert not (broken / "compare.json").exists()
    assert timeless(compared(capsys, arena, broken)) == timeless(whole)

    # finished: nothing is trained or measured again, the page is written anew, members come and go
    before = {file: file.stat().st_mtime_ns for file in broken.rglob("*.safetensors")}
    (broken / "compare.html").unlink()
    capsys.readouterr()
    assert cli.run(["compare", "--run", str(broken), "--json"]) == 0
    assert timeless(json.loads(capsys.readouterr().out)) == timeless(whole)
    assert (broken / "compare.html").exists()
    assert cli.run(arguments(arena, broken, names="plain,learned")) == 0
    assert [m["name"] for m in json.loads((broken / "compare.json").read_text())["models"]] == ["plain", "learned"]
    assert before == {file: file.stat().st_mtime_ns for file in broken.rglob("*.safetensors")}
    # another seed, by a worker process
    more = compared(capsys, arena, broken, "--seeds", "2", "--gpus", "0", names="learned")
    for model in more["models"]:
        first, second = model["seeds"]
        assert first["bpb"] == next(m["bpb"] for m in whole["models"] if m["name"] == model["name"])
        assert first["bpb"] != second["bpb"]
        assert model["bpb"] == pytest.approx((first["bpb"] + second["bpb"]) / 2)


@pytest.mark.parametrize(("change", "words"), [
    (["--bytes", "8192"], "--bytes 5120, not 8192"),
    (["--flops", "5e6"], "no --flops, not 5e+06"),
    (["--size", "small"], "--size"),
    (["--set", "train.lr=1e-3"], "settings"),
    (["--minutes", "3"], "exclude each other"),
    (["--gpus", "0,x"], "no list of GPUs"),
    (["--flops", "inf"], "must be a number"),
])  # fmt: skip
def test_another_comparison_in_the_same_folder_is_refused(arena, tmp_path, capsys, change, words):
    presets = ",".join(str(arena / f"{name}.yaml") for name in ("learned", "plain"))
    asked = Request(data=arena / "dataset", line_up=presets, bytes=5120, run=tmp_path, device="cpu")
    write(choose(asked), asked)
    assert cli.run([*arguments(arena, tmp_path), *change]) == 2
    assert words in capsys.readouterr().err


def test_what_a_comparison_began_with_holds(arena, tmp_path, capsys):
    """An edited preset under the same name, settings that the comparison decides, a plan that is gone."""
    preset, folder = tmp_path / "mine.yaml", tmp_path / "c"
    preset.write_text((arena / "learned.yaml").read_text())
    asked = Request(arena / "dataset", str(preset), bytes=5120, run=folder, device="cpu", settings=["train.seed=3"])
    write(choose(asked), asked)
    assert "train.seed has no effect" in capsys.readouterr().err
    before = (folder / "members" / "mine.yaml").read_text()
    assert choose(asked).runs[0].config.train.seed == 0  # the same again is no edit
    lr = resolve(str(preset)).train.lr
    preset.write_text(preset.read_text().replace(f"lr: {lr}", "lr: 0.5"))
    with pytest.raises(UsageError, match=rf"mine\.yaml is not .*train\.lr is 0\.5, not {lr}"):
        choose(asked)
    assert choose(Request(run=folder, device="cpu")).members[0].config.train.lr == lr

    # stopped before plan.json was there: what the plan then says is what is kept
    (folder / "plan.json").unlink()
    write(choose(asked), asked)
    assert (folder / "members" / "mine.yaml").read_text() == before.replace(f"lr: {lr}", "lr: 0.5")
    (folder / "plan.json").write_text('{"format": 1, "bytes": 5120}')
    with pytest.raises(DamagedError, match="no plan of this version"):
        choose(asked)
    (folder / "plan.json").unlink()
    (folder / "runs" / "mine-s0").mkdir(parents=True)
    (folder / "runs" / "mine-s0" / "config.yaml").touch()
    with pytest.raises(DamagedError, match="trainings but no plan"):
        choose(asked)


def test_members_that_read_other_batches_are_named(arena, tmp_path, capsys):
    write_preset(tmp_path / "long.yaml", SETTINGS)
    line_up = f"{arena / 'learned.yaml'},{tmp_path / 'long.yaml'}"
    plan = choose(Request(arena / "dataset", line_up, bytes=5120, run=tmp_path / "c", device="cpu"))
    describe(plan, {})
    assert "train.batch_bytes is not the same for all (512 for learned, 256 for long)" in capsys.readouterr().err


@pytest.mark.parametrize(("given_", "code", "words"), [
    (["--line-up", "1stge"], 2, "did you mean '1stage'"),
    (["--line-up", "learned.yaml,learned.yaml"], 2, "twice"),
    (["--bytes", "300"], 2, "less than 10 steps"),
    (["--data", "nowhere"], 3, "nowhere does not exist"),
    (["--max-bytes", "100"], 3, "100 held-out bytes of dataset are less than 8 windows"),
])  # fmt: skip
def test_mistakes_are_told_in_one_line(arena, tmp_path, capsys, monkeypatch, given_, code, words):
    monkeypatch.chdir(arena)
    base = [
        "compare",
        "--data",
        "dataset",
        "--line-up",
        "learned.yaml",
        "--device",
        "cpu",
        "--run",
        str(tmp_path / "c"),
    ]
    assert cli.run([*base, *given_]) == code
    said = capsys.readouterr().err
    assert words in said
    assert "Traceback" not in said


def test_a_second_comparison_in_the_folder_is_refused(arena, tmp_path, capsys):
    from hnet_cli import storage

    with storage.FolderLock(tmp_path / "c"):
        assert cli.run(arguments(arena, tmp_path / "c")) == 73
    assert "in use" in capsys.readouterr().err


def test_a_plan_is_printed_and_nothing_is_written(arena, tmp_path, capsys):
    assert cli.run(arguments(arena, tmp_path / "c", "--dry-run", names="learned,plain")) == 0
    told = json.loads(capsys.readouterr().out)
    assert [each["name"] for each in told["models"]] == ["learned", "plain"]
    assert all(each["estimated_seconds"] > 0 for each in told["models"])
    assert not (tmp_path / "c").exists()
