"""Pages in the browsers of this machine, without a driver: a window of frames, one page each, which report to it."""

from __future__ import annotations

import http.server
import json
import os
import queue
import re
import shutil
import signal
import subprocess
import tempfile
import threading
import zlib
from collections.abc import Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "chromium-headless-shell")
CHROME = next(filter(None, map(shutil.which, NAMES)), None)
MINI = next(map(str, Path("/usr/lib").glob("*/webkit2gtk-*/MiniBrowser")), None)
ENGINES = {
    "chromium": CHROME,
    "firefox": shutil.which("firefox") or shutil.which("firefox-esr"),
    "webkit": MINI and shutil.which("xvfb-run") and MINI,
}
"""Program of each engine, if this machine has it. WebKit's small browser needs a screen, if only a pretended one."""
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),
)
QUIET = (
    *("browser.aboutwelcome.enabled", "browser.shell.checkDefaultBrowser", "app.update.enabled"),
    *("datareporting.policy.dataSubmissionEnabled", "network.captive-portal-service.enabled"),
)
"""Firefox's preferences that a fresh profile has on, and that open pages or ask servers."""
QUICK = {"WEBKIT_DISABLE_COMPOSITING_MODE": "1", "NO_AT_BRIDGE": "1"}
PLACE = "position:fixed;top:0;left:0;height:600px;border:0"
WIDTHS = (390, 1000, 1400)
PROBE = (Path(__file__).parent / "browser_probe.js").read_text()


def _run(folder: Path, *arguments: str) -> bytes:
    command = [CHROME or "", *FLAGS, f"--user-data-dir={folder / 'profile'}", *arguments]
    return subprocess.run(command, capture_output=True, timeout=120, check=True).stdout


def _window(engine: str, folder: Path, address: str) -> list[str]:
    """Command that opens an address in a window that nobody sees."""
    profile = folder / f"profile-{engine}"
    profile.mkdir()
    match engine:
        case "firefox":
            (profile / "user.js").write_text("".join(f'user_pref("{name}", false);\n' for name in QUIET))
            return [ENGINES[engine], "--headless", "--no-remote", "--profile", str(profile), address]
        case "webkit":
            return ["xvfb-run", "-a", "-s", "-screen 0 1600x900x24", ENGINES[engine], "--geometry=1500x800", address]
    return [ENGINES[engine], *FLAGS, f"--user-data-dir={profile}", "--window-size=1400,600", address]


def visit(
    folder: Path, pages: Mapping[str, str], widths: Mapping[str, Sequence[int]], engine: str = "chromium"
) -> list[dict[str, Any]]:
    """Report of `browser_probe.js` on each page at its widths, or else at `WIDTHS`. Its script stands before a page's
    policy, which binds all that follows."""
    frames = []
    for n, (name, page) in enumerate(pages.items()):
        probe = f'<meta charset="utf-8"><script>const page = {json.dumps(name)};{PROBE}</script>'
        (folder / f"{n}.html").write_text(page.replace("<html", f"{probe}<html", 1), encoding="utf-8")
        for width in widths.get(name, WIDTHS):
            frames.append(f'<iframe src="{n}.html" style="{PLACE};width:{width}px"></iframe>')
    script = "onmessage = ({data}) => fetch('/', {method: 'POST', body: JSON.stringify(data)})"
    (folder / "window.html").write_text(f"<!doctype html><script>{script}</script>{''.join(frames)}")
    told: queue.Queue[bytes] = queue.Queue()

    class Answers(http.server.SimpleHTTPRequestHandler):
        def do_POST(self) -> None:
            told.put(self.rfile.read(int(self.headers["content-length"])))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: Any) -> None: ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Answers, directory=folder)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        command = _window(engine, folder, f"http://127.0.0.1:{server.server_port}/window.html")
        log = (folder / f"{engine}.log").open("wb")
        process = subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | QUICK, start_new_session=True)
        try:
            return [json.loads(told.get(timeout=120)) for _ in frames]
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            server.shutdown()


@cache
def opens(engine: str) -> bool:
    """Tell whether this machine has an engine that opens an empty page; not every container lets it."""
    if ENGINES[engine] is None:
        return False
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        try:
            return len(visit(Path(folder), {"empty": "<html><body></body></html>"}, {"empty": [390]}, engine)) == 1
        except queue.Empty:
            return False


def printed(folder: Path, page: str) -> tuple[int, list[int]]:
    """Number of sheets of a printed page, and of the changes of colour in each drawing of the file."""
    (folder / "page.html").write_text(page)
    _run(folder, f"--print-to-pdf={folder / 'page.pdf'}", (folder / "page.html").as_uri())
    file = (folder / "page.pdf").read_bytes()
    streams = re.findall(rb"stream\r?\n(x.*?)\r?\nendstream", file, re.DOTALL)
    return len(re.findall(rb"/Type /Page\b", file)), [
        zlib.decompressobj().decompress(stream).count(b" gs") for stream in streams
    ]
