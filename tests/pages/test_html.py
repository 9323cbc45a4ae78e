"""Templates escape whatever they are given, and a page lets nothing run but its own script."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pagekit import Page, checked

from hnet_cli.pages import html

ANYTHING = st.text(st.characters(codec="utf-8"), max_size=40)


def table_page(cells):
    return html.page("runs.html", heading=cells[0], links=[], figures=[], tables={cells[0]: ([cells, cells], True)})


@given(st.lists(ANYTHING, min_size=1, max_size=3))
def test_any_text_is_shown_and_does_nothing(cells):
    page = checked(table_page(cells))
    assert page.tags.count("td") + page.tags.count("th") == 2 * len(cells)


@pytest.mark.parametrize(
    "text", ["<script>alert(1)</script>", "' onload=x \"", "&amp;", "{{ 7 * 7 }}", "\x1b[2J\u202e"]
)
def test_a_text_comes_back_as_it_stands_but_for_control_characters(text):
    shown = Page(table_page([text])).text
    assert shown.count(text.replace("\x1b", "\\x1b").replace("\u202e", "\\u202e")) == 4


def test_another_script_than_ours_is_not_of_the_hash():
    page = table_page(["x"]).replace("addEventListener", "removeEventListener", 1)
    with pytest.raises(AssertionError):
        checked(page)


def test_line_breaks_and_tabs_are_visible():
    assert html.visible("a<\n\tb") == "a&lt;<u>↵</u>\n<u>→</u>\tb"
