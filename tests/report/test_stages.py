"""Figures of stages go into a flat record and come back; whatever else is there is no figure."""

from hypothesis import given
from hypothesis import strategies as st

from hnet_cli.report.stages import (
    MOST_BUDGETS,
    VALIDATION,
    StageFigures,
    budget_key,
    budget_rows,
    budgets_of,
    number_of_stages,
    stages_of,
)

finite = st.none() | st.floats(-1e29, 1e29)
figures = st.builds(
    StageFigures,
    bytes_per_chunk=st.floats(1, 1e6),
    target_bytes_per_chunk=finite,
    boundary_fraction=finite,
    flips=finite,
    prob_histogram=st.none() | st.lists(st.integers(0, 10**9), min_size=1, max_size=20),
)
junk = st.none() | st.booleans() | st.text() | st.floats() | st.lists(st.text() | st.floats()) | st.just([])


@given(st.lists(figures, max_size=3), st.sampled_from(["", VALIDATION]))
def test_a_record_holds_the_stages(stages, prefix):
    record = {"step": 1, "bpb": 2.0}
    for s, stage in enumerate(stages):
        record |= stage.flat(s, prefix)
    assert stages_of(record, prefix) == stages
    assert number_of_stages([{}, record]) == len(stages)


def test_the_keys_are_those_of_the_format():
    stage = StageFigures(bytes_per_chunk=4.5, flips=0.25)
    assert stage.flat(1) == {"stage1_bytes_per_chunk": 4.5, "stage1_flips": 0.25}
    assert stage.flat(0, VALIDATION) == {"val_stage0_bytes_per_chunk": 4.5, "val_stage0_flips": 0.25}


@given(junk, junk)
def test_what_is_no_figure_is_left_out(value, histogram):
    (stage,) = stages_of({"stage0_bytes_per_chunk": 5, "stage0_flips": value, "stage0_prob_histogram": histogram})
    assert stage.bytes_per_chunk == 5
    assert stage.flips is None or abs(stage.flips) < 1e30
    assert stage.prob_histogram is None or all(isinstance(n, int) and n >= 0 for n in stage.prob_histogram)


def test_no_more_is_read_than_a_model_can_have():
    record = {f"stage{s}_bytes_per_chunk": 2.0 for s in range(99)} | {"stage0_prob_histogram": [1] * 300}
    assert number_of_stages([record]) == 15
    assert stages_of(record)[0].prob_histogram is None


def test_budgets_stand_beside_the_validation():
    record = {"val_bpb": 2.5, VALIDATION + budget_key(2.0): 2.75, VALIDATION + budget_key(0.5): 2.25}
    assert list(budgets_of(record).items()) == [(0.5, 2.25), (1, 2.5), (2, 2.75)]
    assert budgets_of({"val_bpb": 2.5}) == {}
    _, *rows = budget_rows(budgets_of(record), [StageFigures(target_bytes_per_chunk=3), StageFigures(4, 6)])
    assert rows == [["0.5", "3.00", "2.250", "-0.250"], ["1", "6.00", "2.500", ""], ["2", "12.00", "2.750", "+0.250"]]


@given(st.lists(st.text("0123456789.einfax-", max_size=6), max_size=40), junk)
def test_what_is_no_budget_is_left_out(names, value):
    found = budgets_of({"val_bpb": value} | {f"val_bpb_at_{name}": 2.0 for name in names})
    assert len(found) <= MOST_BUDGETS + 1
    assert all(0 < budget < float("inf") for budget in found)
