"""The printed plan and results."""

import pytest

from hnet_cli.comparison.plan import choose
from hnet_cli.comparison.tables import describe, show_results


def test_members_that_read_other_batches_are_named(request_of, tmp_path, capsys):
    describe(choose(request_of(tmp_path / "c", "learned,other")), {})
    assert "train.batch_bytes is not the same for all (512 for learned, 256 for other)" in capsys.readouterr().err


@pytest.mark.slow
def test_results_are_tables_and_the_verdict(whole, capsys):
    _, told = whole
    capsys.readouterr()
    show_results(told)
    out = capsys.readouterr().out
    for title in ("Held-out documents", "Distorted documents: bits per byte", "Along the way"):
        assert title in out
    assert "Seeds" not in out  # there is one
    for model in told["models"]:
        assert f"{model['bpb']:.4f} [{model['bpb_ci95'][0]:.3f}, {model['bpb_ci95'][1]:.3f}]" in out
    assert told["verdict"]["text"][0] in out
