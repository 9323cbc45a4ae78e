"""Measurements on the held-out documents."""

import json

import pytest

from hnet_cli import modality
from hnet_cli.checkpoints.find import find
from hnet_cli.comparison.measures import Exam, measured
from hnet_cli.comparison.plan import choose
from hnet_cli.comparison.session import _last_checkpoint
from hnet_cli.inference.thresholds import Compression


def test_distorted_stretches_of_a_document_are_drawn_together(tmp_path):
    """Like the clean ones, or its interval would be too narrow; of few documents each stretch by itself."""
    parts = [b"It was the best of times, it was %d times" % number for number in range(10, 30)]
    parts = [part[:40] for part in parts]
    for documents, expected in ((10, 10), (2, 20)):
        owners = [number * documents // 20 for number in range(20)]
        exam = Exam(parts, parts, modality.get("text"), 64, "all", owners, owners)
        found = measured(tmp_path / f"{documents}.json", find("starter:novels"), exam, "cpu", lambda _: None)
        assert len(found["units"]) == expected
        assert {len(rows) for rows in found["noise"].values()} == {expected}
        assert sum(size for _, size in found["noise"][""]) == 800


@pytest.mark.slow
def test_a_measurement_is_kept_until_what_it_depends_on_changes(whole, request_of, tmp_path):
    folder, _ = whole
    plan = choose(request_of(folder))
    model, notes, file = _last_checkpoint(plan.runs[0]), [], tmp_path / "m" / "learned.json"
    first = measured(file, model, Exam.of(plan), "cpu", notes.append)
    assert notes == ["held-out documents", "undistorted", *plan.modality.perturbations()]
    assert first["units"] == json.loads((folder / "measured" / "learned-s0.json").read_text())["units"]
    assert measured(file, model, Exam.of(plan), "cpu", notes.append) == json.loads(file.read_text())
    assert len(notes) == 2 + len(plan.modality.perturbations())
    longer = Exam.of(choose(request_of(folder, compression=Compression((), (8,)))))
    chosen = measured(file, model, longer, "cpu", notes.append)
    assert chosen["thresholds"]
    assert chosen["boundaries"][0] == pytest.approx(longer.bytes / 8, rel=0.1)
    fewer = Exam.of(choose(request_of(folder, max_bytes=600)))
    assert measured(file, model, fewer, "cpu", notes.append)["units"] != first["units"]
