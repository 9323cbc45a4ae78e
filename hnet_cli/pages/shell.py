"""The shell of the HTML pages: one self-contained file each, light and dark, nothing fetched from anywhere."""

from __future__ import annotations

import html
from importlib.resources import files

from hnet_cli.modality import escape

POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
"""Content-Security-Policy: whatever a page may contain, a browser fetches nothing for it and sends nothing."""


def safe(text: object) -> str:
    """Text for element content and quoted attributes; control characters as escapes."""
    return html.escape(escape(str(text)))


def opening(title: str, script: str) -> str:
    """A page up to its content. `script` names a file of `hnet_cli/pages`, which holds the styles and scripts."""
    return (
        '<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        f"<title>{safe(title)}</title>\n<style>\n{_asset('page.css')}</style>\n"
        f"<script>\n{_asset(script)}</script>\n"
    )


CLOSING = "</html>\n"


def _asset(name: str) -> str:
    return (files("hnet_cli") / "pages" / name).read_text(encoding="utf-8")
