"""Comparisons: a real one of three tiny members, stopped, killed and resumed; the mathematics on curves and figures
that are known; the page."""

import importlib.util
import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pagekit import checked
from runkit import SETTINGS, dataset, tiny

from hnet_cli import cli
from hnet_cli.comparison import page
from hnet_cli.comparison.curves import Curve, crossover, efficiency, reached
from hnet_cli.comparison.members import Member
from hnet_cli.comparison.plan import Request, choose, describe, write
from hnet_cli.comparison.results import reference
from hnet_cli.comparison.statistics import estimate, interval, judged
from hnet_cli.comparison.verdict import verdict
from hnet_cli.config import resolve, to_yaml
from hnet_cli.errors import DamagedError, UsageError

ROOT = Path(__file__).parent.parent

# -- curves ------------------------------------------------------------------------------------------------------------

FALLING = st.lists(st.floats(0.01, 1), min_size=2, max_size=8).map(
    lambda drops: [9 - sum(drops[:n]) for n in range(len(drops))]
)


def spaced(ys, first=1000.0, step=1.7):
    return Curve.of([first * step**n for n in range(len(ys))], ys)


@given(FALLING, st.floats(0.1, 10))
def test_a_curve_needs_as_much_as_itself_and_k_times_what_is_k_times_faster(ys, k):
    own = spaced(ys)
    assert efficiency(own, own) == pytest.approx(1)
    slower = spaced(ys, first=1000 * k)
    assert efficiency(own, slower) == pytest.approx(k)
    assert efficiency(own, slower) == pytest.approx(1 / efficiency(slower, own))


@given(FALLING, st.floats(0.001, 1))
def test_what_never_gets_there_has_no_efficiency_and_never_crosses(ys, gap):
    own, better = spaced([y + gap for y in ys]), spaced(ys)
    assert efficiency(own, better) is None
    assert crossover(own, better) == {"state": "never", "at": None}
    assert crossover(better, own) == {"state": "from the beginning", "at": None}
    assert efficiency(better, own) >= 1
    assert crossover(own, own)["state"] == "never"


@given(st.floats(1, 5), st.floats(0.1, 0.9), st.floats(1e4, 1e7), st.integers(3, 40))
def test_the_crossing_of_two_logarithmic_curves_is_where_algebra_says(level, slope, place, points):
    """a - b ln x and a' - b' ln x, that meet at `place`, at grids of points that differ."""
    low, high = place / 50, place * 20

    def line(steepness, number):
        xs = [low * (high / low) ** (n / number) for n in range(number + 1)]
        return Curve.of(xs, [level - steepness * math.log(x / place) for x in xs])

    own, other = line(slope + 0.05, points), line(slope, points + 3)
    found = crossover(own, other)
    assert found["state"] == "crosses"
    assert found["at"] == pytest.approx(place, rel=1e-6)
    assert crossover(other, own)["state"] == "never"
    assert reached(own, level) == pytest.approx(place, rel=1e-6)


def test_only_the_last_crossing_counts():
    own = Curve.of([1, 2, 4, 8, 16], [5, 3, 3, 2, 1])
    other = Curve.of([1, 2, 4, 8, 16], [4, 4, 2, 3, 2])
    found = crossover(own, other)
    assert found["state"] == "crosses"
    assert 4 < found["at"] < 8
    assert crossover(own, Curve.of([100, 200], [1, 1]))["state"] == "unknown"
    assert crossover(own, Curve.of([], []))["state"] == "unknown"


# -- how sure ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("seeds", "documents"), [(0.05, 0.05), (0.005, 0.3)])
def test_an_interval_covers_the_truth_as_often_as_it_says(seeds, documents):
    """Documents and seeds both drawn from known spreads: the true mean is inside in about 95 of 100."""
    random, inside, rounds = np.random.default_rng(3), 0, 50
    for _ in range(rounds):
        luck = random.normal(0, seeds, (4, 1))  # of a training
        bits = 2 + luck + random.normal(0, documents, (1, 40))
        _, drawn = estimate(np.stack([bits, np.ones((4, 40))], 2))
        low, high = interval(drawn)
        inside += low <= 2 <= high
    assert 0.88 <= inside / rounds <= 1


