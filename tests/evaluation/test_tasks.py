"""Noise, multiple choice, variants: what is asked of a model beyond bits per byte."""

import json
import math
import subprocess
import sys
from random import Random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from modelkit import tiny_model

from hnet_cli import modality
from hnet_cli.checkpoints import find as finding
from hnet_cli.cli import app as cli
from hnet_cli.errors import InputError
from hnet_cli.evaluation import noise, tasks, variants
from hnet_cli.evaluation.scoring import loglikelihoods, score
from hnet_cli.inference.windows import BOS
from hnet_cli.modality import Refused, Source, Variant


@pytest.fixture(scope="module")
def model():
    return tiny_model(torch.float32).eval()


def perturb(kind, name, text, seed=0):
    return modality.get(kind).perturbations()[name](text.encode(), Random(seed)).decode()


# -- noise -------------------------------------------------------------------------------------------------------------


def test_the_five_of_the_paper():
    assert perturb("text", "AntSpeak", "Ant, é") == "A N T ,   É"
    assert perturb("text", "UpperCase", "a Ss é") == "A SS É"
    words = "the quick brown fox " * 200
    assert perturb("text", "RandomCase", words).lower() == words
    upper = sum(char.isupper() for char in perturb("text", "RandomCase", words))
    assert 0.4 < upper / sum(char.isalpha() for char in words) < 0.6
    assert 0.08 < 1 - len(perturb("text", "Drop", words)) / len(words) < 0.12
    repeated = perturb("text", "Repeat", words)
    assert 1.3 < len(repeated) / len(words) < 1.5  # a fifth stands three times on average


@pytest.mark.parametrize("kind", ["text", "chinese", "code", "dna"])
def test_a_seed_gives_the_same_noise(kind):
    data = "def f(x): return 我们的 在 ACGT" if kind != "dna" else "ACGTTGCA" * 20
    for name, distort in modality.get(kind).perturbations().items():
        assert distort(data.encode(), Random(1)) == distort(data.encode(), Random(1)), name


def test_noise_in_other_modalities():
    assert perturb("chinese", "FullWidth", "a1 中") == "ａ１\u3000中"
    assert perturb("chinese", "HalfWidth", "ａ１，中。") == "a1,中."
    swapped = perturb("chinese", "Homophone", "的在他" * 50)
    assert set(swapped) <= set("的地得再在他她它")
    assert swapped != "的在他" * 50
    renamed = perturb("code", "Rename", "def total(count):\n    return count + count.total")
    defined, argument = renamed.split("(")[0].split()[1], renamed.split("(")[1].split(")")[0]
    assert renamed == f"def {defined}({argument}):\n    return {argument} + {argument}.{defined}"
    assert defined != "total"
    assert perturb("code", "Indent", "a\n    b\n\tc") == "a\n\tb\n  c"
    changed = perturb("dna", "Substitution", "ACGT" * 500)
    assert 0.07 < sum(a != b for a, b in zip(changed, "ACGT" * 500, strict=True)) / 2000 < 0.13
    assert perturb("dna", "ReverseComplement", "AACGT") == "ACGTT"


@given(st.text(alphabet="ACGT"))
def test_the_reverse_complement_is_its_own_inverse(sequence):
    mirror = modality.get("dna").mirror
    assert mirror(mirror(sequence.encode())) == sequence.encode()


def test_dearer_is_measured_in_bits_of_the_same_content(model):
    documents = [f"document number {n} of a few".encode() for n in range(9)]
    found = noise.robustness(model, documents, modality.get("text").perturbations(), 64, None)
    clean = score(model, documents, 64)
    spaced = score(model, [b" ".join(bytes([byte]) for byte in each.upper()) for each in documents], 64)
    ant = found["AntSpeak"]
    assert ant["bpb"] == pytest.approx(spaced.nats.sum() / math.log(2) / spaced.bytes.sum())
    assert ant["bits_per_clean_byte"] == pytest.approx(spaced.nats.sum() / math.log(2) / clean.bytes.sum())
    assert ant["ratio"] == pytest.approx(spaced.nats.sum() / clean.nats.sum())
    assert ant["ratio_ci95"][0] < ant["ratio"] < ant["ratio_ci95"][1]


