"""The contract of `hnet_cli.modality`, run on every installed modality."""

from __future__ import annotations

import io
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hnet_cli import modality
from hnet_cli.errors import UsageError
from hnet_cli.modalities.chinese import EURO
from hnet_cli.modality import Document, Modality, Refused, Source

DATA = Path(__file__).parents[1] / "data"
MODALITIES = {name: modality.get(name) for name in modality.names()}
EXAMPLES = {
    "text": DATA / "text" / "shakespeare.txt",
    "chinese": DATA / "chinese" / "criminal_law.txt",
    "code": Path(__file__),
    "dna": DATA / "dna" / "human_hg38_soft_masked.fa",
}
every_modality = pytest.mark.parametrize("plugin", MODALITIES.values(), ids=MODALITIES.keys())
quickly = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])

PARTS = [b">a\n", b"ACGT" * 9, b"acgt", b"NNN", b"MKVLE", b"\n", b"\r\n", b"word ", "é🙂".encode(), "中文".encode()]
NASTY = [b"\0", b"\xff", b"\x80", b"\xef\xbb\xbf", b"\xff\xfe", b"\x1b[31m", b"\xb5\xc4", b"@r\n", b"# ", b"LOCUS  "]
contents = st.lists(st.sampled_from(PARTS + NASTY), max_size=30).map(b"".join)


def items(plugin: Modality, data: bytes, whole: bool = False) -> list[Document | Refused]:
    return list(plugin.documents(Source("x", lambda: io.BytesIO(data), "g", whole)))


def example(plugin: Modality) -> Document:
    """A document of a real file."""
    source = Source("x", lambda: EXAMPLES[plugin.name].open("rb"))
    return next(item for item in plugin.documents(source) if isinstance(item, Document))


def test_the_four_are_installed() -> None:
    assert set(EXAMPLES) <= set(MODALITIES)


def test_an_unknown_name_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="klingon") as caught:
        modality.get("klingon")
    assert "dna" in caught.value.hint


