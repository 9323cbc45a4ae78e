"""Boundaries against what people have marked: readers of gold files; precision, recall, F1 beside the trivial rules."""

import io
import json
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from hnet_cli import modality
from hnet_cli.checkpoints import find as finding
from hnet_cli.cli import app as cli
from hnet_cli.errors import InputError
from hnet_cli.evaluation import gold
from hnet_cli.evaluation.gold import _compared, _figures, against, by_region, of_units
from hnet_cli.modality import Document, Gold, Refused, Source

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
    return list(modality.get(name).gold(Source.of_bytes(text.encode(), "gold")))


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
    *kept, last = modality.get("chinese").gold(Source.of_bytes(whole[:-1], "gold"))
    assert [pieces(each) for each in kept] == [["共同", "创造"], ["美好", "的"]]
    assert last == Refused("line cut off at the end", "gold, line 3", len("世纪".encode()) - 1)
    with pytest.raises(InputError, match="line 1: byte 0xb9 is not UTF-8") as error:
        list(modality.get("chinese").gold(Source.of_bytes("共同  创造\n".encode("gb18030"), "gold")))
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
    assert refused.reason == "word of more than 500 letters"
    row = "1\tdogs\n"
    *_, refused = [item for item in read("text", row + "9" * 5000 + "\tx\n") if isinstance(item, Refused)]
    assert refused.reason == "line is no row of CoNLL-U"


@pytest.mark.parametrize("text", ["", "\n\n", "# only a comment\n"])
def test_a_gold_file_without_a_sentence_is_named(text):
    with pytest.raises(InputError, match="gold holds no marked sentence"):
        read("text", text)


def test_a_gold_file_in_another_encoding_is_named():
    with pytest.raises(InputError, match="line 2: byte 0xb9"):
        list(modality.get("chinese").gold(Source.of_bytes(b"a b\n" + "共同".encode("gb2312"), "gold")))


# -- where a boundary is read ------------------------------------------------------------------------------------------


@given(st.text(st.sampled_from("a ,é中\u3000\n😀")))
def test_boundaries_settle_on_characters_that_are_seen(text):
    data = text.encode()
    settled = np.asarray(modality.get("text").settle(data))
    assert len(settled) == len(data) + 1
    at, starts = 0, []
    for char in text:
        starts += [at] * (not char.isspace())
        at += len(char.encode())
    starts.append(len(data))
    for position, to in enumerate(settled):
        assert to == min(start for start in starts if start >= position)


# -- figures -----------------------------------------------------------------------------------------------------------


def compared(text, found, edges):
    data = text.encode()
    return _compared(data, np.array(found), edges, np.asarray(modality.get("text").settle(data)))


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
    assert rows["random"][0] == pytest.approx(expected_hits)
    generator = np.random.default_rng(0)
    thrown = generator.random((4000, size)) < rate
    thrown[:, 0] = True
    wanted = marked.copy()
    wanted[0] = True
    borders = [*np.flatnonzero(wanted), size]
    right = 0.0
    for a, b in pairwise(borders):
        alone = thrown[:, a] & ~thrown[:, a + 1 : b].any(1)
        right += (alone & (thrown[:, b] if b < size else True)).mean()
    assert rows["random"][4] == pytest.approx(right, abs=0.15 + 0.02 * len(borders))


def test_a_model_that_cuts_at_the_words_scores_one():
    """The whole path, with a chunker whose rule is known: SpaceByte's boundaries stand on spaces."""
    from modelkit import tiny_config, tiny_model

    config = tiny_config(("m1", ("T1",), "m1"), chunker={"kind": "space"})
    model = tiny_model(config=config).float().eval()
    words = [b"words", b"set", b"apart", b"by", b"spaces"]
    edges = np.cumsum([0] + [len(word) + 1 for word in words[:-1]]).tolist()
    stretches = [Gold(b" ".join(words), {"word": edges}, str(n)) for n in range(9)]
    found = against(model, modality.get("text"), stretches)
    (stage,) = found["kinds"]["word"]
    assert (stage["precision"], stage["recall"], stage["unit_f1"]) == (1, 1, 1)
    assert stage["f1_ci95"] == [1, 1]
    assert found["stretches"] == 9


def test_code_is_lexed_by_its_language():
    code = modality.get("code")
    python = b'def f(x):\n    """A doc."""\n    return x + 1.5e-3  # why\n'
    starts = code.units(Document(python, "a.py", "dir/a.py"))["token"]
    tokens = [python[a:b].split()[0] for a, b in zip(starts, [*starts[1:], len(python)], strict=True)]
    assert tokens == [b"def", b"f", b"(", b"x", b")", b":", b'"""A', b"return", b"x", b"+", b"1.5e-3", b"#"]
    script = "const π = `a ${b}`; // été\n".encode()
    starts = code.units(Document(script, "a.js", "a.js"))["token"]
    assert script[starts[1] :].startswith("π".encode())
    assert script[starts[-1] :] == "// été\n".encode()
    broken = b"def f(:\n  'no end\n"
    assert code.units(Document(broken, "b.py", "b.py"))["token"][0] == 0
    unknown = code.units(Document(b"a  b", "x.unknown", "x.unknown"))["token"]
    assert unknown == [0, 3]


