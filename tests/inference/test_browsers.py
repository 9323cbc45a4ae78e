"""Chunks for genome browsers: what is written is what their readers read."""

import base64
import gzip
import html
import json
import re
from dataclasses import replace

import pytest

from hnet_cli.errors import EnvironmentLimit
from hnet_cli.inference import browsers
from hnet_cli.modality import Annotation, Document, Shown


def test_a_missing_package_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr("sys.path", [str(tmp_path)])
    with pytest.raises(EnvironmentLimit, match="igv-notebook"):
        browsers.igv_script()


@pytest.mark.parametrize("format", ["bed", "bedgraph"])
def test_a_track_line_is_one_line_whatever_its_name(format):
    line = browsers.track_line('a "b"\n\x1btrack', format)
    assert line.startswith("track ")
    assert line.count("\n") == 1
    assert re.findall('name="([^"]*)"', line) == [r"a 'b'\x0a\x1btrack"]


class OverGaps(Annotation):
    """A gene from 10 to 100 with coding parts on either side of a gap, as each document sees it."""

    def shown(self, document):
        found = [Shown("gene", 10, 100, 1, "g"), Shown("CDS", 10, 30, 1), Shown("CDS", 60, 90, 1)]
        begin, end = document.offset, document.offset + len(document.data)
        found = [each for each in found if each.start < end and each.end > begin]
        return [replace(each, start=each.start - begin, end=each.end - begin) for each in found]


def test_a_gene_over_a_gap_is_one(monkeypatch):
    monkeypatch.setattr(browsers, "igv_script", lambda: "")
    documents = [Document(b"A" * 40, "one", "a"), Document(b"A" * 70, "one", "a", offset=50)]
    page = "".join(browsers.igv_page(documents, [0], lambda stage, format: iter([""]), OverGaps()))
    options = json.loads(html.unescape(re.search('data-options="([^"]*)"', page)[1]))
    (gene,) = options["tracks"][0]["features"]
    assert (gene["start"], gene["end"], gene["cdStart"], gene["cdEnd"]) == (10, 100, 10, 90)
    assert gene["exons"] == [{"start": 10, "end": 30}, {"start": 60, "end": 90}]


class Genes(Annotation):
    def shown(self, document):
        found = [Shown("gene", 10, 90, 1, "</script>"), Shown("exon", 10, 40, 1), Shown("CDS", 20, 40, 1)]
        return [*found, Shown("CDS", 30, 50, -1), Shown("exon", 60, 90, 1), Shown("gene", 95, 120, -1, "b")]


def test_a_page_of_igv_holds_the_sequence_the_chunks_and_the_genes(tmp_path, monkeypatch):
    (tmp_path / "igv_notebook/js").mkdir(parents=True)
    (tmp_path / "igv_notebook/__init__.py").write_text("raise ImportError")
    (tmp_path / "igv_notebook/js/igv.min.js").write_text("'</script>'")
    monkeypatch.syspath_prepend(str(tmp_path))
    documents = [
        Document(b"ACGT" * 40, "one", "a"),
        Document(b"ttg", "one", "a", offset=170),
        Document(b"C", "two", "a"),
    ]
    track = lambda stage, format: iter([f"{stage} {format}\n"])  # noqa: E731
    page = "".join(browsers.igv_page(documents, [0, 1], track, Genes(), "<a>", "starter:dna", "cut"))
    options = json.loads(html.unescape(re.search('data-options="([^"]*)"', page)[1]))
    read = lambda uri: gzip.decompress(base64.b64decode(uri.removeprefix("data:application/gzip;base64,"))).decode()  # noqa: E731
    assert read(options["reference"]["fastaURL"]) == f">one\n{'ACGT' * 40}NNNNNNNNNNttg\n>two\nC"
    assert [read(each["url"]) for each in options["tracks"][1:]] == ["0 bed\n", "1 bed\n", "0 bedgraph\n"]
    genes = options["tracks"][0]["features"]
    assert genes[0]["exons"] == [{"start": 10, "end": 40}, {"start": 60, "end": 90}]
    assert (genes[0]["cdStart"], genes[0]["cdEnd"], genes[0]["name"]) == (20, 40, "</script>")
    assert [gene["start"] for gene in genes[2:4]] == [180, 265]
    assert page.count("</script>") == 2
    assert "default-src 'none'" in page
