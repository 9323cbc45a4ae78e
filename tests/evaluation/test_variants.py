"""Variants of a genome: their flanks, scores, strands and labels."""

import numpy as np
import pytest
import torch
from dnakit import calls, substitution
from hypothesis import given
from hypothesis import strategies as st
from laws import one_in
from modelkit import tiny_model

from hnet_cli import modality
from hnet_cli.errors import InputError
from hnet_cli.evaluation import variants
from hnet_cli.evaluation.tables import tables
from hnet_cli.inference.continuations import loglikelihoods
from hnet_cli.inference.windows import BATCH_BYTES, BOS
from hnet_cli.modality import Source, Variant

REACH = variants._Reach(5, 5)


def test_the_ratio_is_that_of_whole_sequences(model):
    """ln P of the two whole windows, the common start cancels; at the record's start from BOS."""
    variant = Variant("v", b"ACG", b"T", b"TAA", b"GGCAT", begins=True, record="chr1", position=3)
    (found,) = variants._ratios(model, [variants._site(variant, 3, REACH)])
    whole = [BOS + b"ACG" + allele + b"GGCAT" for allele in (b"TAA", b"T")]
    (a, b), _ = loglikelihoods(model, [(BOS, each[1:]) for each in whole])
    assert found == pytest.approx(a - b, rel=1e-4)
    inside = Variant("v", b"ACG", b"T", b"TAA", b"GGCAT", record="chr1", position=30)
    (a, b), _ = loglikelihoods(model, [(b"A", each[2:]) for each in whole])
    assert variants._ratios(model, [variants._site(inside, 30, REACH)])[0] == pytest.approx(a - b, rel=1e-4)


