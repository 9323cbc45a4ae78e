"""Boundaries against what people have marked: readers of gold files; precision, recall, F1 beside the trivial rules."""

import gzip
from functools import cache
from itertools import pairwise

import numpy as np
import pytest
from dnakit import GFF
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from modelkit import tiny_config, tiny_model

from hnet_cli import modality
from hnet_cli.checkpoints.find import load
from hnet_cli.evaluation import gold, report
from hnet_cli.evaluation.gold import Counts, _compared, _figures, against_gold, by_region, known_units
from hnet_cli.modality import Document, Gold, Source

OTHERS = "".join(f"chr{number}\tx\tgene\t1\t9\t.\t+\t.\n" for number in (3, 4, 5))
get = cache(modality.get)  # reads the metadata of all installed packages


def compared(text, found, edges):
    data = text.encode()
    return _compared(data, np.array(found), np.array(edges), np.asarray(get("text").settle(data)))


def test_figures_by_hand():
    # |one| two|,| th|ree: the comma and the inside of three are no gold words' starts, but the comma is a place
    rows = compared("one two, three", [0, 3, 7, 11], [0, 4, 7, 9])
    figures = _figures({name: [row] for name, row in rows.items()})
    assert figures["precision"] == pytest.approx(2 / 3)  # 4 (from 3) and 7; 11 is inside a word
    assert figures["recall"] == pytest.approx(2 / 3)  # 4, 7; 9 was missed
    assert figures["f1"] == pytest.approx(2 / 3)
    assert figures["unit_f1"] == pytest.approx(2 * 2 / (4 + 4))  # "one", "two" of one|two|, th|ree
    assert figures["precision_exact"] == pytest.approx(1 / 3)
    assert figures["chance"] == pytest.approx(3 / 11)  # e, t after one: 12 seen characters, the first left out
    assert figures["trivial"]["every_character"]["recall"] == 1
    assert figures["trivial"]["every_character"]["precision"] == figures["chance"]
    assert figures["trivial"]["whitespace"]["precision"] == 1
    assert figures["trivial"]["whitespace"]["recall"] == pytest.approx(2 / 3)


@given(arrays(bool, st.integers(2, 40)), st.randoms())
def test_the_random_rule_is_what_random_boundaries_get(marked, random):
    """Expected hits and whole units, against many throws at the same rate."""
    size = len(marked)
    data = b"x" * size
    edges = np.flatnonzero(marked)
    found = np.array(sorted(random.sample(range(1, size), random.randint(1, size - 1))))
    rows = compared(data.decode(), found, edges)
    rate = len(found) / (size - 1)
    expected_hits = rate * (edges > 0).sum()
    assert rows["random"].hits == pytest.approx(expected_hits)
    generator = np.random.default_rng(0)
    thrown = generator.random((1000, size)) < rate
    thrown[:, 0] = True
    wanted = marked.copy()
    wanted[0] = True
    borders = [*np.flatnonzero(wanted), size]
    right = 0.0
    for a, b in pairwise(borders):
        alone = thrown[:, a] & ~thrown[:, a + 1 : b].any(1)
        right += (alone & (thrown[:, b] if b < size else True)).mean()
    assert rows["random"].right == pytest.approx(right, abs=0.15 + 0.02 * len(borders))


def test_a_model_that_cuts_at_the_words_scores_one():
    """The whole path, with a chunker whose rule is known: SpaceByte's boundaries stand on spaces."""
    config = tiny_config(("m1", ("T1",), "m1"), chunker={"kind": "space"})
    model = tiny_model(config=config).float().eval()
    words = [b"words", b"set", b"apart", b"by", b"spaces"]
    edges = np.cumsum([0] + [len(word) + 1 for word in words[:-1]]).tolist()
    stretches = [Gold(b" ".join(words), {"word": edges}, str(n)) for n in range(9)]
    found = against_gold(model, get("text"), stretches)
    (stage,) = found["kinds"]["word"]
    assert (stage["precision"], stage["recall"], stage["unit_f1"]) == (1, 1, 1)
    assert stage["f1_ci95"] == [1, 1]
    assert found["stretches"] == 9


def test_units_stop_at_the_limit():
    documents = [Document(b"some words here", "a", "a"), Document(b"never read", "b", "b")]
    (only,) = known_units(get("text"), documents, 10)
    assert only.data == b"some words"[:10] or only.data == b"some "


def test_a_long_record_is_several_stretches(monkeypatch):
    """Stretches of a document together hold every boundary and edge except those that they begin with."""
    monkeypatch.setattr(gold, "STRETCH", 1000)
    data = b"ACGTTGCAAC" * 900
    edges, found, settled = np.arange(40, 8990, 35), np.arange(0, 9000, 3), np.arange(9001)
    rows = [{}]
    gold._count(rows, data, [found], edges, settled)
    parts = np.array(rows[0]["model"]).reshape(-1, len(Counts._fields))
    assert len(parts) == 9
    assert parts[:, Counts._fields.index("edges")].sum() == len(edges) - 8
    assert parts[:, Counts._fields.index("places")].sum() == 9000 - 9
    whole = np.array(_compared(data, found, edges, settled)["model"])
    assert abs(parts.sum(0) - whole).max() <= 3 * 8
    figures = _figures(rows[0])
    assert figures["f1_ci95"][0] <= figures["f1"] <= figures["f1_ci95"][1]
    assert figures["f1"] == pytest.approx(_figures({"model": [Counts(*whole)]})["f1"], rel=0.05)


