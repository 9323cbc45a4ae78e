"""The parts of `hnet eval` together: the result object, what is refused, what is chosen by default."""

import json
import math
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from modelkit import tiny_model
from rowkit import rows_dataset, rows_file
from runkit import dataset, fox, tiny

from hnet_cli import modality
from hnet_cli.checkpoints.find import find, load
from hnet_cli.config.run import to_yaml
from hnet_cli.config.sources import DataSource
from hnet_cli.evaluation import compression, probe, report, tables
from hnet_cli.evaluation.material import gather
from hnet_cli.inference.scoring import Scores, score
from hnet_cli.modality import Automaton
from hnet_cli.model.config import EOS
from hnet_cli.training.loop import train


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("texts")
    files = []
    for number in range(9):
        files.append(folder / f"{number}.txt")
        files[-1].write_text(
            "".join(f"It was the best of times, the worst of times, {i}.\n" for i in range(number + 2))
        )
    return files


def test_the_contract_of_the_json(evaluated, texts, monkeypatch):
    monkeypatch.setattr(report, "SAMPLE_BYTES", 32)
    monkeypatch.setattr(report, "NOISE_BYTES", 900)
    found = evaluated("starter:text", *texts, "--context", 256, "--noise")
    assert found["bytes"] == sum(each.stat().st_size for each in texts)
    assert found["documents"] == 9
    assert found["definition"]["context"] == found["definition"]["stride"] == 256
    assert {"xz", "zstd", "order_k_adaptive"} <= found["baselines"].keys()
    assert {"bytes_per_chunk", "target", "boundary_fraction", "mean_boundary_prob"} <= found["stages"][0].keys()
    assert found["stages"][0]["edges"]["word"]["f1"] > found["stages"][0]["edges"]["word"]["trivial"]["random"]["f1"]
    assert found["noise"].keys() == {"clean", *modality.get("text").perturbations()}
    low, high = found["stages"][0]["worth_ci95"]
    assert low < found["stages"][0]["worth"] < high
    assert found["definition"]["worth_bytes"] == found["bytes"]
    assert 0 <= found["validity"]["valid"] <= 1

    def check(value):
        if isinstance(value, dict):
            for name, each in value.items():
                if name.endswith("_ci95") and each is not None:
                    assert each[0] <= value[name.removesuffix("_ci95")] <= each[1], name
                check(each)
        elif isinstance(value, list):
            for each in value:
                check(each)

    check(found)


def test_the_strands_are_paired_place_by_place():
    """The windows of the other strand stand in reverse; each pair here costs the same: the mean is sure."""
    owner, sizes = np.repeat([0, 1], [4, 6]), np.full(10, 64)
    nats = np.random.default_rng(0).uniform(50, 100, 10)
    other = np.concatenate([(200 - nats)[:4][::-1], (200 - nats)[4:][::-1]])
    one, mirrored = (Scores(owner, sizes, each, np.zeros((10, 0, 6))) for each in (nats, other))
    found = report._strands(one, mirrored)
    assert found["mean"] == pytest.approx(100 / 64 / math.log(2))
    assert found["mean_ci95"] == pytest.approx([found["mean"]] * 2)
    assert found["forward_ci95"][0] < found["forward"] < found["forward_ci95"][1]


@pytest.mark.slow
def test_samples_are_drawn_where_they_take_no_longer_than_the_rest(evaluated, hnet, texts, monkeypatch):
    monkeypatch.setattr(report, "CHEAP", 0)  # the model is a large one
    monkeypatch.setattr(report, "SAMPLE_BYTES", 4)
    drawn = 4 * report.SAMPLES
    assert evaluated("starter:text", texts[3], "--max-bytes", drawn)["validity"]["bytes_each"] == 4
    few = ("starter:text", texts[3], "--max-bytes", drawn - 1)
    assert evaluated(*few)["validity"] is None
    assert "No samples were drawn" in hnet("eval", *few)[1]
    assert "Samples drawn without rules (32 of 4 bytes)" in hnet("eval", *few, "--samples")[1]