@given(st.integers(0, 200), st.integers(1, 9), st.integers(1, 170))
def test_what_is_read_begins_at_a_border(position, size, context):
    """A quarter to three quarters of the context, the same for whatever lies between two borders."""
    genome = bytes(97 + n % 26 for n in range(200 + 9 + 120))
    quarter, end = max(1, context // 4), position + size
    flank = 3 * quarter
    before = genome[max(0, position - flank) : position]
    alleles, place = (genome[position:end], b"-"), {"record": "chr1", "position": position}
    variant = Variant("v", before, *alleles, genome[end : end + flank], position <= flank, **place)
    site = variants._site(variant, position, variants._Reach.of(context))
    read = genome[max(0, site.begin) : position]
    assert site.before == read
    assert site.at == position
    assert site.after == genome[end : end + max(1, context // 8)]
    assert (site.begin % (2 * quarter) == 0) or site.begin == 0
    assert (site.head == BOS) == (site.begin == 0)
    if site.begin:
        assert quarter <= len(read) < 3 * quarter


def sites_in(genome, places, reach):
    def site(at):
        place = {"record": "chr1", "position": at}
        variant = Variant("", genome[:at], genome[at:][:1], b"-", genome[at + 1 :], True, **place)
        return variants._site(variant, at, reach)

    return list(map(site, places))


@given(st.sets(st.integers(192, 380), min_size=1, max_size=9).map(sorted))
def test_a_reference_is_whole_and_every_alternative_leaves_it_in_its_place(places):
    """However far the variants are from each other, between two borders."""
    genome = bytes(n % 251 for n in range(400))
    sites = sites_in(genome, places, variants._Reach(64, 5))
    for key in {site.key for site in sites}:
        ours = [site for site in sites if site.key == key]
        track = variants._track(ours)
        assert track.text == genome[ours[0].begin : ours[-1].at + 6]
        for site, branch in zip(ours, track.branches, strict=True):
            assert track.text[branch.at :][:1] == site.reference
            assert branch.continuation == b"-" + site.after


def test_variants_beside_each_other_read_the_reference_once(model, monkeypatch):
    """And each on from where it is: less than half of what each would read alone."""
    sites, read = sites_in(b"ACGTTGCA" * 40, range(100, 160, 4), variants._Reach(64, 32)), []
    extend = type(model).extend
    monkeypatch.setattr(type(model), "extend", lambda self, ids, *more: read.append(ids) or extend(self, ids, *more))
    variants._ratios(model, sites)
    total = sum(len(each) for call in read for each in call)
    assert total < sum(len(site.before) + 2 * (1 + len(site.after)) for site in sites) / 2


EDITS = st.tuples(st.integers(0, 59), st.integers(1, 4), st.lists(st.text("ACGT", min_size=1, max_size=5), min_size=1))


@pytest.fixture(scope="module")
def exact():
    return tiny_model().eval()


@pytest.mark.slow
@one_in(5)
@given(st.text("ACGTN", min_size=60, max_size=60), st.lists(EDITS, min_size=1, max_size=5), st.integers(1, 60))
def test_scores_are_those_of_each_allele_alone(tmp_path_factory, exact, genome, edits, context):
    """Both strands, at the ends of a record and beside gaps; several alternatives, the same twice, one over another."""
    folder, dna, reach = tmp_path_factory.mktemp("calls"), modality.get("dna"), variants._Reach.of(context)
    rows = [("chr1", at + 1, ".", genome[at : at + size], ",".join(new), ".", ".", ".") for at, size, new in edits]
    vcf, fasta = calls(folder, *rows, genome=genome)
    source = [Source(str(path), lambda path=path: path.open("rb"), "") for path in (vcf, fasta)]
    found = [each for each in dna.variants(*source, 3 * reach.before) if isinstance(each, Variant)]
    sites = [variants._site(each, each.position, reach) for each in found]
    sites += [variants._site(*variants._mirrored(dna, each), reach, "-") for each in found]

    def log(site, allele):
        ids = torch.tensor([list(site.head + site.before + allele + site.after)])
        with torch.no_grad():
            logs = exact(ids[:, :-1]).logits[0].log_softmax(-1)
        return float(logs.gather(1, ids[0, 1:, None])[len(site.head + site.before) - 1 :].sum())

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(BATCH_BYTES, "cpu", 150)
        scores = variants._ratios(exact, sites)
        patch.setattr(variants, "goes_on", lambda model: False)  # as on a GPU
        apart = variants._ratios(exact, sites)
    expected = [log(each, each.alternative) - log(each, each.reference) for each in sites]
    np.testing.assert_allclose(scores, expected, rtol=1e-5, atol=5e-5)  # losses are float32
    np.testing.assert_allclose(apart, expected, rtol=1e-5, atol=5e-5)


def test_both_strands_are_read():
    dna = modality.get("dna")
    variant = Variant("v", b"AACC", b"GA", b"T", b"GGT", begins=True, record="chr1", position=4)
    mirrored, at = variants._mirrored(dna, variant)
    assert (mirrored.before, mirrored.reference, mirrored.alternative, mirrored.after) == (b"ACC", b"TC", b"A", b"GGTT")
    assert (mirrored.begins, mirrored.ends, at) == (False, True, -6)
    assert variants._mirrored(dna, mirrored)[0] == variant


def test_scores_and_labels(tmp_path, evaluated):
    rows = [substitution(n, f"AF={n / 100}") for n in range(10, 30)]
    vcf, fasta = calls(tmp_path, *rows)
    found = evaluated("starter:dna", "--vcf", vcf, "--fasta", fasta, "--scores", tmp_path / "s.tsv")["variants"]
    assert found["variants"] == 20
    assert found["label"]["measure"] == "spearman"
    rivals = found["label"]["baselines"]
    assert {name for name in rivals if not name.endswith("_ci95")} == {"transition", "cpg", "gc", "length"}
    for figures, name in ((rivals, "cpg"), (found, "strand_correlation"), (found, "llr_substitution")):
        assert figures[f"{name}_ci95"][0] <= figures[name] <= figures[f"{name}_ci95"][1]
    header, *lines = (tmp_path / "s.tsv").read_text().splitlines()
    assert header.split("\t")[:7] == ["CHROM", "POS", "REF", "ALT", "variant", "kind", "llr"]
    assert [tuple(line.split("\t")[:5]) for line in lines] == [(r[0], str(r[1]), r[3], r[4], r[2]) for r in rows]
    table = np.array([[float(each) for each in line.split("\t")[6:9]] for line in lines])
    assert table[:, 0] == pytest.approx(table[:, 1:].mean(1), rel=1e-4, abs=1e-4)
    assert found["llr"] == pytest.approx(table[:, 0].mean(), rel=1e-4)


def test_a_modality_without_another_strand_has_one_score(tmp_path, model):
    class OneStrand(type(modality.get("dna"))):
        def mirror(self, data):
            return None

    vcf, fasta = calls(tmp_path, *map(substitution, (10, 11, 12)))
    out = tmp_path / "s.tsv"
    found = variants.score(model, variants.read(OneStrand(), vcf, fasta), 64, out)
    table = np.array([[float(each) for each in line.split("\t")[6:9]] for line in out.read_text().splitlines()[1:]])
    assert np.array_equal(table[:, 0], table[:, 1])
    assert "strand_correlation" not in found


def test_the_first_call_that_is_left_out_is_named(tmp_path, hnet):
    good = substitution(10)
    wrong = (*good[:3], good[4], good[3])
    vcf, fasta = calls(tmp_path, good, wrong, wrong)
    code, out, _ = hnet("eval", "starter:dna", "--vcf", vcf, "--fasta", fasta)
    assert code == 0
    assert f"REF is not what the reference has there: first {vcf}, line 4: chr1" in out


def test_a_context_without_end_has_no_parts(tmp_path, hnet):
    vcf, fasta = calls(tmp_path, substitution(10))
    code, _, err = hnet("eval", "starter:dna", "--vcf", vcf, "--fasta", fasta, "--context", 0)
    assert code == 2
    assert "give --context 2048" in err


@given(st.lists(st.integers(0, 5), min_size=2, max_size=30), st.randoms())
def test_rank_figures_by_definition(values, random):
    scores = np.array([random.randint(0, 4) for _ in values], float)
    numbers = np.array(values, float)
    if len(set(values)) > 1:
        high, low = scores[numbers == numbers.max()], scores[numbers != numbers.max()]
        wins = (high[:, None] > low).mean() + 0.5 * (high[:, None] == low).mean()
        assert variants._auc(scores, numbers) == pytest.approx(wins)
    ranks = variants.midranks(numbers)
    assert all(ranks[i] < ranks[j] for i in range(len(values)) for j in range(len(values)) if values[i] < values[j])
    assert ranks.sum() == pytest.approx(len(values) * (len(values) + 1) / 2)


ROW = "chr1\t{}\t.\t{}\tG\t.\t.\tAF={}\n"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "no variants"),
        ("chr1 2 C T\n", "not CHROM"),
        ("chr1\t2\t.\tA\tG\n", "REF is not"),
        (f"chr1\t{'9' * 5000}\t.\tA\tG\n", "not CHROM"),
    ],
)
def test_calls_that_cannot_be_used(tmp_path, hnet, text, says):
    vcf, fasta = calls(tmp_path)
    vcf.write_text(text)
    code, _, err = hnet("eval", "starter:dna", "--vcf", vcf, "--fasta", fasta)
    assert code == 3
    assert says in err