@given(st.text(st.sampled_from("ab_1 \n\t#'\"()é中\r\f\x0b;/*")), st.sampled_from(["a.py", "a.c", "a.js", "a.zzz"]))
def test_units_ascend_and_begin_where_something_is_seen(text, name):
    data = text.encode()
    starts = modality.get("code").units(Document(data, name, name))["token"]
    assert starts == sorted(set(starts))
    assert all(0 <= start < len(data) for start in starts)


def test_units_stop_at_the_limit():
    documents = [Document(b"some words here", "a", "a"), Document(b"never read", "b", "b")]
    (only,) = of_units(modality.get("text"), documents, 10)
    assert only.data == b"some words"[:10] or only.data == b"some "


# -- DNA ---------------------------------------------------------------------------------------------------------------

GFF = """\
##gff-version 3
chr1\tx\tgene\t4\t30\t.\t+\t.\tID=g
chr1\tx\tCDS\t4\t9\t.\t+\t0\tParent=t
chr1\tx\tCDS\t21\t29\t.\t+\t0\tParent=t
chr1\tx\tCDS\t41\t50\t.\t-\t1\tParent=u
"""


def regions(document, text=GFF):
    return modality.get("dna").annotation(Source.of_bytes(text.encode(), "a.gff")).regions(document)


def test_codon_positions_on_both_strands():
    found = regions(Document(b"A" * 60, "chr1", "x.fa"))
    assert found["codon position 1+"].tolist() == [3, 6, 20, 23, 26]
    assert found["codon position 2+"].tolist() == [4, 7, 21, 24, 27]
    # bases 41 to 50 (from 1) read backwards; phase 1: the first codon is 48, 47, 46 from 0
    assert found["codon position 1-"].tolist() == [42, 45, 48]
    assert found["codon position 3-"].tolist() == [40, 43, 46, 49]
    assert found["intron"].tolist() == list(range(9, 20))
    assert found["intergenic"].tolist() == [0, 1, 2, *range(30, 40), *range(50, 60)]


def test_phases_that_are_not_told_follow_from_whole_codons():
    """The parts of a transcript are read on; one that is no whole number of codons says nothing."""
    rows = ["4\t8\t.\t+\t.\tParent=t", "21\t24\t.\t+\t.\tParent=t", "41\t44\t.\t-\t.\tParent=u",
            "50\t54\t.\t-\t.\tParent=u", "30\t33\t.\t+\t.\tParent=v"]  # fmt: skip
    found = regions(Document(b"A" * 60, "chr1", "x.fa"), "".join(f"chr1\tx\tCDS\t{row}\n" for row in rows))
    assert found["codon position 1+"].tolist() == [3, 6, 21]
    assert found["codon position 3+"].tolist() == [5, 20, 23]
    assert found["codon position 1-"].tolist() == [42, 50, 53]
    assert found["codon position 3-"].tolist() == [40, 43, 51]


@given(st.integers(0, 59), st.integers(1, 60))
def test_a_piece_of_a_record_sees_its_own_part(offset, length):
    whole = regions(Document(b"A" * 60, "chr1", "x.fa"))
    piece = Document(b"A" * min(length, 60 - offset), "chr1", "x.fa", "", offset)
    found = regions(piece)
    for kind, positions in whole.items():
        own = [at - offset for at in positions if offset <= at < offset + len(piece.data)]
        assert list(found.get(kind, [])) == own


def test_genbank_says_the_same_as_gff():
    from Bio.Seq import Seq
    from Bio.SeqFeature import CompoundLocation, SeqFeature, SimpleLocation
    from Bio.SeqIO import write
    from Bio.SeqRecord import SeqRecord

    record = SeqRecord(Seq("A" * 60), "chr1", "chr1", annotations={"molecule_type": "DNA"})
    spliced = CompoundLocation([SimpleLocation(3, 9, 1), SimpleLocation(20, 29, 1)])
    record.features = [
        SeqFeature(SimpleLocation(3, 30, 1), "gene"),
        SeqFeature(spliced, "CDS", qualifiers={"codon_start": ["1"]}),
        SeqFeature(SimpleLocation(40, 50, -1), "CDS", qualifiers={"codon_start": ["2"]}),
    ]
    text = io.StringIO()
    write([record], text, "genbank")
    document = Document(b"A" * 60, "chr1", "x.fa")
    expected, found = regions(document), regions(document, text.getvalue())
    assert {kind: list(at) for kind, at in found.items()} == {kind: list(at) for kind, at in expected.items()}