def test_few_documents_are_paired_window_by_window(model):
    """As many bits and bytes as there are, each with the clean ones of the same part of its document."""
    documents = [bytes(range(97, 122)) * 40, b"another, of a few windows " * 9]
    doubled = {"Doubled": lambda data, random: b"".join(bytes([byte] * 2) for byte in data)}
    found = noise.robustness(model, documents, doubled, 64, None)
    clean = score(model, documents, 64)
    noisy = score(model, [doubled["Doubled"](each, None) for each in documents], 64)
    rows = noise._paired(clean, noisy, np.arange(2))
    assert len(rows) == len(clean.owner)
    assert rows[:, 1].tolist() == (2 * clean.bytes).tolist()
    assert rows[:, 2].sum() == pytest.approx(clean.nats.sum() / math.log(2))
    assert rows[3, 0] == pytest.approx(noisy.nats[6:8].sum() / math.log(2))
    low, high = found["Doubled"]["ratio_ci95"]
    assert low < found["Doubled"]["ratio"] < high
    nothing = noise._paired(clean, score(model, documents[1:], 64), np.array([1]))  # the first has lost all its bytes
    assert nothing[:, 1].sum() == len(documents[1])
    assert nothing[:, 3].sum() == sum(map(len, documents))


# -- tasks -------------------------------------------------------------------------------------------------------------

ROWS = [
    {"ctx_a": "He sits [x] down.", "ctx_b": "he", "activity_label": "Chairs", "endings": ["a b", "c"], "label": "1"},
    {"goal": "Open it", "sol1": "Pull.", "sol2": "Push.", "label": 0},
    {"question": "Why?", "choices": {"text": ["so", "no"], "label": ["A", "B"]}, "answerKey": "B"},
    {"query": "Q", "choices": ["x", "y"], "gold": 1},
    {"context": "I do not care about", "continuation": "signs"},
    {"text": "a last word"},
]


def test_shapes_of_tasks(tmp_path):
    file = tmp_path / "tasks.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    assert tasks.read(file) == [
        tasks.Item("Chairs: He sits down. He", ("a b", "c"), 1),
        tasks.Item("Question: Open it\nAnswer:", ("Pull.", "Push."), 0),
        tasks.Item("Question: Why?\nAnswer:", ("so", "no"), 1),
        tasks.Item("Q", ("x", "y"), 1),
        tasks.Item("I do not care about", ("signs",), 0),
        tasks.Item("a last", ("word",), 0),
    ]
    lines = tmp_path / "hellaswag.txt"
    lines.write_text("Cooking: she\n2\none\ntwo\nthree\nfour\n")
    assert tasks.read(lines) == [tasks.Item("Cooking: she", ("one", "two", "three", "four"), 2)]


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("", "no items"),
        ('{"query": "a", "choices": ["b"], "gold": 3}\n', "line 1"),
        ('{"query": "a", "choices": ["b"], "gold": 0}\n{"other": 1}\n', "line 2"),
        ('{"query": "a"\n', "line 1"),
        ('{"query": "a", "choices": ["\\ud800"], "gold": 0}\n', "line 1"),
        ("text\n5\na\nb\nc\nd\n", "line 2"),
        ("text\n1\na\nb\n", "line 2"),
        ("# A page\n\na\nb\nc\nd\n", "line 2"),
        ("one line\n", "line 2"),
        ("text\n1\na\nb\nc\nd\nand a line too many\n", "line 8"),
    ],
)
def test_a_bad_task_is_named_by_its_line(tmp_path, text, where):
    (tmp_path / "bad").write_text(text)
    with pytest.raises(InputError, match=where):
        tasks.read(tmp_path / "bad")


def test_choices_by_hand(model):
    items = [tasks.Item("Some text", ("one", "a longer one", "x"), answer) for answer in range(3)]
    log, _ = loglikelihoods(model, [(BOS + b"Some text", b" " + each.encode()) for each in items[0].endings])
    best, best_norm = log.argmax(), (log / [3, 12, 1]).argmax()
    outcome = tasks.run(model, items)
    assert outcome.right.tolist() == [answer == best for answer in range(3)]
    assert outcome.right_norm.tolist() == [answer == best_norm for answer in range(3)]
    assert outcome.log == pytest.approx(log, rel=1e-6)
    found = tasks.figures(outcome)
    assert found["answer_bpb"] == pytest.approx(-log.sum() / math.log(2) / (4 + 13 + 2), rel=1e-6)
    assert found["acc"] == pytest.approx(1 / 3)
    assert found["chance"] == pytest.approx(1 / 3)


