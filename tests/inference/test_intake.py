"""Documents of sources: limits, byte order marks, refusals and damage."""

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hnet_cli import modality
from hnet_cli.errors import InputError
from hnet_cli.inference.intake import Intake
from hnet_cli.inference.windows import Stream
from hnet_cli.modality import MARK, MARK_LEFT_OUT, Source

TEXT = modality.get("text")


class Torn(io.BytesIO):
    """A file that cannot be read to its end."""

    def read(self, size=-1):
        if part := super().read(size):
            return part
        raise InputError("torn is damaged")


def data_of(item):
    return b"".join(item.blocks) if isinstance(item, Stream) else item.data


@given(st.lists(st.text(min_size=1).filter(str.strip), min_size=1, max_size=4), st.integers(1, 40), st.booleans())
def test_a_limit_is_of_all_documents_together(texts, limit, raw):
    texts = [text.replace("\0", "0").replace("\ufeff", "") or "x" for text in texts]
    sources = [Source.of_bytes(text.encode(errors="replace"), str(n)) for n, text in enumerate(texts)]
    plugin = None if raw else TEXT
    whole = Intake()
    everything = [data_of(item) for item in whole.documents(sources, plugin)]
    assert whole.total == sum(map(len, everything))
    intake = Intake()
    some = [data_of(item) for item in intake.documents(sources, plugin, limit)]
    assert intake.total == sum(map(len, some)) <= max(limit, 4)
    assert b"".join(everything).startswith(b"".join(some))
    assert intake.cut == (intake.total < whole.total)


def test_what_is_not_used_is_counted():
    intake = Intake()
    sources = [Source.of_bytes(data, "a") for data in (MARK + b"marked", b"\xfd\xfc" * 9, b"")]
    (item,) = intake.documents(sources, TEXT)
    assert item.notes == (MARK_LEFT_OUT,)
    assert intake.refused == {f"UTF-8 {MARK_LEFT_OUT}": 1, "not UTF-8": 1, "empty": 1}
    intake.check("read")
    nothing = Intake()
    assert list(nothing.documents(sources[1:], TEXT)) == []
    with pytest.raises(InputError, match="nothing to read: a: byte 0 is 0xfd"):
        nothing.check("read")
    with pytest.raises(InputError, match="nothing to read: empty"):
        Intake().check("read")


@pytest.mark.parametrize("plugin", [TEXT, None])
def test_a_damaged_source_ends_and_the_others_follow(plugin):
    intake = Intake()
    torn = Source("torn", lambda: Torn(b"read until here"))
    read = [data_of(item) for item in intake.documents([torn, Source.of_bytes(b"whole", "b")], plugin)]
    assert read[-1] == b"whole"
    assert [str(error) for error in intake.damaged] == ["torn is damaged"]
    intake.check("read")
    alone = Intake()
    list(map(data_of, alone.documents([torn], plugin)))
    with pytest.raises(InputError, match="torn is damaged"):
        alone.check("read")
