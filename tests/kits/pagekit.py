"""Pages as a browser would take them: parsed, and asked what they would fetch and run."""

import base64
import hashlib
import json
import re
from html.parser import HTMLParser

VOID = {"meta", "input", "br", "hr", "link", "img"}


class Page(HTMLParser):
    """Fails for what is not well-formed. `text` is what is shown, `scripts` what would run, `data` the JSON for it."""

    def __init__(self, source: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.text, self.scripts, self.data, self.attributes, self.tags = "", [], [], [], []
        self.feed(source)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attributes]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, tag

    def handle_data(self, data):
        if self.open[-1:] == ["script"]:
            is_data = self.attributes[-1] == ("script", "type", "application/json")
            self.data.append(json.loads(data)) if is_data else self.scripts.append(data)
        elif self.open[-1:] != ["style"]:
            self.text += data

    def values(self, name):
        """All values of an attribute."""
        return [value for _, key, value in self.attributes if key == name]

    @property
    def labels(self):
        """Names of the curves that the script reads values from."""
        return {label for plot in self.data for label in plot.get("labels", [])}


def checked(source: str, program: bool = False) -> Page:
    """The page, if it stands alone: well-formed, nothing to fetch, no script but ours, no control characters.
    `program`: it may run WebAssembly."""
    page = Page(source)
    (policy,) = [v for tag, name, v in page.attributes if (tag, name) == ("meta", "content") and "script-src" in v]
    digests = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in page.scripts]
    allowed = [*(f"'sha256-{digest}'" for digest in digests), *["'wasm-unsafe-eval'"] * program]
    assert policy == f"default-src 'none'; style-src 'unsafe-inline'; script-src {' '.join(allowed)}"
    outside = {"src", "href", "srcset", "action", "data", "poster", "background"}
    others = [(name, value) for tag, name, value in page.attributes if (tag, name) != ("a", "href")]
    assert not [name for name, _ in others if name in outside or name.startswith("on")]
    for tag, name, value in page.attributes:
        assert (tag, name) != ("a", "href") or re.fullmatch(r"\./[\w.~%/-]+", value), value
    assert "url(" not in source
    assert "@import" not in source
    unsafe = {*map(chr, [*range(9), *range(11, 32), *range(127, 160), *range(0x202A, 0x202F), *range(0x2066, 0x206A)])}
    assert not unsafe & set(source)
    return page
