"""axe-core in the pages of this product: no violation of any of its rules, in either scheme, at three widths."""

from __future__ import annotations

import importlib.util
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from browserkit import CHROME, WIDTHS

SCHEMES = ("light", "dark")
FOUND = importlib.util.find_spec("axe_playwright_python")
"""The package that brings `axe.min.js`; its own Python is not used."""
SETTINGS = {"resultTypes": ["violations"], "preload": False}
needed = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROME is None, reason="there is no chromium or google-chrome on this machine"),
    pytest.mark.skipif(FOUND is None, reason="axe-playwright-python is not installed: pages are not audited"),
]
"""Marks of a test that audits pages."""


def violations(page: Any) -> list[str]:
    """What axe-core finds in a page of Playwright as it is now: rule, element and reason, one string each."""
    assert FOUND is not None
    assert FOUND.origin is not None
    if not page.evaluate("typeof axe === 'object'"):
        page.evaluate((Path(FOUND.origin).parent / "axe.min.js").read_text())  # no policy of the page binds a debugger
    found = page.evaluate("settings => axe.run(document, settings)", SETTINGS)
    assert found["passes"], "axe-core looked at nothing"
    return [
        f"{rule['id']}: {' '.join(map(str, node['target']))}: {node['failureSummary']}"
        for rule in found["violations"]
        for node in rule["nodes"]
    ]


def looks(
    browser: Any, address: str, widths: Sequence[int] = WIDTHS, schemes: Sequence[str] = SCHEMES
) -> Iterator[tuple[Any, str]]:
    """The page at an address in each scheme and width, with the name of that look; one page of Playwright for all.
    Fails for an error of its scripts and for one of the console."""
    page = browser.new_page(viewport={"width": widths[0], "height": 900})
    page.set_default_timeout(10_000)
    faults: list[str] = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("console", lambda message: message.type == "error" and faults.append(message.text))
    page.goto(address)
    for scheme, width in itertools.product(schemes, widths):
        page.emulate_media(color_scheme=scheme)
        page.set_viewport_size({"width": width, "height": 900})
        yield page, f"{scheme}-{width}"
    page.close()
    assert faults == []


def audit(browser: Any, address: str, widths: Sequence[int] = WIDTHS) -> list[str]:
    """Violations of the page at an address, in both schemes and at each width."""
    return [f"{look}: {each}" for page, look in looks(browser, address, widths) for each in violations(page)]
