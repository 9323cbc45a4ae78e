"""bigWig: its readers read the rows that were given."""

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from laws import one_in

from hnet_cli.errors import EnvironmentLimit, InputError
from hnet_cli.storage import bigwig, spool

NAMES = st.lists(st.sampled_from(["chrI", "chr|2", "III"]), unique=True, min_size=1)
ROWS = st.lists(st.integers(0, 400), unique=True, min_size=1, max_size=50).map(sorted)


def bedgraph(records):
    return [f"{name}\t{start}\t{start + 1}\t{0.5 + start / 1000:.4f}\n" for name, rows in records for start in rows]


def written(pieces, folder, lengths):
    with spool(folder / "a.bw") as waiting:
        bigwig.write_bigwig(pieces, str(folder / "a.bw"), waiting, lambda: lengths)
    return bigwig.library().open(str(folder / "a.bw"))


@one_in(5)
@given(NAMES, ROWS, st.integers(1, 9))
def test_a_bigwig_holds_the_rows_of_bedgraph(tmp_path_factory, names, rows, together):
    pytest.importorskip("pyBigWig")
    lines = bedgraph([(name, rows) for name in names])
    pieces = ["".join(lines[at : at + together]) for at in range(0, len(lines), together)]
    lengths = {name: 401 + n for n, name in enumerate(names)}
    with written(pieces, tmp_path_factory.mktemp("bigwig"), lengths) as file:
        assert file.chroms() == lengths
        for name in names:
            found = file.intervals(name)
            assert [(start, end) for start, end, _ in found] == [(start, start + 1) for start in rows]
            assert [p for *_, p in found] == pytest.approx([0.5 + start / 1000 for start in rows])


def test_a_bigwig_of_two_sequences_of_one_name_is_refused(tmp_path):
    pytest.importorskip("pyBigWig")
    with pytest.raises(InputError, match="two sequences are called a"):
        written(bedgraph([("a", [1]), ("b", [1]), ("a", [3])]), tmp_path, {})


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyBigWig", None)
    with pytest.raises(EnvironmentLimit, match="pyBigWig"):
        bigwig.library()
