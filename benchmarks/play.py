"""Time from a key to the colours of its chunks in `hnet play`, in the Chromium of this machine; a table in Markdown.

    python benchmarks/play.py [--bytes 1000] [--keys 30] [--models starter:text starter:code]

A text of so many bytes, the example of the model's modality again and again, is typed on to, a key at a time; the time
is that of the page itself: from the key, over the request and the model's pass, to the chunks in the document.
The median and the slowest of ten. Aim: a median of at most 150 ms for 1,000 bytes on one quiet core.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import statistics
import subprocess
import sys

from playwright.sync_api import Page, sync_playwright


def times(page: Page, model: str, size: int, keys: int) -> list[float]:
    """Milliseconds per key."""
    page.locator("[name=a]").select_option(label=model)
    example = page.locator("#text").input_value() or "A text. "
    page.locator("#text").fill((example * size).encode()[:size].decode(errors="ignore"))
    found = []
    for n in range(keys):
        wanted = len(page.input_value("#text").encode()) + (n > 0)
        if n:
            page.locator("#text").press("End")
            page.keyboard.type("ACGT"[n % 4])
        told = page.locator("#figures-a", has_text=re.compile(rf"^{wanted:,} bytes.* ms$"))
        told.wait_for()
        found.append(float(told.inner_text().rpartition("; ")[2].removesuffix(" ms").replace(",", "")))
    return found[1:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bytes", type=int, default=1000)
    parser.add_argument("--keys", type=int, default=30)
    parser.add_argument("--models", nargs="+", default=[f"starter:{m}" for m in ("text", "chinese", "code", "dna")])
    given = parser.parse_args()
    command = [sys.executable, "-m", "hnet_cli", "--threads", "1", "play", *given.models[:1], "--no-browser"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ)
    assert process.stderr is not None
    address = re.search(r"http://\S+", process.stderr.readline())
    assert address is not None
    print("| model | median ms | slowest of ten |\n|---|---|---|")
    try:
        with sync_playwright() as driver:
            browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
            page = browser.new_page()
            page.goto(address[0])
            for model in given.models:
                found = times(page, model, given.bytes, given.keys + 1)
                slow = statistics.quantiles(found, n=10)[-1]
                print(f"| {model} | {statistics.median(found):.0f} | {slow:.0f} |", flush=True)
    finally:
        process.kill()


if __name__ == "__main__":
    main()