FLOAT = "##INFO=<ID=X,Number={},Type=Float,Description=x>\n"


@pytest.mark.parametrize(
    ("header", "values", "compared"),
    [
        ("", ["X=0.1", "X=.", "Y=1", "X=0.3", "X=nan", "X=inf"], [0.1, None, None, 0.3, None, None]),
        (FLOAT.format("A"), ["X=0.1", "X=", "X=0.1,.", "X=0.3", "X=low", "."], [0.1, None, None, 0.3, None, None]),
        (FLOAT.format("R"), ["X=0.9,0.1", "X=0.7,0.3", "X=0.3"], [0.1, 0.3, None]),
        ("##INFO=<ID=X,Number=0,Type=Flag,Description=x>\n", ["X", ".", "Y=1"], [1, 0, 0]),
        ("", ["X;Y=1", "Y=1", "X"], [1, 0, 1]),
        ("", ["X=benign", "X=pathogenic", "X=.", "Y=1"], [0, 1, None, None]),
    ],
)
def test_a_variant_without_a_value_is_left_out_of_the_comparison(tmp_path, header, values, compared):
    vcf, fasta = calls(tmp_path, *(substitution(10 + at, value) for at, value in enumerate(values)))
    vcf.write_text(header + vcf.read_text())
    found = variants.read(modality.get("dna"), vcf, fasta, "X")
    assert found.number == len(values)
    assert [None if np.isnan(value) else value for value in found.values] == compared