def test_a_sample_ends_where_the_model_says_so(monkeypatch):
    """The byte that says it is in no text; some samples have no other."""
    monkeypatch.setattr(report, "SAMPLE_BYTES", 40)

    class AllButTheEnd(type(modality.get("text"))):
        def automaton(self):
            return Automaton.of_alphabet(bytes(range(EOS)))

    model = tiny_model(torch.float32)
    with torch.no_grad():
        model.lm_head.weight[EOS] *= 4
    assert report.validity(model, AllButTheEnd(), end=True)["valid"] == 1
    assert report.validity(model, AllButTheEnd())["valid"] < 1


def test_two_models_are_compared_on_the_same_bytes(texts):
    """Through Python: the result object is what the command prints as JSON."""
    request = report.EvaluationRequest(list(map(str, texts)), modality="text", samples=False)
    found = json.loads(json.dumps(report.evaluate(["starter:text", "starter:code"], request, "cpu")))
    first, second = found["models"]
    assert found["difference"]["bpb"] == pytest.approx(second["bpb"] - first["bpb"])
    assert found["difference"]["relative"] == pytest.approx(second["bpb"] / first["bpb"] - 1)
    assert first["bytes"] == second["bytes"]


@pytest.mark.slow
def test_a_comparison_in_windows_longer_than_the_training_says_so(hnet, texts):
    """The starters compared were trained on sequences of 2,048 and 4,096 bytes."""
    two = ("eval", "starter:text", "starter:code", "--modality", "text", texts[0], "--no-samples")
    told = "starter:text was trained on sequences of 2,048 bytes, and windows of 4,096 bytes are longer: --context 2048"
    assert told in " ".join(hnet(*two)[2].split())
    whole = " ".join(hnet(*two, "--context", 0)[2].split())
    assert "of 2,048 bytes and starter:code was trained on sequences of 4,096 bytes, and whole documents" in whole
    assert "was trained on" not in hnet(*two, "--context", 2048)[2]
    assert "was trained on" not in hnet("eval", "starter:text", texts[0], "--no-samples")[2]


def test_a_folder_of_data_is_no_model(hnet, tmp_path, monkeypatch):
    """Projects have a config.json, or checkpoints of something else."""
    monkeypatch.chdir(tmp_path)
    files = {"config.json": '{"port": 80}\n', "checkpoints/a.txt": "A checkpoint.\n", "b.txt": "b\n"}
    for part, content in files.items():
        (tmp_path / "project" / part).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "project" / part).write_text(content * 9)
    code, out, err = hnet("eval", "starter:novels", "project", "--no-samples", "--json")
    assert code == 0, err
    assert json.loads(out)["documents"] == 3
    assert hnet("score", "project", "project/b.txt", "--model", "starter:novels", "--out", "x.tsv")[0] == 0
    shutil.copytree(find("starter:novels"), "model")
    (tmp_path / "model" / "model.safetensors").unlink()
    code, out, err = hnet("eval", "model", "project/b.txt")  # a model that has lost its weights is one all the same
    assert (code, out) == (4, "")
    assert "model.safetensors is missing" in err


def test_what_is_left_out_is_said(hnet, tmp_path):
    (tmp_path / "a.txt").write_text("It was the best of times.\n" * 20)
    (tmp_path / "b.txt").write_bytes("Grüße\n".encode("latin-1") * 20)
    code, out, _ = hnet("eval", "starter:novels", tmp_path, "--no-samples")
    assert code == 0
    assert "all but 1 left out" in " ".join(out.split())
    assert "left out: 1 not UTF-8" in out


def test_chunks_of_completions_without_any_are_not_known(hnet, evaluated, tmp_path):
    """They have one letter each; the figure was 0 bytes per chunk."""
    file = rows_file(tmp_path / "rows.jsonl", [(f"Is {number} a number or a word? ", "n") for number in range(12)])
    found = evaluated("starter:text", file, "--no-samples", "--threshold", 0.99)
    (stage, _) = found["stages"]
    assert (stage["bytes_per_chunk"], stage["bytes_per_chunk_ci95"], stage["enrichment"]) == (None, None, None)
    assert hnet("eval", "starter:text", file, "--no-samples", "--threshold", 0.99)[0] == 0