def test_seeds_make_an_interval_wider_never_narrower():
    bits = np.random.default_rng(0).normal(2, 0.1, (1, 30))
    alone = interval(estimate(np.stack([bits, np.ones((1, 30))], 2))[1])
    for spread in (0.01, 0.1):
        both = np.concatenate([bits - spread, bits + spread])
        wider = interval(estimate(np.stack([both, np.ones((2, 30))], 2))[1])
        assert wider[0] <= alone[0] + 1e-3
        assert wider[1] >= alone[1] - 1e-3
    assert wider[1] - wider[0] > 2 * (alone[1] - alone[0])
    assert estimate(np.ones((1, 3, 2)))[1] is None  # too few to know


def test_a_switch_does_not_win_by_the_luck_of_two_seeds(tmp_path):
    """benchmarks/switches.py: seeds that disagree are no twice as many documents."""
    spec = importlib.util.spec_from_file_location("switches", ROOT / "benchmarks" / "switches.py")
    switches = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(switches)
    (tmp_path / "text").mkdir()
    documents = np.random.default_rng(0).normal(2, 0.01, 40)
    for name, luck in {"base": (0, 0.3), "muon": (-0.2, 0.25)}.items():
        for seed, own in enumerate(luck):
            told = {"name": name, "seed": seed, "bytes": 1, "seconds": 1, "flops_per_byte": 1, "bytes_per_chunk": 5,
                    "unit": "document", "units": [[100 * (bits + own), 100] for bits in documents]}  # fmt: skip
            (tmp_path / "text" / f"{name}-s{seed}.json").write_text(json.dumps(told))
    found = next(row for row in switches.report(tmp_path) if row["name"] == "muon")
    assert found["change"] == pytest.approx(-0.125 / math.log(2))
    assert found["change_ci95"][1] > 0
    assert not found["wins"]


@pytest.mark.parametrize(("ci95", "word"), [
    ([-0.2, -0.1], "wins"), ([0.1, 0.2], "loses"), ([-0.1, 0.1], "cannot be told apart"),
    (None, "cannot be told apart"),
])  # fmt: skip
def test_what_an_interval_says(ci95, word):
    assert judged(ci95) == word


# -- the verdict -------------------------------------------------------------------------------------------------------


def told_of(*members, seeds=1):
    """What `compare.json` would hold of members (name, learned, bpb); intervals of 0.02 around differences."""
    rival = next(name for name, learned, _ in members if not learned)
    level = {name: bpb for name, _, bpb in members}
    models = []
    for name, learned, bpb in members:
        differences = {}
        for other in {rival, min(level, key=level.get), *(each for each in level if "2x" in each)} - {name}:
            gap = bpb - level[other]
            ci95 = [gap - 0.02, gap + 0.02]
            whole = {"bpb": gap, "bpb_ci95": ci95, "judged": judged(ci95)}
            late = {"bpb": gap + 0.1, "bpb_ci95": [ci95[0] + 0.1, ci95[1] + 0.1], "seconds": 60.0}
            differences[other] = whole | {"equal_time": late | {"judged": judged(late["bpb_ci95"])}}
        models.append({"name": name, "learned": learned, "bpb": bpb, "bpb_ci95": [bpb - 0.1, bpb + 0.1],
                       "differences": differences, "flops_per_byte": 1e6, "unsteady": 1.0,
                       "share_of_flops": 2 if "2x" in name else 1})  # fmt: skip
    return {"models": models, "reference": rival, "best": min(level, key=level.get), "failed": {}, "missing": [],
            "dataset": {"name": "x", "modality": "text", "epochs": 1.0}, "exam": {"unit": "document"},
            "budget": {"bytes": 10**6, "flops_per_byte": 1e6, "seeds": seeds, "minutes": None}}  # fmt: skip


@pytest.mark.parametrize(("bpb", "outcome", "words"), [
    (1.90, "wins", "the best H-Net (2stage) wins against bpe"),
    (2.10, "loses", "the H-Net does not win: the best of them (2stage) loses to bpe"),
    (1.99, "cannot be told apart", "the H-Net does not win: 2stage and bpe cannot be told apart"),
])  # fmt: skip
def test_the_verdict_says_plainly_who_wins(bpb, outcome, words):
    found = verdict(told_of(("bpe", False, 2.0), ("1stage", True, 2.5), ("2stage", True, bpb)))
    assert found["hnet"] == "2stage"
    assert found["outcome"]["equal_bytes"] == outcome
    text = " ".join(found["text"])
    assert f"At equal bytes and FLOPs {words}" in text
    assert f"{bpb - 2:+.3f} bits per byte" in text
    assert "One seed" in text


