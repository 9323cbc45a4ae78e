"""Figures of a mixture's sources come back out of a flat record; whatever else is there is no figure."""

from hypothesis import given
from hypothesis import strategies as st

from hnet_cli.report.sources import SourceFigures, rows_of, source_key, sources_of, times
from hnet_cli.report.stages import VALIDATION

RECORD = {
    "step": 4,
    "val_bpb": 2.1,
    "val_bpb/books": 2.0,
    "val_bpb/a/code": 2.5,
    "val_share/books": 0.8,
    "val_epochs/books": 0.25,
    "val_bytes/books": 512,
    "val_of/books": 4096,
    "val_xz/books": 3.0,
    "val_order_k/books": 2.6,
    "val_stage0_bytes_per_chunk/books": 4.2,
}


def test_a_record_holds_the_sources():
    books, code = sources_of(RECORD)
    assert books == SourceFigures("books", 2.0, 0.8, 0.25, 512, 4096, 4.2, {"xz": 3.0, "order-k": 2.6})
    assert (code.name, code.bpb, code.share, code.baselines) == ("a/code", 2.5, None, {})
    assert source_key("bpb", "books") == "bpb/books"
    assert sources_of({"val_bpb": 2.0}) == []


def test_the_table_has_what_is_known():
    heads, books, code = rows_of(sources_of(RECORD))
    assert dict(zip(heads, books, strict=True)) == {
        "source": "books",
        "share of the bytes": "80.0%",
        "training split read": "25% of it",
        "held out": "512 bytes",
        "bits per byte": "2.000",
        "xz": "3.000",
        "order-k": "2.600",
        "bytes per chunk": "4.20",
    }
    assert code == ["a/code", "-", "-", "-", "2.500", "-", "-", "-"]


def test_how_often_it_is_read():
    assert [times(epochs) for epochs in (0.0123, 0.5, 1.0, 12.34)] == [
        "1.2% of it",
        "50% of it",
        "1.0 times",
        "12.3 times",
    ]


junk = st.none() | st.booleans() | st.text() | st.floats() | st.lists(st.floats()) | st.just({})


@given(st.dictionaries(st.sampled_from(list(RECORD)), junk), st.text())
def test_what_is_no_figure_is_left_out(values, name):
    sources = sources_of(RECORD | values | {f"{VALIDATION}bpb/{name}": 3.0})
    assert all(abs(source.bpb) < 1e30 for source in sources)
    assert len({len(row) for row in rows_of(sources)}) == 1