def test_the_robustness_score_is_the_paper_s(model):
    """100 (perturbed - chance) / (clean - chance); there is none for a model that is at chance when clean."""
    items = [tasks.Item(f"item {n}", ("a", "b", "c", "d"), n % 4) for n in range(40)]
    outcome = tasks.run(model, items)
    clean = tasks.Outcome(outcome.right, np.array([1.0, 1, 1, 0] * 10), outcome.log, outcome.bytes, outcome.chance)
    found = tasks.robustness(model, items, {"Same": lambda data, random: data}, clean)
    accuracy = found["perturbations"]["Same"]["acc"]
    assert accuracy == pytest.approx(outcome.right_norm.mean())
    assert found["robustness_score"] == pytest.approx(100 * (accuracy - 0.25) / 0.5)
    hopeless = tasks.Outcome(outcome.right, np.zeros(40), outcome.log, outcome.bytes, outcome.chance)
    found = tasks.robustness(model, items, {"Same": lambda data, random: data}, hopeless)
    assert found["robustness_score"] is None


def test_where_noise_is_put():
    item = tasks.Item("ab", ("cd",), 0)

    def upper(data, random):
        return data.upper()

    for place, expected in [("prompt", ("AB", "cd")), ("completion", ("ab", "CD")), ("both", ("AB", "CD"))]:
        (found,) = tasks.perturbed([item], "Upper", upper, place)
        assert (found.text, found.endings[0]) == expected


def test_tasks_from_the_command_line(capsys, tmp_path):
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS[:4] * 3))
    arguments = ["eval", "starter:text", "--task", str(tmp_path / "t.jsonl"), "--limit", "9", "--noise", "--json"]
    assert cli.run(arguments) == 0
    found = json.loads(capsys.readouterr().out)["tasks"]["t.jsonl"]
    assert found["items"] == 9
    assert found["acc_ci95"][0] <= found["acc"] <= found["acc_ci95"][1]
    assert found["robustness"]["perturbations"].keys() == modality.get("text").perturbations().keys()
    for each in found["robustness"]["perturbations"].values():
        for figure in ("acc", "prompt", "both", "answer_bpb", "completion_answer_bpb"):
            assert each[f"{figure}_ci95"][0] <= each[figure] <= each[f"{figure}_ci95"][1]


# -- the harness -------------------------------------------------------------------------------------------------------


def test_without_the_harness_its_extra_is_named():
    code = "import sys; sys.modules['lm_eval'] = None; import runpy; runpy.run_module('hnet_cli.evaluation.harness'%s)"
    run = subprocess.run(
        [sys.executable, "-c", code % ", run_name='__main__'"], capture_output=True, text=True, check=False
    )
    assert run.returncode == 69
    assert run.stderr == "hnet: lm-evaluation-harness is not installed (pip install 'hnet[harness]')\n"


def test_the_harness_and_we_agree(tmp_path):
    """The same items through lm_eval's own scoring of multiple choice."""
    lm_eval = pytest.importorskip("lm_eval")
    from hnet_cli.evaluation.harness import HNetLM

    rows = [{"query": f"Question {n}:", "choices": ["yes, of course", "no", "maybe"], "gold": n % 3} for n in range(20)]
    (tmp_path / "items.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = {
        "task": "own",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"validation": str(tmp_path / "items.jsonl")}},
        "output_type": "multiple_choice",
        "validation_split": "validation",
        "doc_to_text": "{{query}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{gold}}",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    }
    lm = HNetLM("starter:text", device="cpu")
    found = lm_eval.simple_evaluate(model=lm, tasks=[task], bootstrap_iters=0)["results"]["own"]
    ours = tasks.figures(tasks.run(finding.load("starter:text"), tasks.read(tmp_path / "items.jsonl")))
    assert found["acc,none"] == pytest.approx(ours["acc"])
    assert found["acc_norm,none"] == pytest.approx(ours["acc_norm"])


# -- variants ----------------------------------------------------------------------------------------------------------

GENOME = "ACGTTGCAACGGATTCCAGT" * 5


