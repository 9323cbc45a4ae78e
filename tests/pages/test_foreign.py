"""Every page, with texts in it that are meant to hurt."""

import tempfile
from functools import cache
from pathlib import Path

from foreignkit import pages
from hypothesis import example, given
from hypothesis import strategies as st
from laws import one_in
from pagekit import checked

FRAGMENTS = (
    *(
        "</script>",
        "<script>alert(1)</script>",
        "<!--",
        "-->",
        "]]>",
        "</style>",
        "</title>",
        "</textarea>",
        "&lt;b&gt;",
    ),
    *("<svg onload=alert(1)>", '" onload=alert(1) x="', "' onclick=alert(1) '", "`", "&", "{{ 7 * 7 }}", "{% raw %}"),
    *("${alert(1)}", "javascript:alert(1)", "<base href=//x>", "<meta http-equiv=refresh>", "<iframe srcdoc=x>"),
    *("\u2028", "\u2029", "\ud800", "\udcff", "\x00", "\x1b[2J", "\x9b", "\u202e", "\u2066", "\r\n", "\ufeff"),
)
WORDS = st.lists(st.sampled_from(FRAGMENTS) | st.text(st.characters(), max_size=9), min_size=1, max_size=4).map("".join)


@cache
def ours() -> dict[str, set[str]]:
    """Elements of each page, and those of a line break."""
    with tempfile.TemporaryDirectory() as folder:
        return {name: {*checked(page).tags, "u"} for name, page in pages(Path(folder), "word").items()}


@one_in(5)
@given(WORDS)
@example("".join(FRAGMENTS))
@example("".join(reversed(FRAGMENTS)))
def test_nothing_foreign_acts_in_any_page(word):
    with tempfile.TemporaryDirectory() as folder:
        for name, page in pages(Path(folder), word).items():
            page.encode()
            assert set(checked(page).tags) <= ours()[name], name