def test_the_verdict_tells_equal_time_from_equal_bytes():
    found = verdict(told_of(("bpe", False, 2.0), ("1stage", True, 1.95), seeds=3))
    assert found["outcome"] == {"equal_bytes": "wins", "equal_time": "loses"}
    assert "One seed" not in " ".join(found["text"])


def test_a_baseline_without_learned_boundaries_that_is_as_good_is_named():
    text = " ".join(verdict(told_of(("bpe", False, 2.0), ("space", False, 1.8), ("1stage", True, 1.85)))["text"])
    assert "space, which learns no boundaries, is at least as good as every H-Net here" in text
    text = " ".join(verdict(told_of(("bpe", False, 2.0), ("space", False, 1.9), ("1stage", True, 1.85)))["text"])
    assert "at least as good" not in text


def test_the_transformer_of_twice_the_flops_has_its_own_sentence():
    found = verdict(told_of(("bpe", False, 2.0), ("bpe-2x", False, 1.9), ("2stage", True, 1.91)))
    assert found["outcome"]["equal_bytes"] == "wins"
    text = " ".join(found["text"])
    assert (
        "Against bpe-2x, of 2 times the FLOPs: the H-Net does not win: 2stage and bpe-2x cannot be told apart" in text
    )


def test_a_transformer_of_twice_the_flops_is_no_reference_where_others_have_the_same():
    def member(name, share, chunker):
        return Member(name, tiny(f"model.chunker={chunker}"), 1e6, share)

    double, fixed, learned = member("2x", 2.0, "fixed:4"), member("fixed", 1.0, "fixed:4"), member("h", 1.0, "learned")
    assert reference([double, fixed, learned]) == "fixed"
    assert reference([double, learned]) == "h"
    assert reference([double]) == "2x"
    assert reference([]) is None

    told = told_of(("bpe-2x", False, 1.9), ("2stage", True, 1.85)) | {"reference": "2stage", "best": "2stage"}
    found = verdict(told)
    assert found["outcome"] == {"equal_bytes": None, "equal_time": None}
    text = " ".join(found["text"])
    assert "No other model of these FLOPs took part" in text
    assert "Against bpe-2x, of 2 times the FLOPs: the best H-Net (2stage) wins" in text
    assert "not equal" not in text


def test_intervals_over_windows_are_not_said_to_cover_documents():
    told = told_of(("bpe", False, 2.0), ("2stage", True, 1.9))
    assert "choice of held-out documents" in " ".join(verdict(told)["text"])
    text = " ".join(verdict(told | {"exam": {"unit": "window"}})["text"])
    assert "choice of held-out documents" not in text
    assert "do not cover another choice of documents" in text


def test_without_an_hnet_there_is_no_verdict_on_one():
    found = verdict(told_of(("bpe", False, 2.0), ("space", False, 1.8)))
    assert found["outcome"] == {"equal_bytes": None, "equal_time": None}
    assert "No H-Net" in " ".join(found["text"])


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


def test_a_page_of_names_that_are_meant_to_hurt():
    evil = "</script><b onload=x>"
    told = told_of(("bpe", False, 2.0), (evil, True, 1.9))
    told |= {"size": "nano", "settings": [evil], "crossovers": {}, "efficiency": {}, "format": 1,
             "exam": {"documents": "all", "bytes": 9, "context": 64, "unit": "document"},
             "machine": {"device": "cpu", "name": evil, "threads": 1, "versions": {"hnet": "0"}}}  # fmt: skip
    told["dataset"] |= {"name": evil, "baselines": {}}
    for model in told["models"]:
        model |= {"layout": "m1", "parameters": 10, "planned_flops_per_byte": 1.0, "bytes": 10, "steps": 1,
                  "stages": [], "bytes_per_chunk": 1.0, "seconds": 1.0, "bytes_per_s": 1.0,
                  "curve": [[5, 2.5], [10, model["bpb"]]],
                  "curve_seconds": [[1, 2.5], [2, model["bpb"]]], "seeds": [{"seed": 0, "bpb": model["bpb"]}],
                  "robustness": {"score": 50.0, "bpb": 4.0, "clean_bpb": 2.0, "distortions": {}}}  # fmt: skip
    told["verdict"] = verdict(told)
    shown = checked(page.page(told))
    assert evil in shown.text
    assert "-0.100" in shown.text
