"""The page of `hnet play` in a browser: chunks follow what is typed, and the text over them lies as they do."""

import re
import subprocess
import sys

import pytest
from browserkit import CHROME

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROME is None, reason="there is no chromium or google-chrome on this machine"),
]
HOSTILE = "Tabs\tand <b>marks</b>, שלום, 👩‍👩‍👧, e\u0301, 世界和平 " + "long" * 40 + "\n\n  end  \n"


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    command = [sys.executable, "-m", "hnet_cli", "play", "starter:text", "starter:code", "--no-browser"]
    folder = tmp_path_factory.mktemp("play")
    process = subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, text=True)
    yield re.search(r"http://\S+", process.stderr.readline())[0]
    process.kill()
    process.wait()


@pytest.fixture(params=[(390, "light"), (1000, "dark"), (1400, "light")], ids=lambda param: f"{param[0]}-{param[1]}")
def page(browser, address, request):
    width, scheme = request.param
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page.faults = []
    page.on("pageerror", lambda error: page.faults.append(str(error)))
    page.on("console", lambda message: message.type == "error" and page.faults.append(message.text))
    page.goto(address)
    told(page)
    yield page
    assert page.faults == []
    page.close()


def told(page):
    """Wait until the models have told the chunks of the text as it is, and the page has drawn them."""
    size = len(page.input_value("#text").encode())
    for name in "ab" if page.locator("#beside").is_visible() else "a":
        page.locator(f"#figures-{name}", has_text=re.compile(rf"^{size:,} bytes.* ms$")).wait_for(timeout=60_000)


def drawn(page, name="a"):
    """The text of the chunks, without the hidden marks of line ends."""
    return page.locator(f"#{name}").evaluate(
        """block => { const copy = block.cloneNode(true); for (const mark of copy.querySelectorAll("u")) mark.remove();
        return [...copy.children].map(chunk => chunk.textContent).join(""); }"""
    )


def test_chunks_follow_what_is_typed(page):
    assert "token" not in page.url
    first = page.inner_text("#figures-a")
    page.locator("#text").press("Control+End")
    page.keyboard.type("It rained.")
    told(page)
    assert page.inner_text("#figures-a") != first
    assert drawn(page) == drawn(page, "b") == page.input_value("#text")
    assert re.search(r"At the cursor: bytes \d+ to \d+ .*p 0\.\d\d", page.inner_text("#here"))
    assert page.locator("#b .apart").count() > 0
    page.locator("#text").press("Control+Home")
    page.keyboard.press("Delete")
    told(page)
    assert drawn(page) == page.input_value("#text")


def test_text_lies_over_its_chunks(page):
    """Both break their lines alike: the last character of the text is where that of its chunks is."""
    page.fill("#text", HOSTILE * 3)
    told(page)
    assert drawn(page) == page.input_value("#text")
    boxes = [page.locator(f".editor > {each}").bounding_box() for each in (".chunks", "textarea")]
    assert boxes[0] == boxes[1]
    heights = page.locator("textarea").evaluate("field => [field.scrollHeight, field.clientHeight]")
    assert heights[0] <= heights[1] + 1
    overflow = page.locator("html").evaluate("root => root.scrollWidth - root.clientWidth")
    assert overflow <= 0


def test_lengths_examples_and_models(page):
    before = page.locator("#a span").count()
    page.locator("[name=length]").fill("15")
    page.locator("#figures-a", has_text=re.compile(r"of 1[4-9]\.\d bytes")).wait_for(timeout=60_000)
    assert page.locator("#a span").count() < before
    page.locator("[name=own]").check()
    page.locator("#examples button", has_text="chinese").click()
    assert page.locator("[name=a] option:checked").inner_text() == "starter:chinese"
    told(page)
    page.locator("[name=b]").select_option("")
    assert not page.locator("#beside").is_visible()
    page.locator("[name=a]").select_option(label="starter:dna")
    page.locator("#figures-a", has_text=re.compile(r"^2\d\d bytes")).wait_for(timeout=60_000)
    assert set(page.input_value("#text")) == set("ACGT")


def test_a_continuation_is_streamed_and_can_be_stopped(page):
    page.locator("[name=b]").select_option("")
    page.fill("#text", "The captain")
    page.locator("#text").press("Control+Enter")
    page.locator("#stop").wait_for(state="visible")
    page.locator("#stop").wait_for(state="hidden", timeout=120_000)
    continued = re.sub(r"\\x..", "?", page.input_value("#text"))  # a byte that cannot be shown
    assert 11 < len(continued.encode()) <= 11 + 200
    page.locator("#continue").click()
    page.keyboard.press("Escape")
    assert not page.locator("#stop").is_visible()


def test_an_example_ends_a_continuation_and_can_be_undone(page):
    page.locator("[name=b]").select_option("")
    page.locator("#text").press("Control+a")
    page.keyboard.type("Once upon")
    told(page)
    page.locator("#continue").click()
    while len(page.input_value("#text")) < 12:
        page.wait_for_timeout(20)
    page.locator("#examples button", has_text="code").click()
    example = page.input_value("#text")
    assert not page.locator("#stop").is_visible()
    told(page)
    page.wait_for_timeout(500)
    assert page.input_value("#text") == example
    page.locator("#text").press("Control+z")
    assert page.input_value("#text").startswith("Once upon")


def test_a_page_that_is_loaded_again_has_its_text(page):
    page.fill("#text", "Words of mine.")
    told(page)
    page.reload()
    told(page)
    assert page.input_value("#text") == "Words of mine."
    page.faults.clear()  # the address without its token is one that a browser complains of


def drop(page, name, data):
    page.locator("body").evaluate(
        """(body, [name, bytes]) => { const data = new DataTransfer();
        data.items.add(new File([new Uint8Array(bytes)], name));
        body.dispatchEvent(new DragEvent("drop", { bubbles: true, cancelable: true, dataTransfer: data })); }""",
        [name, list(data)],
    )


def test_a_file_is_dropped(page):
    drop(page, "a.txt", b"Words of a file.\r\n")
    page.locator("#figures-a", has_text=re.compile(r"^17 bytes")).wait_for(timeout=60_000)
    assert page.input_value("#text") == "Words of a file.\n"
    assert not page.locator("#notice").is_visible()


def test_what_a_dropped_file_lacks_is_said(page):
    drop(page, "long.txt", b"Some words. " * 2000)
    page.locator("#notice", has_text="The first 19,997 bytes of long.txt").wait_for(timeout=60_000)
    drop(page, "zeros.bin", bytes(5000))
    page.locator("#notice", has_text="binary").wait_for(timeout=60_000)
    told(page)
    assert page.input_value("#text").startswith("Some words.")
    page.locator("#text").press("End")
    page.keyboard.type("x")
    assert not page.locator("#notice").is_visible()
    page.faults.clear()  # a browser complains of answers that refuse