@pytest.mark.parametrize(
    ("header", "values", "says"),
    [
        ("", ["Y=1", "Y=2"], "no variant has a value of X"),
        ("", ["X=.", "X="], "no variant has a value of X"),
        ("", ["X=1", "X=1", "X=."], "X has fewer than two different values: 1"),
        ("", ["X=a", "X=b", "X=c", "X=d"], "X is neither a number nor one of two values: a, b, c, ..."),
        (FLOAT.format("G"), ["X=1,2,3", "X=3,4,5"], "X has several values for an allele"),
        (FLOAT.format(2), ["X=1,2", "X=3,4"], "X has several values for an allele"),
        ("", [f"X={letter * 10**6}" for letter in "abc"], f"two values: {'a' * 40}, {'b' * 40}, {'c' * 40}"),
    ],
)
def test_what_cannot_be_compared_is_said_before_anything_is_scored(tmp_path, hnet, monkeypatch, header, values, says):
    vcf, fasta = calls(tmp_path, *(substitution(10 + at, value) for at, value in enumerate(values)))
    vcf.write_text(header + vcf.read_text())
    monkeypatch.setattr(variants, "_ratios", None)
    code, _, err = hnet("eval", "starter:dna", fasta, "--vcf", vcf, "--fasta", fasta, "--label", "X")
    assert code == 3
    assert says in err
    assert len(err) < 1500


def test_an_unasked_comparison_is_left_out_where_it_says_nothing(tmp_path, model):
    dna, rows = modality.get("dna"), [substitution(10, "AF=."), substitution(11, "AF=0.5"), substitution(12)]
    found = variants.score(model, variants.read(dna, *calls(tmp_path, *rows)), 64)
    assert (found["variants"], "label" in found) == (3, False)
    found = variants.score(model, variants.read(dna, *calls(tmp_path, *rows, substitution(13, "AF=0.1"))), 64)
    assert (found["variants"], found["label"]["variants"], found["label"]["left_out"]) == (4, 2, 2)
    table = [*tables({"model": "x", "variants": found})][-1]
    assert "no value of AF to compare with" in [str(cell) for cell in table.columns[0].cells]


def test_the_comparison_is_of_the_variants_that_have_a_value(tmp_path, model):
    dna, rows = modality.get("dna"), [substitution(at, f"AF={at / 100}" if at % 2 else "AF=.") for at in range(10, 30)]
    with_gaps, without = (variants.read(dna, *calls(tmp_path, *some)) for some in (rows, rows[1::2]))
    calls(tmp_path, *rows)
    labelled = variants.score(model, with_gaps, 64)["label"]
    calls(tmp_path, *rows[1::2])
    assert labelled | {"left_out": 0} == variants.score(model, without, 64)["label"]
    with pytest.raises(InputError, match="has changed since it was read"):
        variants.score(model, with_gaps, 64)


def test_scores_are_of_one_model(tmp_path, hnet):
    vcf, fasta = calls(tmp_path, substitution(10))
    scores = tmp_path / "s.tsv"
    arguments = ["--vcf", vcf, "--fasta", fasta, "--scores", scores]
    code, _, err = hnet("eval", "starter:dna", "starter:dna", *arguments)
    assert (code, scores.exists()) == (2, False)
    assert "--scores is one file" in err