def test_plugins_do_without_torch() -> None:
    """`prepare` must start fast; and only the plugin that is asked for is imported."""
    program = (
        "import sys; from hnet_cli import modality; [modality.get(n) for n in modality.names()]; "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0


@every_modality
def test_it_describes_itself(plugin: Modality) -> None:
    assert MODALITIES[plugin.name] is plugin
    assert 0 < len(plugin.summary) < 100
    assert "\n" not in plugin.summary
    assert set(plugin.presets) == {"nano", "small", "base"}
    for table in (plugin.input_table, plugin.loss_weights):
        assert table is None or len(table) == 256


@every_modality
def test_it_knows_its_own_files_best(plugin: Modality) -> None:
    if plugin.name not in EXAMPLES:
        pytest.skip("a plugin from elsewhere")
    path = EXAMPLES[plugin.name]
    scores = {name: other.detect(path.name, path.read_bytes()[:65536]) for name, other in MODALITIES.items()}
    assert max(scores, key=lambda name: scores[name]) == plugin.name, scores
    assert all(0 <= score <= 1 for score in scores.values())


@every_modality
@quickly
@given(data=contents, whole=st.booleans())
def test_whatever_the_input_it_is_kept_or_refused(plugin: Modality, data: bytes, whole: bool) -> None:
    """No input raises; nothing is empty, nothing is given without a reason; the same input gives the same output."""
    assert 0 <= plugin.detect("x", data) <= 1
    found = items(plugin, data, whole)
    assert found == items(plugin, data, whole)
    assert found, "an input without documents must say why"
    for item in found:
        if isinstance(item, Refused):
            assert item.reason
            assert "x" in item.where
            assert item.bytes >= 0
        else:
            assert item.data
            assert item.source == "x"
            assert item.group.startswith("g")


@pytest.mark.parametrize("name", ["text", "chinese", "code"])
@quickly
@given(data=contents)
def test_bytes_add_up(name: str, data: bytes) -> None:
    total = 0
    for item in items(MODALITIES[name], data):
        if isinstance(item, Refused):
            total += item.bytes
        else:
            converted = [note for note in item.notes if note.startswith("converted")]
            codec = {"Big5": "big5hkscs", "GB18030": "gb18030"}[converted[0].split()[2]] if converted else "utf-8"
            # a euro sign may be one byte in the source: not every file of GBK is in GB18030
            euros = EURO in item.notes and item.data.count("€".encode())
            total += len(item.data.decode().encode(codec)) - euros
    assert total == len(data)


@every_modality
@quickly
@given(data=contents)
def test_documents_are_legal_output(plugin: Modality, data: bytes) -> None:
    """Sampling may produce exactly the bytes that a model of this modality is trained on."""
    automaton = plugin.automaton()
    for item in items(plugin, data):
        if isinstance(item, Document):
            read = item.data.translate(plugin.input_table) if plugin.input_table else item.data
            assert automaton.run(read) in automaton.accepting


@every_modality
def test_the_automaton_never_ends_in_a_trap(plugin: Modality) -> None:
    """From every state, an accepting one can be reached: sampling can always finish."""
    automaton = plugin.automaton()
    reaching = set(automaton.accepting)
    for _ in automaton.transitions:
        reaching |= {s for s, row in enumerate(automaton.transitions) if any(n in reaching for n in row)}
    assert reaching == set(range(len(automaton.transitions)))
    assert automaton.start in reaching


EDGES = b"\x00\x7f\x80\xbf\xc0\xc1\xc2\xdf\xe0\xa0\x9f\xed\xef\xf0\x90\x8f\xf4\xf5\xfe"


@given(st.one_of(st.binary(max_size=8), st.lists(st.sampled_from(EDGES), max_size=6).map(bytes)))
def test_the_utf8_automaton_is_utf8(data: bytes) -> None:
    try:
        data.decode()
        valid = True
    except UnicodeDecodeError:
        valid = False
    automaton = MODALITIES["text"].automaton()
    assert all(MODALITIES[name].automaton() is automaton for name in ("chinese", "code"))
    assert (automaton.run(data) in automaton.accepting) == valid


def test_the_dna_automaton_is_four_letters() -> None:
    automaton = MODALITIES["dna"].automaton()
    assert bytes(byte for byte in range(256) if automaton.run(bytes([byte])) >= 0) == b"ACGT"


@every_modality
@quickly
@given(near=st.integers(0, 3000))
def test_cuts_leave_valid_halves(plugin: Modality, near: int) -> None:
    data = example(plugin).data if plugin.name in EXAMPLES else b"x" * 2000
    near = min(near, len(data))
    at = plugin.cut(data, near)
    assert 0 <= at <= near
    assert at > 0 or near < 4
    automaton = plugin.automaton()
    for half in (data[:at], data[at:]):
        read = half.translate(plugin.input_table) if plugin.input_table else half
        assert automaton.run(read) in automaton.accepting


@every_modality
@quickly
@given(data=st.one_of(st.binary(max_size=60), contents))
def test_display_is_safe(plugin: Modality, data: bytes) -> None:
    shown = plugin.display(data)
    assert all(char in "\n\t" or not (ord(char) < 32 or 127 <= ord(char) < 160) for char in shown)
    assert not set(shown) & set("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
    shown.encode()


@every_modality
@quickly
@given(data=st.one_of(st.binary(max_size=60), contents))
def test_reference_edges_are_ascending_positions(plugin: Modality, data: bytes) -> None:
    for positions in plugin.reference_edges(data).values():
        assert list(positions) == sorted(set(positions))
        assert all(0 <= position < len(data) for position in positions)


@every_modality
def test_real_files_have_reference_edges(plugin: Modality) -> None:
    if plugin.name in EXAMPLES:
        data = example(plugin).data
        for kind, positions in plugin.reference_edges(data).items():
            assert 0.01 < len(positions) / len(data) < 0.8, kind


class Endless(io.RawIOBase):
    """A stream of `size` bytes that repeats `block`, without holding them."""

    def __init__(self, block: bytes, size: int) -> None:
        self.block, self.left = block, size

    def read(self, size: int = -1) -> bytes:
        size = min(size, self.left)
        self.left -= size
        return (self.block * (size // len(self.block) + 1))[:size]


@every_modality
@pytest.mark.parametrize(
    "block", [b"ACGT" * 64, b">r\n" + b"ACGTTGCA" * 900 + b"\n", b"\n"], ids=["line", "records", "blank"]
)
def test_memory_does_not_grow_with_the_source(plugin: Modality, block: bytes) -> None:
    """24 MB of one line, of records, of blank lines: what is held stays below 12 MB, the size of a few pieces."""
    source = Source("x", lambda: Endless(block, 24_000_000))  # type: ignore[arg-type, return-value]
    tracemalloc.start()
    count = sum(1 for _ in plugin.documents(source))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert count
    assert peak < 12_000_000