def test_what_needs_chunks_or_names_is_refused_before_anything_is_scored(hnet, texts, tmp_path):
    flat = ["model.arch_layout=[T1]", "model.d_model=[16]", "model.d_intermediate=[16]", "train.target_ratios=[]"]
    attention = "model.attn_cfg={num_heads: [2], rotary_emb_dim: [8], window_size: [-1]}"
    data = dataset(tmp_path)
    train(tiny(*flat, attention, "train.lr_multipliers=auto", "train.steps=1"), data, tmp_path / "run")
    gold, labels = tmp_path / "gold.txt", tmp_path / "labels.tsv"
    gold.write_text("some words\n" * 9)
    labels.write_text("name\tlabel\tgroup\n" + "".join(f"{n}\t{n % 2}\t{n}\n" for n in range(6)))
    for arguments, said in (
        ((tmp_path / "run", texts[0], "--gold", gold), "has no chunking stages"),
        (("starter:novels", "--data", data, "--probe", labels, "--group", "group"), "this is a dataset"),
    ):
        code, out, err = hnet("eval", *arguments)
        assert (code, out) == (2, ""), err
        assert said in err
        assert "scoring" not in err


def test_of_a_mixture_rows_are_answered_and_documents_distorted(hnet, tmp_path, monkeypatch):
    monkeypatch.setattr(report, "NOISE_BYTES", 900)
    sources = [
        DataSource(path=str(dataset(tmp_path / "a")), weight=1),
        DataSource(path=str(rows_dataset(tmp_path / "b").path), weight=1),
    ]
    train(replace(tiny("train.steps=1"), data=sources), sources, tmp_path / "run")
    options = ("--noise", "--exact", "--limit", 2, "--stride", 40, "--context", 64, "--max-bytes", 2000)
    code, out, err = hnet("eval", tmp_path / "run", *options, "--no-samples", "--json")
    assert code == 0, err
    documents, rows = json.loads(out)["sources"]
    assert ("noise" in documents, "exact" in documents, documents["definition"]["stride"]) == (True, False, 40)
    assert ("noise" in rows, rows["exact"]["rows"], rows["definition"]["stride"]) == (False, 2, 64)
    found = json.loads(hnet("eval", tmp_path / "run", "--bytes-per-chunk", 4, "--no-samples", "--json")[1])
    assert (found["compression"]["wanted"], len(found["compression"]["thresholds"])) == ([4], 1)
    assert not any("compression" in source for source in found["sources"])  # the same for all
    code, _, err = hnet("eval", tmp_path / "run", "--modality", "dna")
    assert code == 2
    assert "its own modality" in err


@pytest.mark.slow
def test_the_worth_of_stretches_is_paired_as_the_bits_are(tmp_path):
    """Two held-out files, sampled in many stretches: too few documents for an interval over documents."""
    files = [tmp_path / f"{number}.txt" for number in range(2)]
    for number, file in enumerate(files):
        file.write_text("".join(f"It was the best of times, the worst of times, {number} {i}.\n" for i in range(400)))
    data = dataset(tmp_path / "set", fox(tmp_path, 60), val_inputs=list(map(str, files)))
    request = report.EvaluationRequest([str(data)], max_bytes=3000, context=16, samples=False)
    found = report.evaluate(["starter:novels"], request, "cpu")
    assert found["definition"]["uncertainty"] == "bootstrap over windows"
    model, material = load("starter:novels"), gather([str(data)], modality.get("text"), 3000, context=16)
    texts = [document.data for document in material.documents]
    (grouped,) = compression.worth(model, lambda: score(model, texts, 16).grouped(material.owners))
    (alone,) = compression.worth(model, lambda: score(model, texts, 16))
    assert found["stages"][0]["worth_ci95"] == pytest.approx(grouped["worth_ci95"])
    assert grouped["worth_ci95"] != alone["worth_ci95"]


