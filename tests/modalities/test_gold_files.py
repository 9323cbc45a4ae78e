"""Units of modalities: read from gold files, known without gold, and where a boundary is read."""

from functools import cache
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hnet_cli import modality
from hnet_cli.errors import InputError
from hnet_cli.modality import Refused, Source

get = cache(modality.get)  # reads the metadata of all installed packages

TREEBANK = """\
# sent_id = 1
# text = I can't  go, Ann.
1\tI\t_\t_\t_\t_\t_\t_\t_\t_
2-3\tcan't\t_\t_\t_\t_\t_\t_\t_\tSpacesAfter=\\s\\s
2\tca\t_\t_\t_\t_\t_\t_\t_\t_
3\tn't\t_\t_\t_\t_\t_\t_\t_\t_
3.1\tthere\t_\t_\t_\t_\t_\t_\t_\t_
4\tgo\t_\t_\t_\t_\t_\t_\t_\tSpaceAfter=No
5\t,\t_\t_\t_\t_\t_\t_\t_\t_
6\tAnn\t_\t_\t_\t_\t_\t_\t_\tSpaceAfter=No
7\t.\t_\t_\t_\t_\t_\t_\t_\t_

1\tWell\t_\t_\t_\t_\t_\t_\t_\tSpaceAfter=No
2\t!\t_\t_\t_\t_\t_\t_\t_\t_
"""


def pieces(stretch, kind="word"):
    edges = [*stretch.edges[kind], len(stretch.data)]
    return [stretch.data[a:b].decode() for a, b in pairwise(edges)]


def read(name, text):
    return list(get(name).gold(Source.of_bytes(text.encode(), "gold")))


def test_treebanks():
    first, second = read("text", TREEBANK)
    assert first.data == b"I can't  go, Ann."
    assert pieces(first) == ["I ", "can't  ", "go", ", ", "Ann", "."]
    assert pieces(second) == ["Well", "!"]


def test_a_treebank_whose_text_is_not_its_words_goes_by_its_rows():
    (found,) = read("text", "# text = other\n1\tone\t_\t_\t_\t_\t_\t_\t_\t_\n2\ttwo\t_\t_\t_\t_\t_\t_\t_\t_\n")
    assert pieces(found) == ["one ", "two"]
    (found,) = read("chinese", "1\t看似\t_\t_\n2\t简单\t_\t_\n")
    assert pieces(found) == ["看似", "简单"]


def test_a_gold_file_that_was_cut_by_bytes_loses_its_last_line():
    whole = "共同  创造\n美好  的\n世纪".encode()
    *kept, last = get("chinese").gold(Source.of_bytes(whole[:-1], "gold"))
    assert [pieces(each) for each in kept] == [["共同", "创造"], ["美好", "的"]]
    assert last == Refused("line cut off at the end", "gold, line 3", len("世纪".encode()) - 1)
    with pytest.raises(InputError, match="line 1: byte 0xb9 is not UTF-8") as error:
        list(get("chinese").gold(Source.of_bytes("共同  创造\n".encode("gb18030"), "gold")))
    assert "iconv -f GB18030" in error.value.hint


def test_words_set_apart_by_spaces():
    first, second = read("chinese", "共同  创造  美好\r\n\r\n的  世纪\r\n")
    assert first.data.decode() == "共同创造美好"
    assert pieces(first) == ["共同", "创造", "美好"]
    assert pieces(second) == ["的", "世纪"]
    (found,) = read("text", "two words\n")
    assert found.data == b"two words"


def test_morphemes_are_found_on_the_surface():
    found, refused = read(
        "text", "nominated individuals retiring\tnominate @@ed individual @@s re @@tire @@ing\nx y\tx\n"
    )
    assert pieces(found, "morpheme") == ["nominat", "ed ", "individual", "s ", "re", "tir", "ing"]
    assert pieces(found) == ["nominated ", "individuals ", "retiring"]
    assert isinstance(refused, Refused)
    (word,) = read("text", "enthrallments\ten @@thrall @@ment @@s\t110\n")
    assert pieces(word, "morpheme") == ["en", "thrall", "ment", "s"]


def test_lines_of_gold_that_nobody_wrote():
    """Found by fuzzing: white space for words, words too long to align, numbers too long to be numbers."""
    good = "dogs\tdog @@s\n"
    (found,) = read("text", good + " \t \n")
    assert found.data == b"dogs"
    _, refused = read("text", good + "a" * 10_000 + "\t" + "b" * 10_000 + "\n")
    assert refused.reason == "word of more than 100 letters"
    row = "1\tdogs\n"
    *_, refused = [item for item in read("text", row + "9" * 5000 + "\tx\n") if isinstance(item, Refused)]
    assert refused.reason == "line is no row of CoNLL-U"


@pytest.mark.parametrize("text", ["", "\n\n", "# only a comment\n"])
def test_a_gold_file_without_a_sentence_is_named(text):
    with pytest.raises(InputError, match="gold holds no marked sentence"):
        read("text", text)


def test_a_gold_file_in_another_encoding_is_named():
    with pytest.raises(InputError, match="line 2: byte 0xb9"):
        list(get("chinese").gold(Source.of_bytes(b"a b\n" + "共同".encode("gb2312"), "gold")))


def test_a_gold_file_in_a_wide_encoding_is_named():
    with pytest.raises(InputError, match=r"x is UTF-16LE: convert it first"):
        list(get("text").gold(Source.of_bytes(TREEBANK.encode("utf-16"), "x")))
    marked = list(get("text").gold(Source.of_bytes(b"\xef\xbb\xbf" + TREEBANK.encode(), "x")))
    assert marked == list(get("text").gold(Source.of_bytes(TREEBANK.encode(), "x")))


@given(st.text(st.sampled_from("a ,é中\u3000\n😀")))
def test_boundaries_settle_on_characters_that_are_seen(text):
    data = text.encode()
    settled = np.asarray(get("text").settle(data))
    assert len(settled) == len(data) + 1
    at, starts = 0, []
    for char in text:
        starts += [at] * (not char.isspace())
        at += len(char.encode())
    starts.append(len(data))
    for position, to in enumerate(settled):
        assert to == min(start for start in starts if start >= position)
