"""The script of reports in a browser: one cursor over all charts, zoom, curves to hide, tables to sort, a run that
lives."""

import re
import time

import pytest
from axe import looks
from browserkit import CHROME
from comparisonkit import told_of, whole
from foreignkit import records, written

from hnet_cli.comparison import page as comparison_page
from hnet_cli.report import run_page
from hnet_cli.storage import FolderLock

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROME is None, reason="there is no chromium or google-chrome on this machine"),
]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    run = written(tmp_path_factory.mktemp("report") / "run", records(100, 10, stages=2), samples=3)
    run_page.write(run)
    return run


@pytest.fixture
def page(browser, run):
    """The report of a run of 100 kB."""
    pages = looks(browser, (run / "report.html").as_uri(), [1000], ["light"])
    page, _ = next(pages)
    yield page
    assert list(pages) == []


def chart(page, title):
    return page.locator("figure", has=page.locator("b", has_text=re.compile(f"^{title}$")))


def plot(page, title):
    return chart(page, title).locator(".plot.by-bytes")


def values(page, title):
    """Value of each entry of a legend."""
    entries = chart(page, title).locator(".legend li", has=page.locator(".now"))
    names, told = (entries.locator(f".{css}").all_inner_texts() for css in ("name", "now"))
    return dict(zip(names, map(float, told), strict=True))


def hover(page, title, share):
    plot(page, title).scroll_into_view_if_needed()
    box = plot(page, title).bounding_box()
    page.mouse.move(box["x"] + share * box["width"], box["y"] + box["height"] / 2)


def drag(page, title, start, end):
    hover(page, title, start)
    page.mouse.down()
    hover(page, title, (start + end) / 2)
    hover(page, title, end)
    page.mouse.up()


def view(page, title):
    return [float(part) for part in plot(page, title).locator("svg").get_attribute("viewBox").split()]


def test_one_cursor_tells_the_values_of_every_chart(page):
    assert values(page, "Bits per byte") == {"training": 2.06, "validation": 2.15}
    hover(page, "Throughput", 0.2)
    assert values(page, "Bits per byte") == pytest.approx({"training": 2.3, "validation": 2.35}, abs=0.005)
    assert values(page, "Bytes per chunk, stage 1")["training"] == pytest.approx(3.95, abs=0.01)
    assert re.fullmatch(
        r"p > 0.5: \d+.\d%", chart(page, "Boundary probability p, stage 0").locator(".now").inner_text()
    )
    assert page.locator(".tip").inner_text().startswith("step 20 · 20 kB · 40 s")
    assert page.locator(".plot.by-bytes .hair:visible").count() == page.locator(".plot.by-bytes").count()
    page.mouse.move(1, 1)
    assert values(page, "Bits per byte")["training"] == 2.06
    assert not page.locator(".tip").is_visible()


def test_a_range_is_seen_closer_in_every_chart_and_left_again(page):
    drag(page, "Throughput", 0.5, 0.6)
    assert view(page, "Bits per byte")[0::2] == pytest.approx([500, 100], abs=3)
    heights = view(page, "Bits per byte")
    assert heights[3] < 200  # of what is in view
    words = plot(page, "Bits per byte").locator(".x:visible").all_inner_texts()
    assert {"50 kB", "60 kB"} & {*words}
    assert len(words) == len({*words}) >= 3
    page.reload()
    assert view(page, "Gradient norm")[0::2] == pytest.approx([500, 100], abs=3)
    page.get_by_label("training time").check(force=True)
    by_time = chart(page, "Bits per byte").locator(".plot.by-time svg").get_attribute("viewBox")
    assert float(by_time.split()[2]) == pytest.approx(100, abs=4)
    page.get_by_label("bytes seen").check(force=True)
    plot(page, "Throughput").dblclick()
    assert view(page, "Bits per byte") == [0, 0, 1000, 1000]
    for name in ("Zoom in", "Zoom in"):
        page.get_by_label(name).click()
    assert view(page, "Bits per byte")[2] == pytest.approx(250)
    page.get_by_role("button", name="Whole range").click()
    assert view(page, "Bits per byte") == [0, 0, 1000, 1000]
    assert page.get_by_role("button", name="Whole range").is_disabled()


