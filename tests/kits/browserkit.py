"""Pages in the Chromium of this machine, without a driver: a window of frames, one page each, which report to it."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "chromium-headless-shell")
CHROME = next(filter(None, map(shutil.which, NAMES)), None)
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--virtual-time-budget=5000"),
)
PLACE = "position:fixed;top:0;left:0;height:600px;border:0"
WIDTHS = (390, 1000, 1400)
PROBE = (Path(__file__).parent / "browser_probe.js").read_text()


def _run(folder: Path, *arguments: str) -> bytes:
    command = [CHROME or "", *FLAGS, f"--user-data-dir={folder / 'profile'}", *arguments]
    return subprocess.run(command, capture_output=True, timeout=120, check=True).stdout


def visit(folder: Path, pages: Mapping[str, str], widths: Mapping[str, Sequence[int]]) -> list[dict[str, Any]]:
    """Report of `browser_probe.js` on each page at its widths, or else at `WIDTHS`. Its script stands before a page's
    policy, which binds all that follows."""
    frames = []
    for n, (name, page) in enumerate(pages.items()):
        probe = f'<meta charset="utf-8"><script>const page = {json.dumps(name)};{PROBE}</script>'
        (folder / f"{n}.html").write_text(page.replace("<html", f"{probe}<html", 1))
        for width in widths.get(name, WIDTHS):
            frames.append(f'<iframe src="{n}.html" style="{PLACE};width:{width}px"></iframe>')
    script = "onmessage = ({data}) => document.querySelector('pre').append(JSON.stringify(data) + '\\n')"
    window = folder / "window.html"
    window.write_text(f"<!doctype html><pre></pre><script>{script}</script>{''.join(frames)}")
    dom = _run(folder, "--window-size=1400,600", "--dump-dom", window.as_uri()).decode()
    (told,) = re.findall("<pre>(.*?)</pre>", dom, re.DOTALL)
    return [json.loads(line) for line in html.unescape(told).strip("\n").split("\n")]


def printed(folder: Path, page: str) -> tuple[int, list[int]]:
    """Number of sheets of a printed page, and of the changes of colour in each drawing of the file."""
    (folder / "page.html").write_text(page)
    _run(folder, f"--print-to-pdf={folder / 'page.pdf'}", (folder / "page.html").as_uri())
    file = (folder / "page.pdf").read_bytes()
    streams = re.findall(rb"stream\r?\n(x.*?)\r?\nendstream", file, re.DOTALL)
    return len(re.findall(rb"/Type /Page\b", file)), [
        zlib.decompressobj().decompress(stream).count(b" gs") for stream in streams
    ]
