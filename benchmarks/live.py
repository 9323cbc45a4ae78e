"""Boundaries of the living page against Python's, and its time for a key, in the Chromium of this machine; Markdown.

    python benchmarks/live.py FILE... [--bytes 10000] [--typed 1000] [--keys 20]

Each FILE is segmented by the model that `hnet segment` takes for it. The page of its beginning is opened, its
boundaries are compared with Python's, position by position and stage by stage, and keys are typed at the start, in the
middle and at the end of a shorter beginning. The time of a key is processor time of the page's thread (script, layout,
painting) to the first colours and to all of them, without that of an empty command: medians. Aims: 99.9% of the
positions, and 16 ms a key.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
from itertools import accumulate, compress
from pathlib import Path

from playwright.sync_api import CDPSession, Page, sync_playwright

from hnet_cli.cli.segment import model_for, readable_sources
from hnet_cli.inference.intake import Intake
from hnet_cli.inference.segment import boundaries, segment

KEY = """([at, letter]) => {
  const text = document.querySelector("#text");
  window.held = [];
  window.later ??= window.setTimeout;
  window.setTimeout = (work, _, ...given) => held.push([work, given]);
  text.setRangeText(letter, at, at, "end");
  text.dispatchEvent(new Event("input"));
  text.getBoundingClientRect();
}"""
"""Type a letter and lay the page out; what the page leaves for later is held back."""
REST = """() => {
  window.setTimeout = later;
  for (const [work, given] of held) later(work, 0, ...given);
}"""
CHUNKS = "[chunks.known.n, ...chunks.known.p.map((row) => row.map((p) => !Number.isNaN(p)))]"
"""Sizes of the chunks, and for each stage whether one of its chunks begins there."""


def fill(page: Page, text: str) -> None:
    """Put a text into the page and wait for its chunks."""
    page.fill("#text", text)
    page.wait_for_selector("body[data-state=done]", timeout=300_000)


def milliseconds(session: CDPSession) -> float:
    """Processor time of the page's thread so far."""
    metrics = session.send("Performance.getMetrics")["metrics"]
    return next(1000 * metric["value"] for metric in metrics if metric["name"] == "TaskDuration")


def typed(page: Page, session: CDPSession, at: int, letter: str) -> tuple[float, float]:
    """Milliseconds of a key until the first colours, and until all; without what a command to the browser costs."""
    begin = milliseconds(session)
    page.evaluate("() => {}", [at, letter])
    before = milliseconds(session)
    page.evaluate(KEY, [at, letter])
    first = milliseconds(session)
    page.evaluate(REST)
    page.wait_for_selector("body[data-state=done]")
    return first - 2 * before + begin, milliseconds(session) - 2 * before + begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+")
    parser.add_argument("--bytes", type=int, default=10_000)
    parser.add_argument("--typed", type=int, default=1000)
    parser.add_argument("--keys", type=int, default=20)
    given = parser.parse_args()
    print("| model | page kB | bytes | as Python's | differ | start ms | all | middle | all | end | all |")
    print("|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|")
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for file in given.files:
            model, modality = model_for([file], None, None, None, "cpu")
            sources = readable_sources([file], modality, None, Intake())
            (first,) = segment(model, sources, modality, format="live", max_bytes=given.bytes, label=model.label)
            path = Path(folder, "page.html")
            path.write_text(first, encoding="utf-8")
            page = browser.new_page()
            session = page.context.new_cdp_session(page)
            session.send("Performance.enable", {"timeDomain": "threadTicks"})
            page.goto(path.as_uri())
            page.wait_for_selector("body[data-state=done]", timeout=300_000)
            text = page.input_value("#text")
            data = text.encode()
            sizes, *stages = page.evaluate(CHUNKS)
            places = [0, *accumulate(sizes)]
            differ = [
                len(set(compress(places, begins)) ^ set(boundaries(model, data, stage)[0].tolist()))
                for stage, begins in enumerate(stages)
            ]
            short = data[: given.typed].decode(errors="ignore")
            cells = [model.label, f"{path.stat().st_size / 1000:.0f}", f"{len(data):,}"]
            cells += [f"{1 - max(differ) / len(data):.2%}", " + ".join(map(str, differ))]
            for place in (0, len(short) // 2, len(short)):
                fill(page, short)
                found = [typed(page, session, place + n, "ACGT"[n % 4]) for n in range(given.keys)]
                cells += [f"{statistics.median(times):.1f}" for times in zip(*found[2:], strict=True)]
            print(f"| {' | '.join(cells)} |", flush=True)
            page.close()


if __name__ == "__main__":
    main()