def calls(tmp_path, *rows, genome=GENOME):
    (tmp_path / "x.fa").write_text(f">chr1 a genome\n{genome[:40]}\n{genome[40:]}\n")
    text = "##fileformat=VCFv4.2\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n"
    (tmp_path / "x.vcf").write_text(text + "".join("\t".join(map(str, row)) + "\n" for row in rows))
    return tmp_path / "x.vcf", tmp_path / "x.fa"


def found_in(vcf, fasta, flank=30):
    sources = [Source(path.name, lambda path=path: path.open("rb")) for path in (vcf, fasta)]
    return list(modality.get("dna").variants(*sources, flank))


def test_variants_and_what_surrounds_them(tmp_path):
    vcf, fasta = calls(
        tmp_path,
        ("chr1", 2, "rs1", "C", "T,CA", ".", ".", "AF=0.1,0.2;DB"),
        ("chr1", 50, ".", GENOME[49:52], GENOME[49], ".", ".", "AF=0.3"),
        ("chr1", 5, ".", "A", "G", ".", ".", "."),
        ("chr1", 6, ".", "G", "<DEL>", ".", ".", "."),
        ("chrX", 6, ".", "G", "A", ".", ".", "."),
    )
    first, second, deletion, wrong, symbolic, unknown = found_in(vcf, fasta)
    assert (first.before, first.reference, first.alternative, first.begins, first.ends) == (
        b"A",
        b"C",
        b"T",
        True,
        False,
    )
    assert first.after.decode() == GENOME[2:32]
    assert (first.fields["AF"], second.fields["AF"], second.alternative) == ("0.1", "0.2", b"CA")
    assert first.baselines == {"transition": 1.0, "cpg": 1.0, "gc": -1.0, "length": 0.0}
    assert (deletion.before + deletion.reference + deletion.after).decode() == GENOME[19:82]
    assert deletion.baselines["length"] == -2
    assert isinstance(wrong, Refused)
    assert "REF" in wrong.reason
    assert "not written out" in symbolic.reason
    assert "no record chrX" in unknown.reason


def test_flanks_stop_at_what_is_not_known(tmp_path):
    genome = GENOME[:45] + "N" + GENOME[46:60] + "n" + GENOME[61:]
    vcf, fasta = calls(tmp_path, ("chr1", 51, ".", GENOME[50], "A" if GENOME[50] != "A" else "C"), genome=genome)
    (found,) = found_in(vcf, fasta)
    assert found.before.decode() == GENOME[46:50]
    assert found.after.decode() == GENOME[51:60]
    assert not found.begins
    assert not found.ends


def test_the_ratio_is_that_of_whole_sequences(model):
    """ln P of the two whole windows, the common start cancels; at the record's start from BOS."""
    variant = Variant("v", b"ACG", b"T", b"TAA", b"GGCAT", begins=True)
    (found,) = variants._ratios(model, [variant])
    whole = [BOS + b"ACG" + allele + b"GGCAT" for allele in (b"TAA", b"T")]
    (a, b), _ = loglikelihoods(model, [(BOS, each[1:]) for each in whole])
    assert found == pytest.approx(a - b, rel=1e-4)
    inside = Variant("v", b"ACG", b"T", b"TAA", b"GGCAT")
    (a, b), _ = loglikelihoods(model, [(b"A", each[2:]) for each in whole])
    assert variants._ratios(model, [inside])[0] == pytest.approx(a - b, rel=1e-4)


def test_both_strands_are_read(model):
    dna = modality.get("dna")
    variant = Variant("v", b"AACC", b"G", b"T", b"GGT", begins=True)
    mirrored = variants._mirrored(dna, variant)
    assert (mirrored.before, mirrored.reference, mirrored.alternative, mirrored.after) == (b"ACC", b"C", b"A", b"GGTT")
    assert (mirrored.begins, mirrored.ends) == (False, True)
    assert variants._mirrored(dna, mirrored) == variant


