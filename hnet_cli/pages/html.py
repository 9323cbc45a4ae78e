"""HTML from the Jinja2 templates of this package: self-contained pages, light and dark, that fetch nothing.

Every expression of a template is escaped, control characters and bidirectional overrides included. The
Content-Security-Policy of a page names the hash of its one script: nothing else can run, be fetched or be sent.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable
from functools import cache
from importlib.resources import files
from typing import Any, cast

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup
from markupsafe import escape as escape_html

from hnet_cli.modality import escape
from hnet_cli.terminal.console import count, duration, size


class Script(str):
    """A script that is no file of this package."""


def page(template: str, /, **context: Any) -> str:
    """The page that a template makes of `context`."""
    return _environment().get_template(template).render(context)


def macro(file: str, name: str) -> Callable[..., Markup]:
    """A macro of a template, as a function that returns safe HTML."""
    return cast(Callable[..., Markup], getattr(_environment().get_template(file).module, name))


def program(name: str) -> bytes:
    """A program in WebAssembly, for a page to run."""
    return (files("hnet_cli") / "pages" / name).read_bytes()


def visible(text: str) -> Markup:
    """A text with its line breaks and tabs shown."""
    shown = escape_html(_plain(text)).replace("\n", Markup("<u>↵</u>\n"))
    return shown.replace("\t", Markup("<u>→</u>\t"))


def _plain(text: str) -> str:
    """A text without control characters, and without what UTF-8 cannot hold, such as half of a pair in JSON."""
    return escape(text)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FunctionLoader(_asset),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=lambda value: value if isinstance(value, Markup) else _plain(str(value)),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"size": size, "count": count, "duration": duration}
    environment.globals |= {"asset": lambda name: Markup(_asset(name)), "script_hash": _script_hash}
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":")}
    return environment


@cache
def _asset(name: str) -> str:
    if isinstance(name, Script):
        return str(name)
    return (files("hnet_cli") / "pages" / name).read_text(encoding="utf-8")


def _script_hash(name: str) -> str:
    return base64.b64encode(hashlib.sha256(_asset(name).encode()).digest()).decode()