def test_everything_is_there_for_the_keyboard(page):
    plot(page, "Bits per byte").focus()
    page.keyboard.press("Home")
    for _ in range(3):
        page.keyboard.press("Shift+ArrowRight")
    assert "step 30" in plot(page, "Bits per byte").get_attribute("aria-valuetext")
    assert "training: 2.2" in plot(page, "Bits per byte").get_attribute("aria-valuetext")
    assert page.locator(".tip").is_visible()
    page.keyboard.press("+")
    page.keyboard.press("+")
    assert view(page, "Throughput")[2] == pytest.approx(250)
    for _ in range(30):
        page.keyboard.press("Shift+ArrowRight")
    assert view(page, "Throughput")[0] == pytest.approx(750)
    page.keyboard.press("Escape")
    assert view(page, "Throughput") == [0, 0, 1000, 1000]


def test_curves_are_hidden_and_stay_so(page):
    button = chart(page, "Bits per byte").get_by_role("button", name="training")
    button.click()
    assert button.get_attribute("aria-pressed") == "false"
    button.evaluate("(button) => { button.click(); button.click(); }")  # the second is stored later, or at the reload
    page.reload()
    assert button.get_attribute("aria-pressed") == "false"
    shown = plot(page, "Bits per byte").locator("path[data-n='0']")
    assert shown.count() == 2  # the curve, and that of single batches
    assert not shown.first.is_visible()
    assert (
        chart(page, "Bytes per chunk, stage 0").get_by_role("button", name="training").get_attribute("aria-pressed")
        == "true"
    )
    hover(page, "Bits per byte", 0.5)
    assert "training" not in page.locator(".tip").inner_text()
    button.click()
    assert view(page, "Bits per byte") == [0, 0, 1000, 1000]


def test_tables_are_sorted_and_a_model_is_hidden_in_every_chart(browser, tmp_path):
    names = ("fixed", 2.0), ("learned", 1.9), ("pool", 11.25)
    told = whole(told_of(*((name, name == "learned", bpb) for name, bpb in names)))
    (tmp_path / "compare.html").write_text(comparison_page.page(told))
    pages = looks(browser, (tmp_path / "compare.html").as_uri(), [1000], ["light"])
    page, _ = next(pages)
    assert (
        page.locator("h1 ~ *").nth(1).inner_text().startswith("The H-Net wins: learned needs 0.100 bits per byte less")
    )
    table = page.locator("table").first
    head = table.locator("th", has_text=re.compile("^bits per byte"))
    for order, wanted in (("ascending", ["learned", "fixed", "pool"]), ("descending", ["pool", "fixed", "learned"])):
        head.get_by_role("button").click()
        assert head.get_attribute("aria-sort") == order
        assert [cell.split()[0] for cell in table.locator("td:first-child").all_inner_texts()[-3:]] == wanted
    assert table.locator("tr", has_text="learned").locator(".mark").inner_text() == "H-Net"
    assert table.locator(".mark").count() == 1
    assert list(pages) == []


def test_the_page_of_a_run_that_lives_follows_it_and_can_be_stopped(browser, run):
    with FolderLock(run):
        run_page.write(run, every=1.0)
        page = browser.new_page()
        page.goto((run / "report.html").as_uri())
        page.get_by_label("Zoom in").click()
        with (run / "metrics.jsonl").open("a") as file:
            file.write('{"step": 200, "bytes": 200000, "bpb": 2.0}\n')
        run_page.write(run, every=1.0)
        page.locator(".tiles", has_text="200").wait_for(timeout=20_000)
        assert not page.get_by_role("button", name="Whole range").is_disabled()
        page.get_by_role("button", name="Stop following").click()
        page.get_by_role("button", name="Follow the run").click()
    run_page.write(run)
    page.locator(".life").wait_for(state="detached", timeout=20_000)
    assert page.locator(".badge").first.inner_text() in ("stopped", "finished")
    page.close()


def test_a_run_that_died_without_a_word_is_not_said_to_live(browser, run):
    with FolderLock(run):
        run_page.write(run, every=1.0)
    text = (run / "report.html").read_text()
    (run / "report.html").write_text(re.sub(r'data-written="[\d.]+"', f'data-written="{time.time() - 3000:.1f}"', text))
    page = browser.new_page()
    page.goto((run / "report.html").as_uri())
    assert page.locator(".life").inner_text().startswith("Nothing new for 50.0 min: the run may have ended")
    page.close()
