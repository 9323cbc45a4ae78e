"""The page of `hnet segment` in a browser: no violation of accessibility, and every part of it works."""

import re
from importlib.util import find_spec

import axe
import pytest

from hnet_cli.cli.app import run
from hnet_cli.modality import get

pytestmark = axe.needed
GFF = "".join(
    f"one\t.\t{kind}\t{start}\t{end}\t.\t{strand}\t{phase}\t{names}\n"
    for kind, start, end, strand, phase, names in (
        ("gene", 20, 130, "+", ".", "ID=g1;Name=alpha"),
        ("CDS", 30, 110, "+", "0", "ID=c1;Parent=g1"),
        ("gene", 100, 210, "-", ".", "ID=g2;Name=beta"),
    )
)
WINDOWS = "".join(f"line {n}:\tpage {n}\r\r\n\u202e é\x85\r\n\r\n" for n in range(20)).encode()
INPUTS = {
    "text": ("text.txt", ["--model", "starter:novels"]),
    "nested": ("text.txt", []),
    "chinese": ("chinese.txt", []),
    "code": ("code.py", []),
    "dna": ("dna.fa", ["--annotation", "genes.gff"]),
    "windows": ("windows.txt", ["--model", "starter:novels"]),
    "beside": ("text.txt", ["--model", "starter:novels", "--compare", "starter:code"]),
    "rows beside": ("dna.fa", ["--compare", "starter:text", "--annotation", "genes.gff"]),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("segment")
    for name in ("text", "chinese", "code"):
        (folder / INPUTS[name][0]).write_text(get(name).example * 6 + "\n")
    (folder / "windows.txt").write_bytes(WINDOWS)
    (folder / "dna.fa").write_text(f">one\n{get('dna').example}\n")
    (folder / "genes.gff").write_text(GFF)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name, (file, options) in INPUTS.items():
            arguments = [file, *options, "--device", "cpu", "--format", "html", "--out", f"{name}.html"]
            arguments += [] if "--model" in options else ["--model", f"starter:{file.split('.')[0]}"]
            assert run(["segment", *arguments]) == 0
    return folder


@pytest.fixture
def opened(browser, folder):
    page = browser.new_page(viewport={"width": 1400, "height": 900})
    faults = []
    page.on("pageerror", lambda error: faults.append(str(error)))

    def visit(name):
        page.goto((folder / f"{name}.html").as_uri())
        page.locator("#mean:not(:empty)").wait_for()
        return page

    yield visit
    page.close()
    assert faults == []


def without(place, selector):
    """The text of an element but for what a selector finds in it."""
    return place.evaluate(
        """(place, selector) => { const copy = place.cloneNode(true);
        for (const br of copy.querySelectorAll("br")) br.append("\\n");
        for (const each of copy.querySelectorAll(selector)) each.remove(); return copy.textContent; }""",
        selector,
    )


@pytest.mark.parametrize("name", INPUTS)
def test_axe_finds_nothing(browser, folder, name):
    found = []
    for page, look in axe.looks(browser, (folder / f"{name}.html").as_uri()):
        page.locator("#mean:not(:empty)").wait_for()
        page.focus("#reader")
        page.keyboard.press("ArrowRight")
        assert page.locator(".tip").is_visible()
        found += [f"{look}: {each}" for each in axe.violations(page)]
        assert page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth") <= 0, look
    assert found == []


def test_chunks_are_reached_by_keys_and_told(opened):
    page = opened("text")
    page.focus("#reader")
    told, text = [], ""
    for _ in range(12):
        page.keyboard.press("ArrowRight")
        told.append(page.inner_text(".tip"))
        text += without(page.locator(".here"), "u")
    assert get("text").example.startswith(text)
    places = [re.search(r"bytes ([\d,]+) to ([\d,]+)", each).groups() for each in told]
    assert [end for _, end in places[:-1]] == [start for start, _ in places[1:]]
    assert all("bits" in each for each in told)
    letters = page.locator(".tip .bytes span").all_inner_texts()
    assert "".join(letters).replace("␣", " ") == page.locator(".here").inner_text().replace("↵", "")
    page.keyboard.press("ArrowLeft")
    assert page.inner_text(".tip") == told[-2]
    page.keyboard.press("Escape")
    assert not page.locator(".tip").is_visible()


def test_line_ends_are_marked_and_lines_have_their_places(opened):
    """Also beside escapes, whose letters say nothing of how many bytes they stand for."""
    page = opened("windows")
    starts = [0] + [at + 1 for at, byte in enumerate(WINDOWS[:-1]) if byte == ord("\n")]
    assert page.locator(".at").evaluate_all("all => all.map(e => e.dataset.at)") == [f"{start:,}" for start in starts]
    reader = page.locator("#reader .chunks")
    text = without(reader, "u, .at")
    assert text.replace("\r", "").split("\n")[:4] == ["line 0:\tpage 0", "\\u202e é\\x85", "", "line 1:\tpage 1"]
    assert "".join(reader.locator("u").all_inner_texts()) == 20 * "→␍␍↵␍↵␍↵"
    assert "x0d" not in page.inner_text("body")


def test_figures_follow_the_slider(opened):
    page = opened("text")
    before = page.locator(".told").inner_text()
    page.locator("[name=least]").fill("51")
    page.locator("[name=least]").fill("50")
    page.wait_for_timeout(500)
    assert page.locator(".told").inner_text() == before  # the script counts as Python does
    page.locator("[name=least]").fill("80")
    page.locator(".chunks-of", has_text=re.compile(f"^{page.locator('.chunks span').count()}$")).wait_for()
    assert page.locator(".told").inner_text() != before
    size = len((get("text").example * 6 + "\n").encode())
    mean = size / int(page.inner_text(".chunks-of").replace(",", ""))
    assert page.inner_text("#mean") == f"{mean:.2f} bytes a chunk"


def test_rows_have_sixty_bases_and_their_features(opened):
    page = opened("dna")
    assert page.locator(".at").evaluate_all("all => all.map(e => e.dataset.at)") == ["1", "61", "121", "181"]
    rows = without(page.locator("#reader .chunks"), ".at").split("\n")
    assert "".join(rows) == get("dna").example
    assert [len(row) for row in rows[:3]] == [60, 60, 60]
    assert page.locator(".at small").all_inner_texts()[:2] == ["alpha →", "alpha →"]
    assert {"← beta"} <= set(page.locator(".at small").all_inner_texts())
    ends = page.evaluate(
        """() => { const row = document.querySelectorAll(".at")[1];
        const range = document.createRange(), text = document.createTreeWalker(document.querySelector(".chunks"), 4);
        let base = 0, node;  // the coding sequence ends with base 110, which is the fiftieth of the second row
        while ((node = text.nextNode())) {
          if (node.parentNode.closest(".at")) continue;
          if (base + node.length >= 110) { range.setStart(node, 109 - base); range.setEnd(node, 110 - base); break; }
          base += node.length;
        }
        return [row.querySelector(".CDS").getBoundingClientRect().right, range.getBoundingClientRect().right]; }"""
    )
    assert ends[0] == pytest.approx(ends[1], abs=1)
    page.focus("#reader")
    for _ in range(9):
        page.keyboard.press("ArrowRight")
    assert "gene alpha →" in page.inner_text(".tip")
    page.set_viewport_size({"width": 390, "height": 800})
    page.locator(".at[data-at='31']").wait_for(state="attached")


def test_differences_are_marked_and_reached(opened):
    page = opened("beside")
    both, alone, there = (
        int(page.inner_text(f"#beside .{name}").replace(",", "")) for name in ("both", "alone", "there")
    )
    mine, other = page.locator(".pair > :first-child"), page.locator(".pair > .other")
    assert both + alone == mine.locator("span").count()
    assert both + there == other.locator("span").count()
    assert (mine.locator(".apart").count(), other.locator(".apart").count()) == (alone, there)
    assert min(both, alone, there) > 0
    seen = set()
    page.focus("#reader")
    for _ in range(8):
        page.keyboard.press("n")
        seen.add(page.inner_text(".tip").split("\n")[1])
    assert len(seen) > 3
    page.keyboard.press("p")
    assert page.locator(".here").count() == 1
    page.locator("[data-go='1']").click()
    assert page.locator(".here").count() == 1


@pytest.mark.skipif(find_spec("igv_notebook") is None, reason="igv-notebook is not installed")
def test_igv_draws_its_tracks_without_a_network(browser, folder, monkeypatch):
    monkeypatch.chdir(folder)
    line = "segment dna.fa --model starter:dna --annotation genes.gff --format igv --out igv.html"
    assert run([*line.split(), "--device", "cpu"]) == 0
    page, asked, faults = browser.new_page(), [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.goto((folder / "igv.html").as_uri())
    for name in ("genes", "chunks", "p of boundaries"):
        page.locator("#igv .igv-track-label", has_text=name).wait_for()
    assert page.locator("#igv input[type=text]").first.input_value().startswith("one:")
    assert (len(asked), faults) == (1, [])
    page.close()