def test_scores_and_labels(tmp_path, capsys):
    other = {base: "ACGT"[(at + 1) % 4] for at, base in enumerate("ACGT")}
    rows = [("chr1", n + 1, f"v{n}", GENOME[n], other[GENOME[n]], ".", ".", f"AF={n / 100}") for n in range(10, 30)]
    vcf, fasta = calls(tmp_path, *rows)
    arguments = ["eval", "starter:dna", "--vcf", vcf, "--fasta", fasta, "--scores", tmp_path / "s.tsv", "--json"]
    assert cli.run([str(each) for each in arguments]) == 0
    found = json.loads(capsys.readouterr().out)["variants"]
    assert found["variants"] == 20
    assert found["label"]["measure"] == "spearman"
    rivals = found["label"]["baselines"]
    assert {name for name in rivals if not name.endswith("_ci95")} == {"transition", "cpg", "gc", "length"}
    for figures, name in ((rivals, "cpg"), (found, "strand_correlation"), (found, "llr_substitution")):
        assert figures[f"{name}_ci95"][0] <= figures[name] <= figures[f"{name}_ci95"][1]
    header, *lines = (tmp_path / "s.tsv").read_text().splitlines()
    assert header.split("\t")[:3] == ["variant", "kind", "llr"]
    table = np.array([[float(each) for each in line.split("\t")[2:5]] for line in lines])
    assert table[:, 0] == pytest.approx(table[:, 1:].mean(1), rel=1e-4, abs=1e-4)
    assert found["llr"] == pytest.approx(table[:, 0].mean(), rel=1e-4)


def test_a_modality_without_another_strand_has_one_score(tmp_path, model):
    class OneStrand(type(modality.get("dna"))):
        def mirror(self, data):
            return None

    rows = [("chr1", n + 1, ".", GENOME[n], "ACGT"["ACGT".find(GENOME[n]) - 1], ".", ".", ".") for n in (10, 11, 12)]
    vcf, fasta = calls(tmp_path, *rows)
    out = tmp_path / "s.tsv"
    found = variants.score_variants(model, OneStrand(), vcf, fasta, 64, out)
    table = np.array([[float(each) for each in line.split("\t")[2:5]] for line in out.read_text().splitlines()[1:]])
    assert np.array_equal(table[:, 0], table[:, 1])
    assert "strand_correlation" not in found


def test_a_label_that_is_no_number_has_no_rank(tmp_path, capsys):
    rows = [("chr1", n + 1, ".", GENOME[n], "ACGT"["ACGT".find(GENOME[n]) - 1], ".", ".", f"AF={af}")
            for n, af in ((10, 0.1), (11, "nan"), (12, 0.3))]  # fmt: skip
    vcf, fasta = calls(tmp_path, *rows)
    assert cli.run(["eval", "starter:dna", "--vcf", str(vcf), "--fasta", str(fasta)]) == 3
    assert "AF is not finite" in capsys.readouterr().err


def test_where_the_first_call_is_that_is_left_out(tmp_path, capsys):
    other = {base: "ACGT"[(at + 1) % 4] for at, base in enumerate("ACGT")}
    good, wrong = (("chr1", 11, "v", base, other[base]) for base in (GENOME[10], other[GENOME[10]]))
    vcf, fasta = calls(tmp_path, good, wrong, wrong)
    assert cli.run(["eval", "starter:dna", "--vcf", str(vcf), "--fasta", str(fasta)]) == 0
    told = capsys.readouterr().out
    assert f"REF is not what the reference has there: first {vcf}, line 4: chr1" in told


@given(st.lists(st.integers(0, 5), min_size=2, max_size=30), st.randoms())
def test_rank_figures_by_definition(values, random):
    scores = np.array([random.randint(0, 4) for _ in values], float)
    numbers = np.array(values, float)
    if len(set(values)) > 1:
        high, low = scores[numbers == numbers.max()], scores[numbers != numbers.max()]
        wins = (high[:, None] > low).mean() + 0.5 * (high[:, None] == low).mean()
        assert variants._auc(scores, numbers) == pytest.approx(wins)
    ranks = variants._ranks(numbers)
    assert all(ranks[i] < ranks[j] for i in range(len(values)) for j in range(len(values)) if values[i] < values[j])
    assert ranks.sum() == pytest.approx(len(values) * (len(values) + 1) / 2)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "no variants"),
        ("chr1 2 C T\n", "not CHROM"),
        ("chr1\t2\t.\tA\tG\n", "REF is not"),
        (f"chr1\t{'9' * 5000}\t.\tA\tG\n", "not CHROM"),
    ],
)
def test_calls_that_cannot_be_used(tmp_path, capsys, text, says):
    vcf, fasta = calls(tmp_path)
    vcf.write_text(text)
    assert cli.run(["eval", "starter:dna", "--vcf", str(vcf), "--fasta", str(fasta)]) == 3
    assert says in capsys.readouterr().err
