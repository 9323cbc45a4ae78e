"""Agreement of boundaries with known edges."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from hnet_cli.inference.agreement import Agreement

positions = st.sets(st.integers(0, 99)).map(sorted)


def test_counts_by_hand():
    score = Agreement()
    score.add([0, 3, 5, 8], [0, 3, 6, 8, 12], length=10)
    assert (score.positions, score.boundaries, score.edges, score.hits) == (9, 3, 3, 2)
    assert score.to_dict() == {"precision": 2 / 3, "chance": 3 / 9, "recall": 2 / 3, "f1": 2 / 3}


def test_nothing_gives_zero_not_an_error():
    score = Agreement()
    score.add([], [], length=0)
    assert set(score.to_dict().values()) == {0.0}


@given(positions, positions, st.integers(0, 100))
def test_is_what_sets_say(boundaries, edges, first):
    score = Agreement()
    score.add(np.array(boundaries, dtype=np.int64), edges, length=100, first=first)
    found, wanted = ({p for p in each if p >= first} for each in (boundaries, edges))
    assert (score.boundaries, score.edges, score.hits) == (len(found), len(wanted), len(found & wanted))


@given(positions, positions, st.integers(1, 99))
def test_parts_add_up_to_the_whole(boundaries, edges, cut):
    whole, head, tail = Agreement(), Agreement(), Agreement()
    whole.add(boundaries, edges, length=100)
    head.add(boundaries, edges, length=cut)
    tail.add(boundaries, edges, length=100, first=cut)
    assert head + tail == whole


@given(positions)
def test_boundaries_on_every_edge_are_perfect(edges):
    score = Agreement()
    score.add(edges, edges, length=100)
    assert score.precision == score.recall == score.f1 == float(any(edges))
