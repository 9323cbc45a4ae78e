"""One model at several lengths of chunks: every point is what a model at those thresholds has."""

import numpy as np
import pytest
import torch
from modelkit import tiny_config, tiny_model
from pagekit import checked

from hnet_cli.errors import UsageError
from hnet_cli.evaluation import elastic
from hnet_cli.evaluation.tables import tables
from hnet_cli.inference.scoring import score
from hnet_cli.terminal.chart import Chart

FOX = "The quick brown fox jumps over the lazy dog, {}.\n"


def test_points_are_what_the_model_has_there():
    """Two stages; the model is left as it was; the lengths grow, at the same bytes."""
    model = tiny_model(torch.float32)
    documents = [bytes(np.random.default_rng(n).integers(97, 110, 160, dtype=np.uint8)) for n in range(3)]
    own, calls = score(model, documents, 96), []

    def again(times):
        calls.append(times)
        return score(model, documents, 96)

    points = elastic.sweep(model, own, again, documents)
    assert calls == list(range(len(points) - 1))
    assert model.thresholds == [0.5, 0.5]
    assert {point["bytes"] for point in points} == {480}
    lengths = [point["bytes_per_chunk"][-1] for point in points]
    assert lengths == sorted(lengths)
    assert lengths[-1] > 3 * lengths[0]
    (usual,) = [point for point in points if point["difference"] is None]
    assert usual["thresholds"] == [0.5, 0.5]
    with model.set_thresholds(points[0]["thresholds"]):
        there = score(model, documents, 96)
    assert points[0]["bpb"] == pytest.approx(there.bits.sum() / 480)
    assert points[0]["difference"]["bpb"] == pytest.approx(points[0]["bpb"] - usual["bpb"])


def test_lengths_are_those_of_the_innermost_stage_that_is_learned():
    """Not of the fixed ones within, twice as long."""
    model = tiny_model(torch.float32, config=tiny_config(chunker=[{"kind": "learned"}, {"kind": "fixed", "k": 2}]))
    documents = [bytes(np.random.default_rng(n).integers(97, 110, 160, dtype=np.uint8)) for n in range(3)]
    points = elastic.sweep(model, score(model, documents, 96), lambda _: score(model, documents, 96), documents)
    lengths = [point["bytes_per_chunk"][0] for point in points]
    (usual,) = [length for length, point in zip(lengths, points, strict=True) if point["difference"] is None]
    for factor in (0.71, 1.41):
        assert min(abs(length / usual - factor) for length in lengths) < 0.05


def test_the_command_says_shows_and_writes(hnet, evaluated, tmp_path):
    file, page = tmp_path / "x.txt", tmp_path / "e.html"
    file.write_text("".join(map(FOX.format, range(9))))
    found = evaluated("starter:text", file, "--no-samples", "--elastic", "--page", page, "--context", 256)
    points = found["elastic"]
    assert len(points) >= 5
    (usual,) = [point for point in points if point["difference"] is None]
    assert usual["bpb"] == found["bpb"]
    shown = checked(page.read_text())
    assert "starter:text" in shown.labels
    rows = elastic.rows(found)
    assert all(cell in shown.text for row in rows for cell in row)
    assert any(getattr(part, "row_count", 0) == len(points) for part in tables(found))
    two = {"models": [found, found | {"model": "other"}]}
    for result, labels in ((found, ["starter:text"]), (two, ["starter:text", "other"])):
        assert not any(isinstance(part, Chart) for part in tables(result))
        (chart,) = [part for part in tables(result, charts=True) if isinstance(part, Chart)]
        assert [curve.label for curve in chart.curves] == labels
        assert {curve.ys[curve.marked] for curve in chart.curves} == {usual["bpb"]}


@pytest.mark.slow
def test_a_length_holds_for_everything(evaluated, tmp_path):
    file = tmp_path / "x.txt"
    file.write_text("".join(map(FOX.format, range(12))))
    found = evaluated("starter:text", file, "--no-samples", "--bytes-per-chunk", "2.5,6")
    assert found["compression"]["wanted"] == [2.5, 6]
    assert [each["bytes_per_chunk"] for each in found["stages"]] == pytest.approx([2.5, 6], rel=0.03)
    thresholds = found["compression"]["thresholds"]
    again = evaluated("starter:text", file, "--no-samples", "--threshold", ",".join(map(str, thresholds)))
    assert again["bpb"] == found["bpb"]
    assert again["compression"] == {"thresholds": thresholds}


def test_a_length_is_met_on_what_there_is(evaluated, hnet, tmp_path):
    """Without documents that are scored, on the items of a task."""
    (tmp_path / "t.jsonl").write_text('{"query": "The fox", "choices": ["jumps", "sings"], "gold": 0}\n')
    found = evaluated("starter:text", "--task", tmp_path / "t.jsonl", "--bytes-per-chunk", 2)
    assert found["compression"]["sample_bytes"] == len("The fox jumps")
    (tmp_path / "g.txt").write_text("the fox  jumps")
    code, _, err = hnet("eval", "starter:text", "--gold", tmp_path / "g.txt", "--bytes-per-chunk", 2)
    assert (code, "--threshold" in err) == (2, True)


def test_a_model_without_learned_boundaries():
    with pytest.raises(UsageError, match="learns none"):
        elastic.check(tiny_model(config=tiny_config(("m1", ("T1",), "m1"), chunker={"kind": "space"})))