def test_all_annotated_records_count_and_no_others():
    """A record without a kind of place or edge has boundaries all the same; one that is not annotated says nothing."""
    bases = np.random.default_rng(0).choice(np.frombuffer(b"ACGT", np.uint8), 230).tobytes()
    documents = [Document(bases[:90], "chr1", "x"), Document(bases[90:170], "chr2", "x"), Document(bases, "chr3", "x")]
    known = get("dna").annotation(Source.of_bytes(f"{GFF}chr2\tx\tgene\t5\t20\t.\t+\t.\tID=h\n".encode()))
    model = tiny_model().float().eval()
    report = by_region(model, get("dna"), documents, known)
    assert (report["bases"], report["left_out"]) == (170, 230)
    declared = f"##sequence-region chr3 1 230\n{GFF}"
    told = get("dna").annotation(Source.of_bytes(declared.encode()))
    found = by_region(model, get("dna"), documents[1:], told)  # annotated, though nothing was found there
    assert (found["bases"], found["left_out"]) == (230, 80)
    assert found["regions"]["intergenic"]["positions"] == 230
    (_, (outer, _)), (_, (other, _)) = gold.boundaries(model, documents[:2], None)
    outer, other = outer[outer > 0], other[other > 0]
    rate = (len(outer) + len(other)) / 170
    own = np.isin(outer, [*range(3, 9), *range(20, 29), *range(40, 50)])
    assert report["regions"]["CDS"]["positions"] == 25
    assert report["regions"]["CDS"]["stages"][0]["enrichment"] == pytest.approx(own.sum() / 25 / rate)
    edges = report["edges"]["CDS edge"][0]
    assert edges["precision"] == pytest.approx(np.isin(outer, [3, 9, 20, 29, 40, 50]).sum() / (170 * rate))
    assert edges["chance"] == pytest.approx(6 / (89 + 79))


def test_the_command(hnet, evaluated, tmp_path):
    (tmp_path / "gold.txt").write_text("共同  创造  美好  的  新  世纪\n" * 9)
    (tmp_path / "x.fa").write_text(">chr1\n" + "ACGTTGCAAC" * 6 + "\n")
    (tmp_path / "x.gff").write_text(GFF)
    found = evaluated("starter:chinese", "--gold", tmp_path / "gold.txt")["gold"]
    assert found["trivial"]["every_character"]["recall"] == 1
    assert 0 <= found["precision"] <= 1
    assert found["stretches"] == 9
    annotated = ["eval", "starter:dna", "--annotation", tmp_path / "x.gff", "--fasta", tmp_path / "x.fa"]
    code, out, _ = hnet(*annotated)
    assert code == 0
    assert "codon position 1+" in out
    (tmp_path / "x.gff.gz").write_bytes(gzip.compress(f"\ufeff{GFF}chr2\tx\tgene\t1\t9\n{OTHERS}".encode()))
    (tmp_path / "x.fa").write_text(">chr1\n" + "ACGTTGCAAC" * 4 + "\n>chrM\nACGTTGCAAC\n")
    annotated[3] = tmp_path / "x.gff.gz"
    found = evaluated(*annotated[1:])["annotation"]
    assert (found["bases"], found["left_out"], found["left_out_first"]) == (40, 10, "chrM")
    assert found["rows_left_out"] == {
        "no row of GFF, whose nine columns are set by tabs": 1,
        "on a record that is not read": 3,
        "ends beyond what is read of its record": 1,
    }
    code, out, _ = hnet(*annotated)
    words = " ".join(out.split())
    assert "10 more are of records that are not annotated: chrM" in words
    assert "3 rows of the annotation left out: on a record that is not read, first chr3, chr4, chr5" in words
    assert "1 row of the annotation left out: ends beyond what is read of its record, first chr1, base 41" in words


@pytest.mark.parametrize("beside", [[], ["x.fa"]])
def test_what_does_not_fit_is_said_before_anything_is_scored(hnet, tmp_path, monkeypatch, beside):
    (tmp_path / "x.fa").write_text(">1\nACGTTGCAAC\n>2\nACGTTGCAAC\n>3\nACG\n>4\nACG\n")
    (tmp_path / "x.gff").write_text(GFF)
    monkeypatch.setattr(report, "score", None)
    monkeypatch.setattr(gold, "boundaries", None)
    files = [tmp_path / name for name in beside]
    annotated = ["--annotation", tmp_path / "x.gff", *([] if beside else ["--fasta", tmp_path / "x.fa"])]
    code, _, err = hnet("eval", "starter:dna", *files, *annotated)
    assert code == 3
    assert "the sequence has 1, 2, 3, ..., the annotation chr1" in " ".join(err.split())


def test_starters_beat_random_boundaries():
    model = load("starter:text")
    text = b"It was the best of times, it was the worst of times, it was the age of wisdom. " * 4
    found = against_gold(model, get("text"), known_units(get("text"), [Document(text, "a", "a")], 1000))
    stage, _ = found["kinds"]["word"]
    assert stage["f1"] > 1.5 * stage["trivial"]["random"]["f1"]
