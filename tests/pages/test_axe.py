"""axe-core finds nothing in the pages, in light and dark, at three widths."""

import axe
import pytest
from comparisonkit import told_of, whole
from foreignkit import records, written

from hnet_cli.comparison import page as comparison_page
from hnet_cli.evaluation import elastic
from hnet_cli.report import run_page

pytestmark = axe.needed


def measured(name):
    """A result of `hnet eval --elastic`."""
    points = [
        {"bytes_per_chunk": [n], "bpb": 2 + n / 9, "bpb_ci95": [2.0, 3.0], "thresholds": [0.5], "difference": None}
        for n in (3.0, 5.0, 8.0)
    ]
    return {"model": name, "elastic": points, "bytes": 999, "definition": {"bytes_counted": "all"}}


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    """Pages by name."""
    folder = tmp_path_factory.mktemp("axe")
    runs = {f"run-{n}": written(folder / f"{n}", records(30, 3), samples=3) for n in range(3)}
    told = whole(told_of(("fixed", False, 2.0), ("learned", True, 1.9), ("2x", True, 1.8)))
    tables = {"Figures": [["", *runs], ["state", *["finished"] * 3]]}
    return {
        "report": run_page.page(runs["run-0"]),
        "runs": run_page.comparison(runs, tables),
        "compare": comparison_page.page(told),
        "elastic": elastic.page(measured("a") | {"models": [measured("a"), measured("b")]}),
    }


@pytest.mark.parametrize("name", ["report", "runs", "compare", "elastic"])
def test_axe_finds_nothing(browser, shown, tmp_path, name):
    (tmp_path / "page.html").write_text(shown[name])
    assert axe.audit(browser, (tmp_path / "page.html").as_uri()) == []


def test_axe_finds_what_is_wrong(browser, tmp_path):
    (tmp_path / "page.html").write_text("<!doctype html><html><body><main><img src='data:,'></main></body></html>")
    found = axe.audit(browser, (tmp_path / "page.html").as_uri(), [390])
    assert {line.split(":")[1].strip() for line in found} >= {"document-title", "html-has-lang", "image-alt"}
