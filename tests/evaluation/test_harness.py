"""The adapter for lm-evaluation-harness."""

import json
import runpy
import sys

import pytest

from hnet_cli.checkpoints.find import load
from hnet_cli.errors import EnvironmentLimit
from hnet_cli.evaluation import tasks


@pytest.mark.parametrize("name", ["hnet_cli.evaluation.harness", "__main__"])
def test_without_the_harness_its_extra_is_named(monkeypatch, capsys, name):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    if name == "__main__":
        with pytest.raises(SystemExit) as ended:
            runpy.run_module("hnet_cli.evaluation.harness", run_name=name)
        assert ended.value.code == 69
        error = capsys.readouterr().err
        assert error == "hnet: lm-evaluation-harness is not installed (pip install 'hnet-cli[harness]')\n"
    else:
        with pytest.raises(EnvironmentLimit, match="not installed"):
            runpy.run_module(name, run_name=name)


def test_the_harness_and_we_agree(tmp_path):
    """The same items through lm_eval's own scoring of multiple choice."""
    lm_eval = pytest.importorskip("lm_eval")
    from hnet_cli.evaluation.harness import HNetLM

    rows = [{"query": f"Question {n}:", "choices": ["yes, of course", "no", "maybe"], "gold": n % 3} for n in range(20)]
    (tmp_path / "items.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = {
        "task": "own",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"validation": str(tmp_path / "items.jsonl")}},
        "output_type": "multiple_choice",
        "validation_split": "validation",
        "doc_to_text": "{{query}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{gold}}",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    }
    lm = HNetLM("starter:text", device="cpu")
    found = lm_eval.simple_evaluate(model=lm, tasks=[task], bootstrap_iters=0)["results"]["own"]
    ours = tasks.figures(tasks.score_items(load("starter:text"), tasks.read_items(tmp_path / "items.jsonl")))
    assert found["acc,none"] == pytest.approx(ours["acc"])
    assert found["acc_norm,none"] == pytest.approx(ours["acc_norm"])