@pytest.mark.slow
def test_other_lengths_of_rows_are_of_the_completions_too(evaluated, tmp_path):
    file = rows_file(tmp_path / "rows.jsonl", [(f"{'what ' * 12}{n}\n", f"answer {n}") for n in range(6)])
    fields = ("--prompt-field", "prompt", "--completion-field", "completion")
    found = evaluated("starter:novels", file, *fields, "--elastic", "--no-samples")
    assert {point["bytes"] for point in found["elastic"]} == {found["bytes"]}
    point = found["elastic"][0]
    again = evaluated("starter:novels", file, *fields, "--no-samples", "--threshold", point["thresholds"][0])
    assert point["bpb"] == pytest.approx(again["bpb"])


def test_tasks_of_the_same_name_are_told_apart(evaluated, tmp_path):
    row = '{"query": "The fox", "choices": ["jumps", "sings"], "gold": 0}\n'
    for folder, rows in (("a", 1), ("b", 2)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "val.jsonl").write_text(row * rows)
    (tmp_path / "other.jsonl").write_text(row * 3)
    files = [tmp_path / name for name in ("a/val.jsonl", "b/val.jsonl", "other.jsonl")]
    found = evaluated("starter:novels", *(part for file in files for part in ("--task", file)))
    assert {name: task["items"] for name, task in found["tasks"].items()} == {
        str(files[0]): 1,
        str(files[1]): 2,
        "other.jsonl": 3,
    }


def test_a_run_is_evaluated_on_its_own_dataset(tmp_path):
    data, run = dataset(tmp_path, fox(tmp_path, 60)), tmp_path / "run"
    shutil.copytree(find("starter:text"), run / "checkpoints" / "step-00000001")
    (run / "config.yaml").write_text(to_yaml(tiny(f"data={data}")))
    found = report.evaluate([str(run)], report.EvaluationRequest(samples=False), "cpu")
    assert found["definition"]["bytes_counted"].startswith(f"held-out split of {data}: all")
    assert "order_k" in found["baselines"]


@pytest.mark.slow
def test_a_probe_reads_the_files_for_this_alone(hnet, texts, tmp_path, monkeypatch):
    """The documented example, in the small; the table has what the object has."""
    pytest.importorskip("sklearn")
    monkeypatch.setattr(probe, "GRID", (1e-2,))
    rows = [f"{text.name}\t{at}\t{at + 40}\t{('x', 'y')[at > 50]}\t{text.stem}" for text in texts for at in (0, 60)]
    (tmp_path / "labels.tsv").write_text("\n".join(["name\tstart\tend\tlabel\tbook", *rows, "z\t0\t9\tx\tz\n"]))
    (tmp_path / "latin.txt").write_bytes("Grüße".encode("latin-1"))
    asked = [
        "eval",
        "starter:text",
        *texts,
        tmp_path / "latin.txt",
        "--probe",
        tmp_path / "labels.tsv",
        "--group",
        "book",
    ]
    code, out, err = hnet(*asked, "--json")
    assert code == 0, err
    found = json.loads(out)
    assert "bpb" not in found
    assert found["probe"]["classes"] == {"x": 9, "y": 8}
    assert found["probe"]["left_out_first"] == {"not wholly in a document": texts[0].name, "no such document": "z"}
    assert list(found["probe"]["layers"]) == ["encoder 0", "encoder 1", "main 1", "decoder 1", "decoder 0"]
    columns = [part.columns for part in tables.tables(found) if not isinstance(part, str)]
    lines = " ".join([str(cell) for own in columns for column in own for cell in column.cells])
    lines += " ".join(part for part in tables.tables(found) if isinstance(part, str))
    for name, figures in (found["probe"]["layers"] | found["probe"]["baselines"]).items():
        assert f"{figures['macro_f1']:.3f}" in lines, name
    assert "left out: 1 rows, no such document, first z" in lines
    assert "left out: 1 documents, not UTF-8" in lines