def test_a_gene_across_the_origin_of_a_circle_has_no_intron():
    from Bio.Seq import Seq
    from Bio.SeqFeature import CompoundLocation, SeqFeature, SimpleLocation
    from Bio.SeqIO import write
    from Bio.SeqRecord import SeqRecord

    record = SeqRecord(Seq("A" * 90), "chr1", "chr1", annotations={"molecule_type": "DNA"})
    for strand, first in ((1, SimpleLocation(60, 90, 1)), (-1, SimpleLocation(0, 9, -1))):
        second = SimpleLocation(0, 9, 1) if strand > 0 else SimpleLocation(60, 90, -1)
        record.features = [SeqFeature(CompoundLocation([first, second]), "CDS")]
        text = io.StringIO()
        write([record], text, "genbank")
        found = regions(Document(b"A" * 90, "chr1", "x.fa"), text.getvalue())
        assert "intron" not in found
        assert list(found["intergenic"]) == list(range(9, 60))
    spliced = CompoundLocation([SimpleLocation(60, 90, -1), SimpleLocation(0, 9, -1)])
    record.features = [SeqFeature(spliced, "CDS")]
    text = io.StringIO()
    write([record], text, "genbank")
    assert list(regions(Document(b"A" * 90, "chr1", "x.fa"), text.getvalue())["intron"]) == list(range(9, 60))


def test_a_long_record_is_several_stretches(monkeypatch):
    """Which together have every boundary and edge but the edges that they begin with."""
    monkeypatch.setattr(gold, "BLOCK", 1000)
    data = b"ACGTTGCAAC" * 900
    edges, found, settled = np.arange(40, 8990, 35), np.arange(0, 9000, 3), np.arange(9001)
    rows = [{}]
    gold._add(rows, data, [found], edges, settled)
    parts = np.array(rows[0]["model"])
    assert len(parts) == 9
    assert parts[:, gold.EDGES].sum() == len(edges) - 8
    assert parts[:, gold.BYTES].sum() == 9000
    whole = np.array(_compared(data, found, edges, settled)["model"])
    assert abs(parts.sum(0) - whole).max() <= 3 * 8
    figures = _figures(rows[0])
    assert figures["f1_ci95"][0] <= figures["f1"] <= figures["f1_ci95"][1]
    assert figures["f1"] == pytest.approx(_figures({"model": [whole.tolist()]})["f1"], rel=0.05)


def test_all_annotated_records_count_and_no_others():
    """A record without a kind of place or edge has boundaries all the same; one that is not annotated says nothing."""
    from modelkit import tiny_model

    bases = np.random.default_rng(0).choice(np.frombuffer(b"ACGT", np.uint8), 230).tobytes()
    documents = [Document(bases[:90], "chr1", "x"), Document(bases[90:170], "chr2", "x"), Document(bases, "chr3", "x")]
    known = modality.get("dna").annotation(Source.of_bytes(f"{GFF}chr2\tx\tgene\t5\t20\t.\t+\t.\tID=h\n".encode()))
    model = tiny_model().float().eval()
    report = by_region(model, modality.get("dna"), documents, known)
    assert (report["bases"], report["left_out"]) == (170, 230)
    declared = f"##sequence-region chr3 1 230\n{GFF}"
    told = modality.get("dna").annotation(Source.of_bytes(declared.encode()))
    found = by_region(model, modality.get("dna"), documents[1:], told)  # annotated, though nothing was found there
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


@pytest.mark.parametrize("text", ["", "chr1\tx\tgene\n", "LOCUS       broken\n", "##gff-version 3\n", "what is this",
                                  f"chr1\tx\tgene\t{'9' * 5000}\t5\t.\t+\t.\tID=g\n"])  # fmt: skip
def test_a_file_that_is_no_annotation_is_named(text):
    with pytest.raises(InputError, match=r"a\.gff") as error:
        regions(Document(b"A", "chr1", ""), text)
    assert "\n" not in str(error.value)


def test_the_command(capsys, tmp_path):
    (tmp_path / "gold.txt").write_text("共同  创造  美好  的  新  世纪\n" * 9)
    (tmp_path / "x.fa").write_text(">chr1\n" + "ACGTTGCAAC" * 6 + "\n")
    (tmp_path / "x.gff").write_text(GFF)
    assert cli.run(["eval", "starter:chinese", "--gold", str(tmp_path / "gold.txt"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["gold"]
    assert found["trivial"]["every_character"]["recall"] == 1
    assert 0 <= found["precision"] <= 1
    assert found["stretches"] == 9
    arguments = ["--annotation", str(tmp_path / "x.gff"), "--fasta", str(tmp_path / "x.fa")]
    assert cli.run(["eval", "starter:dna", *arguments]) == 0
    assert "codon position 1+" in capsys.readouterr().out
    (tmp_path / "x.fa").write_text(">1\nACGTTGCAAC\n")
    assert cli.run(["eval", "starter:dna", *arguments]) == 3
    assert "the sequence has 1, the annotation chr1" in capsys.readouterr().err


def test_starters_beat_random_boundaries():
    model = finding.load("starter:text")
    text = b"It was the best of times, it was the worst of times, it was the age of wisdom. " * 4
    found = against(model, modality.get("text"), of_units(modality.get("text"), [Document(text, "a", "a")], 1000))
    (stage,) = found["kinds"]["word"]
    assert stage["f1"] > 1.5 * stage["trivial"]["random"]["f1"]
