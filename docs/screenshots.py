"""Take the pictures of pages in docs/: segment.png, live.png, play.png and, of a run, report.png.

    python docs/screenshots.py [--run RUN]

Needs the package playwright and Chromium. The models are the starters.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import Browser, sync_playwright

DOCS = Path(__file__).parent
HNET = [sys.executable, "-m", "hnet_cli", "-q"]
TEXT = """The lighthouse keeper climbed the narrow stairs every evening, counting the steps under his breath. "Nobody
remembers," he said, "how many ships have passed here without so much as a whistle." The wind answered for them.

The function returns a list of all files in the directory, in the order of their names. If there are none, the list
is empty.
"""


def shot(browser: Browser, address: str, name: str, height: int = 760) -> None:
    page = browser.new_page(viewport={"width": 1200, "height": height})
    page.goto(address)
    page.wait_for_timeout(3000)
    page.screenshot(path=DOCS / name)
    print(f"docs/{name}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, help="a run whose report.html is drawn")
    run = parser.parse_args().run
    chrome = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chrome)
        file = Path(folder, "evening.txt")
        file.write_text(TEXT, encoding="utf-8")
        for name, form in (("segment", "html"), ("live", "live")):
            out = file.with_name(f"{name}.html")
            command = [*HNET, "segment", str(file), "--model", "starter:text", "--format", form, "--out", str(out)]
            subprocess.run(command, check=True)
            shot(browser, out.as_uri(), f"{name}.png")
        command = [*HNET[:-1], "play", "starter:text", "starter:novels", str(file), "--no-browser"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as server:
            assert server.stdout is not None
            address = next(found for line in server.stdout if (found := re.search(r"http://127\.0\.0\.1\S+", line)))
            shot(browser, address.group(), "play.png")
            server.terminate()
        if run:
            shot(browser, (run / "report.html").resolve().as_uri(), "report.png", 1000)
        browser.close()


if __name__ == "__main__":
    main()
