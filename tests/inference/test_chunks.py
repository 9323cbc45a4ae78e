"""Chunks are put together over the windows they span."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from hnet_cli.inference.chunks import Assembler, record_of
from hnet_cli.inference.windows import Window
from hnet_cli.modality import Document

NONE = np.zeros(1)


@given(st.binary(min_size=2, max_size=60), st.data())
def test_chunks_do_not_depend_on_windows(data, draw):
    """Two stages: every chunk of the inner one begins where one of the outer does."""
    outer = sorted(draw.draw(st.sets(st.integers(1, len(data) - 1))) | {0})
    inner = sorted(draw.draw(st.sets(st.sampled_from(outer))) | {0})
    ends = [*sorted(draw.draw(st.sets(st.integers(1, len(data) - 1), max_size=4))), len(data)]
    document = Document(data, "a", "a")
    for stage, starts in enumerate((outer, inner)):
        assemble, chunks, places = Assembler(stage), [], []
        for start, end in zip([0, *ends], ends, strict=False):
            here = np.array([at for at in outer if start <= at < end], dtype=np.int64)
            p = np.array([[0.9, 0.8 if at in inner else np.nan] for at in here]).reshape(-1, 2).astype(np.float32)
            window = Window(document, 0, start, data[start:end], end == len(data), here, p, NONE, NONE)
            block = assemble(window)
            chunks += block.chunks
            places += block.starts[: len(block.chunks)]
            assert len(block.probability) == len(block.chunks) == len(block.starts) - 1
        assert places == starts
        assert chunks == [data[a:b] for a, b in zip(starts, [*starts[1:], len(data)], strict=True)]


def test_a_record_is_named_where_a_source_has_several():
    assert record_of(Document(b"", "a.fa", "a.fa")) is None
    assert record_of(Document(b"", "chr1", "a.fa")) == "chr1"
