"""The pages in real browsers: no error while they are used, nothing foreign runs, and their layout holds."""

import math
import socket

import pytest
from browserkit import CHROME, ENGINES, opens, printed, visit
from comparisonkit import told_of, whole
from foreignkit import chunks, pages, records, written

from hnet_cli.comparison import page as comparison_page
from hnet_cli.report import run_page

pytestmark = pytest.mark.slow
NAMES = ("fixed", *(f"model-{n}-of-a-name-that-is-long" for n in range(11)))


def fetching(server):
    """A text that would run a script or fetch an address if any of it were not text."""
    at = f"http://127.0.0.1:{server.getsockname()[1]}"
    return (
        f"</script></style></title><script>alert(1)</script><img src={at} onerror=alert(2)><svg onload=alert(3)>"
        f"<iframe src={at}></iframe><link rel=stylesheet href={at}><meta http-equiv=refresh content='0;url={at}'>"
        f'" onpointermove=alert(4) style="background:url({at})" <!--\u2028\u202e\ud800\''
    )


@pytest.fixture(scope="module", params=ENGINES)
def seen(request, tmp_path_factory):
    """Report of a browser by page, and whether anything was fetched."""
    if not opens(request.param):
        pytest.skip(f"no {request.param} opens a page on this machine")
    folder = tmp_path_factory.mktemp("browser")
    with socket.create_server(("127.0.0.1", 0)) as server:
        rows = {"one evaluation": records(30, 1), "one record": records(1, 0), "many": records(400, 40, 2, spike=200)}
        shown = {name: run_page.page(written(folder / name, row, samples=len(row) // 30)) for name, row in rows.items()}
        runs = {f"run-{n}": written(folder / f"{n}", records(9 + n, 3)) for n in range(30)}
        shown["no record"] = run_page.page(folder)
        shown["runs"] = run_page.comparison(runs, {"Figures": [["", *runs], ["state", *["finished"] * 30]]})
        told = told_of(*((name, n > 0, 2 + n / 50) for n, name in enumerate(NAMES)))
        shown["compare"] = comparison_page.page(whole(told))
        shown["chunks"] = chunks("Some words, שלום עולם, and a 世界.\n".encode() * 200)
        shown |= {"no chunks": chunks(b""), "none further": chunks(b"Some words.", further=math.nan)}
        foreign = {f"foreign {name}": page for name, page in pages(folder / "foreign", fetching(server)).items()}
        found = visit(folder, shown | foreign, {name: [1000] for name in foreign}, request.param)
        server.settimeout(0)
        with pytest.raises(BlockingIOError):
            server.accept()
    assert len(found) == 3 * len(shown) + len(foreign)
    return found


def test_no_page_fails_runs_or_fetches_anything_else(seen):
    for told in seen:
        assert told["errors"] == [], told["page"]
        assert told["requests"] == 0, told["page"]


def test_pages_fit_their_window(seen):
    for told in seen:
        assert told["overflow"] <= 0, told
        assert told["collisions"] == 0, told
        assert all(track >= 200 for track in told["tracks"]), told


def test_values_are_told_under_the_pointer(seen):
    for told in seen:
        assert all(told["tips"]), told
        if told["page"] in ("one evaluation", "one record", "many", "runs", "compare"):
            assert told["tips"], told["page"]
        if told["page"] == "runs":
            assert max(tip.count("\n") for tip in told["tips"]) <= 13


def test_one_evaluation_is_shown_at_a_time(seen):
    assert {told["frames"] for told in seen if told["page"] in ("one evaluation", "many")} == {1}
    assert all(told["painted"] for told in seen if told["page"] == "chunks" and told["width"] > 390)


@pytest.mark.skipif(CHROME is None, reason="there is no chromium or google-chrome on this machine")
def test_a_printed_text_is_coloured_to_its_end(tmp_path):
    sheets, colours = printed(tmp_path, chunks(b"Some words and more.\n" * 400))
    assert sheets > 5
    assert sum(count > 50 for count in colours) >= sheets - 1
