"""`hnet compare` from plan to page: figures, kill and resume, another line-up in the same folder, workers."""

import json
import os
import shutil
import signal
import threading
import time

import pytest
from commands import forked
from pagekit import checked

from hnet_cli import modality
from hnet_cli.cli import app as cli
from hnet_cli.comparison import session
from hnet_cli.comparison.plan import ComparisonRequest, choose
from hnet_cli.comparison.session import compare
from hnet_cli.data.prepare import preparation
from hnet_cli.errors import BusyError, InputError, Stopped
from hnet_cli.storage import FolderLock

CLOCK = {"seconds", "bytes_per_s", "curve_seconds", "equal_time", "stable_seconds", "verdict", "run", "unsteady"}
"""Keys of what depends on the clock or the folder."""


def timeless(told):
    if isinstance(told, dict):
        return {key: timeless(value) for key, value in told.items() if key not in CLOCK}
    return [timeless(each) for each in told] if isinstance(told, list) else told


def checkpoints(folder):
    return {file: file.stat().st_mtime_ns for file in folder.rglob("*.safetensors")}


def test_a_comparison_has_the_figures_of_its_members(whole):
    folder, told = whole
    learned, fixed, plain = told["models"]
    assert [learned["name"], fixed["name"], plain["name"]] == ["learned", "fixed", "plain"]
    assert told["reference"] == "fixed"
    for model in told["models"]:
        assert model["bytes"] == 5120
        assert model["curve"][-1][0] == 5120
        low, high = model["bpb_ci95"]
        assert low < model["bpb"] < high
        assert 0 < model["robustness"]["score"] < 120
    assert fixed["bytes_per_chunk"] == pytest.approx(4, abs=0.2)
    assert plain["bytes_per_chunk"] > 1.2  # bytes per token
    assert learned["differences"]["fixed"]["bpb"] == pytest.approx(learned["bpb"] - fixed["bpb"])
    assert json.loads((folder / "compare.json").read_text()) == json.loads(json.dumps(told))
    checked((folder / "compare.html").read_text())


def test_a_finished_comparison_only_writes_its_page_anew(whole, request_of, tmp_path, capsys):
    folder = shutil.copytree(whole[0], tmp_path / "c")
    before = checkpoints(folder)
    (folder / "compare.html").unlink()
    capsys.readouterr()
    assert cli.run(["compare", "--run", str(folder), "--device", "cpu", "--json"]) == 0
    assert timeless(json.loads(capsys.readouterr().out)) == timeless(whole[1])
    assert (folder / "compare.html").exists()
    told = compare(request_of(folder, "plain,learned"))
    assert [model["name"] for model in told["models"]] == ["plain", "learned"]
    assert checkpoints(folder) == before


@pytest.mark.slow
def test_a_comparison_killed_and_stopped_goes_on_to_the_same_figures(whole, request_of, tmp_path):
    folder, request = tmp_path / "c", request_of(tmp_path / "c", "learned,fixed")
    killed = forked(lambda: compare(request) and 0, tmp_path / "stderr")
    killed.wait_for((folder / "runs" / "learned-s0" / "latest").exists, "a checkpoint")
    killed.kill()

    def stop():
        until = time.monotonic() + 120
        while time.monotonic() < until and not (folder / "runs" / "fixed-s0" / "latest").exists():
            time.sleep(0.005)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=stop)
    thread.start()
    with pytest.raises(Stopped) as stopped:
        compare(request)
    thread.join()
    assert "hnet compare --run" in stopped.value.hint
    assert not (folder / "compare.json").exists()
    told = compare(request)
    for model, expected in zip(told["models"], whole[1]["models"], strict=False):
        different = {"differences": None}  # of another line-up
        assert timeless(model | different) == timeless(expected | different)
    gap, expected = (each["models"][0]["differences"]["fixed"] for each in (told, whole[1]))
    assert (gap["bpb"], gap["bpb_ci95"]) == (expected["bpb"], expected["bpb_ci95"])

    # another seed, by a worker process
    (model,) = compare(request_of(folder, "learned", seeds=2, gpus=[0]))["models"]
    first, second = model["seeds"]
    assert first["bpb"] == whole[1]["models"][0]["bpb"]
    assert first["bpb"] != second["bpb"]
    assert model["bpb"] == pytest.approx((first["bpb"] + second["bpb"]) / 2)


def test_a_second_comparison_in_the_folder_is_refused(request_of, tmp_path):
    with FolderLock(tmp_path / "c"), pytest.raises(BusyError, match="in use"):
        compare(request_of(tmp_path / "c", "learned"))


def test_a_dataset_made_anew_between_trainings_is_refused(arena, tmp_path):
    """The first training makes it anew; the next would be trained on other data."""
    data = shutil.copytree(arena / "dataset", tmp_path / "dataset")
    request = ComparisonRequest(data, str(arena / "learned.yaml"), bytes=5120, run=tmp_path / "c", device="cpu")
    plan = choose(request)
    session._refuse_other_data(plan)
    text = tmp_path / "other.txt"
    text.write_text("Quite another text, of other words and another length.\n" * 300)
    preparation.prepare([text], modality.get("text"), data, val=0.3, measure=False, overwrite=True)
    with pytest.raises(InputError, match="made anew while the comparison ran"):
        session._refuse_other_data(plan)
