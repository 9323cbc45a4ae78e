"""The page of a comparison."""

from comparisonkit import told_of, whole
from pagekit import checked

from hnet_cli.comparison.page import page


def test_a_page_of_names_that_are_meant_to_hurt():
    evil = "</script><b onload=x>\x1b[2J\ud800"
    shown = checked(page(whole(told_of(("bpe", False, 2.0), (evil, True, 1.9)), evil)))
    assert shown.text.count("</script><b onload=x>\\x1b[2J\\ud800") >= 8
    assert "-0.100" in shown.text
