"""Fetch the sources of a starter from Debian packages, as text files in one folder per family.

    python fetch.py text corpus/text
    python fetch.py code corpus/code
    python fetch.py chinese corpus/chinese

Needs `apt-get` and `dpkg-deb` of a Debian or Ubuntu machine, no root. Files of held-out families go to `heldout/`, all
others to `train/`; packages that the mirror does not have are named and skipped.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import re
import shutil
import subprocess
import sys
import tempfile
from html.parser import HTMLParser
from pathlib import Path

import yaml

SOURCES = Path(__file__).parent / "sources.yaml"
LARGEST = 4_000_000
"""Bytes of the largest file that is read: longer ones are tables and indexes."""
CRLF_ONE_IN = 8
"""Every so many files of text get the line ends of Windows."""
BLOCKS = {"p", "div", "h1", "h2", "h3", "h4", "h5", "h6", "li", "dt", "dd", "tr", "pre", "table", "ul", "ol", "dl"}
BLOCKS |= {"section", "article", "blockquote", "br", "hr"}
SKIPPED = {"script", "style", "nav", "head", "footer", "svg", "form", "button"}
VOID = {"br", "hr", "img", "input", "link", "meta"}


class Text(HTMLParser):
    """Text of an HTML page: a line per block, `#` before headings, `-` before items, ` | ` between cells."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []
        self.skipping: list[str] = []
        self.pre = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in VOID:
            self.parts.append("\n" if tag in BLOCKS else "")
            return
        if tag in SKIPPED or self.skipping:
            self.skipping.append(tag)
        elif tag in BLOCKS:
            heading = re.fullmatch("h([1-6])", tag)
            self.parts.append("\n" + ("#" * int(heading[1]) + " " if heading else "- " if tag == "li" else ""))
        elif tag in ("td", "th"):
            self.parts.append(" | ")
        self.pre += tag == "pre"

    def handle_endtag(self, tag: str) -> None:
        if self.skipping:
            while self.skipping and self.skipping.pop() != tag:
                pass
        elif tag in BLOCKS:
            self.parts.append("\n\n" if tag in ("p", "pre", "table") or tag[0] == "h" else "\n")
        self.pre = max(0, self.pre - (tag == "pre"))

    def handle_data(self, data: str) -> None:
        if not self.skipping:
            self.parts.append(data if self.pre else re.sub(r"\s+", " ", data))

    def text(self) -> str:
        return re.sub(r"\n{3,}", "\n\n", re.sub(r"[ \t]+\n", "\n", "".join(self.parts))).strip() + "\n"


def roff(source: str) -> str:
    """Text of a manual page: macros and fonts removed, a heading in capitals."""
    lines = []
    for line in source.splitlines():
        if heading := re.match(r"\.S[HS]\s+(.*)", line):
            lines += ["", heading[1].strip('"')]
        elif not line.startswith(('.\\"', "'\\\"")):
            lines.append(re.sub(r"^\.(?:[A-Za-z]{1,3})\b\s*", "", line))
    text = re.sub(r"\\f(?:\[[^]]*\]|\(..|.)", "", "\n".join(lines))
    return re.sub(r"\\(?:\((?:aq|cq)|[-e&|^%])", lambda m: {"\\-": "-", "\\e": "\\"}.get(m[0], ""), text).strip() + "\n"


def contents(path: Path) -> str | None:
    """Text of a file by its kind; None if it is not text in UTF-8, or too large."""
    raw, name = path.read_bytes(), path.name
    if name.endswith(".gz"):
        raw, name = gzip.decompress(raw), name[:-3]
    if not 200 <= len(raw) <= LARGEST or b"\0" in raw:
        return None
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        return None
    if name.endswith((".html", ".htm", ".xhtml")):
        parser = Text()
        parser.feed(text)
        return parser.text()
    return roff(text) if re.search(r"\.[1-9][a-z]*$", name) else text


def unpacked(package: str, folder: Path) -> bool:
    """Download a package and unpack its files into `folder`; False if there is none of that name."""
    with tempfile.TemporaryDirectory() as at:
        found = subprocess.run(["apt-get", "-q", "download", package], cwd=at, capture_output=True, text=True)
        archives = list(Path(at).glob("*.deb"))
        if found.returncode or not archives:
            print(f"{package}: not found, skipped", file=sys.stderr)
            return False
        subprocess.run(["dpkg-deb", "-x", archives[0], folder], check=True)
    return True


def fetch(kind: str, out: Path) -> None:
    """Write the files of every family of a kind, each content once."""
    seen: set[bytes] = set()
    for family, source in yaml.safe_load(SOURCES.read_text())[kind].items():
        target = out / ("heldout" if source.get("heldout") else "train") / family
        if target.exists():
            continue
        kept, made = 0, target.with_name(f".{family}")
        shutil.rmtree(made, ignore_errors=True)
        with tempfile.TemporaryDirectory() as folder:
            for package in source["packages"]:
                unpacked(package, Path(folder))
            for archive in [path for path in Path(folder).rglob("*") if path.name in source.get("archives", ())]:
                shutil.unpack_archive(archive, archive.parent)
            for path in sorted(Path(folder).rglob("*")):
                inside = path.relative_to(folder).as_posix()
                if not path.is_file() or path.is_symlink() or not re.search(source["files"], inside):
                    continue
                text = contents(path)
                data = (text or "").encode()
                digest = hashlib.sha256(data).digest()
                if len(data) < 200 or digest in seen or kept > source.get("most", 20) * 1e6:
                    continue
                seen.add(digest)
                if kind == "text" and digest[0] % CRLF_ONE_IN == 0:
                    data = data.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")
                name = made / (inside if kind == "code" else re.sub(r"[^\w.-]+", "_", inside)[-120:] + ".txt")
                name.parent.mkdir(parents=True, exist_ok=True)
                name.write_bytes(data)
                kept += len(data)
        if made.exists():
            made.rename(target)
        print(f"{family}: {kept:,} bytes of {', '.join(source['packages'])} ({source['licence']})", file=sys.stderr)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=["text", "code", "chinese"])
    parser.add_argument("out", type=Path)
    options = parser.parse_args()
    fetch(options.kind, options.out)
