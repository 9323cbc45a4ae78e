"""Documents to evaluate on: chosen, cut and refused."""

import gzip

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rowkit import rows_dataset
from runkit import dataset

from hnet_cli.errors import InputError, UsageError
from hnet_cli.evaluation.material import LEAST_SHARE, Material, equal_shares, file_source, gather
from hnet_cli.inference.scoring import score
from hnet_cli.modality import Document
from hnet_cli.modality import get as modality


def test_a_dataset_beyond_the_limit_gives_whole_documents_from_everywhere(tmp_path):
    files = []
    for number in range(40):
        files.append(tmp_path / f"{number:02}.txt")
        files[-1].write_text(f"document {number:02} " * 30)
    data = dataset(tmp_path / "set", *files[:10], val_inputs=[str(each) for each in files[10:]])
    everything = gather([str(data)], modality("text"), None)
    assert len(everything.documents) == 30
    some = gather([str(data)], modality("text"), 2000)
    assert [len(each.data) for each in some.documents] == [360] * 5
    assert {each.data for each in some.documents} <= {each.data for each in everything.documents}
    places = sorted(int(each.data[9:11]) for each in some.documents)
    assert [(place - 10) // 6 for place in places] == [0, 1, 2, 3, 4]
    assert [each.name for each in some.documents] == [each.name for each in gather([str(data)], None, 2000).documents]
    assert some.train is not None


def test_the_bytes_said_to_be_chosen_are_those_chosen(tmp_path):
    (tmp_path / "fox.txt").write_text("é" * 80, encoding="utf-8")
    some = gather([str(tmp_path / "fox.txt")], modality("text"), 101)
    assert some.bytes == 100  # no character is cut
    assert some.chosen.endswith(": the first 100 bytes")


def test_material_that_does_not_fit_is_refused(tmp_path):
    data = dataset(tmp_path)
    with pytest.raises(InputError, match="holds text"):
        gather([str(data)], modality("dna"), None)
    with pytest.raises(UsageError, match="beside it"):
        gather([str(data), str(data)], modality("text"), None)
    (tmp_path / "empty.txt").write_text("")
    with pytest.raises(InputError, match="nothing to evaluate"):
        gather([str(tmp_path / "empty.txt")], modality("text"), None)


def test_rows_are_not_asked_of_a_dataset(tmp_path):
    with pytest.raises(UsageError, match="--field text"):
        gather([str(dataset(tmp_path))], modality("text"), None, "text")


def test_a_file_is_text_after_its_byte_order_mark(tmp_path):
    """An annotation, calls, their reference; other encodings are named."""
    (tmp_path / "x.gff").write_text("##gff-version 3\nchr1\tx\tgene\t4\t30\t.\t+\t.\tID=g\n", encoding="utf-8-sig")
    with file_source(tmp_path / "x.gff").open() as stream:
        assert stream.read(5) == b"##gff"
    (tmp_path / "x.vcf").write_text("##fileformat=VCFv4.2\nchr1\t5\tv\tA\tG\n", encoding="utf-8-sig")
    (tmp_path / "x.fa").write_text(f">chr1\n{'ACGT' * 9}\n>chr2\nACGT\n", encoding="utf-8-sig")
    (variant,) = modality("dna").variants(file_source(tmp_path / "x.vcf"), file_source(tmp_path / "x.fa"), 9)
    assert (variant.before, variant.reference) == (b"ACGT", b"A")
    (tmp_path / "x.fa").write_text(">chr1\nACGT\n", encoding="utf-16")
    with pytest.raises(InputError, match=r"x\.fa is UTF-16LE: convert it first"):
        file_source(tmp_path / "x.fa").open()


@given(st.lists(st.integers(1, 500), min_size=1, max_size=12), st.integers(1, 1500))
def test_shares_are_equal_as_far_as_they_go(lengths, limit):
    kept = [len(each.data) for each in equal_shares([Document(b"x" * n, "", "") for n in lengths], limit)]
    assert 0 < sum(kept) <= limit
    if sum(lengths) <= limit:
        assert kept == lengths
    elif limit >= LEAST_SHARE * len(lengths):
        cap = max(kept)
        assert kept == [min(n, cap) for n in lengths]
        assert sum(min(n, cap + 1) for n in lengths) > limit


def test_of_very_many_documents_some_give_their_share():
    """A corpus of names, one on a line: less than a byte of each would be no figure at all."""
    kept = equal_shares([Document(b"x" * 10, str(n), "") for n in range(1000)], 500)
    assert [each.name for each in kept] == [str(n) for n in range(0, 1000, 32)]
    assert all(len(each.data) == 10 for each in kept)
    assert len(equal_shares([Document(b"x" * 10, "", "")] * 1000, 1)) == 1


def test_rows_stay_whole_where_a_split_is_sampled(tmp_path):
    """Rows longer than a window: each as in the whole split, prompt and completion."""
    pairs = [(f"{number:02} asks {'something long ' * 30}\n", f"answer {number}" * 20) for number in range(99)]
    data = rows_dataset(tmp_path, pairs)
    everything = gather([str(data.path)], modality("text"), None)
    some = gather([str(data.path)], modality("text"), 2000, context=64)
    assert 2 <= len(some.documents) < len(everything.documents)
    assert set(some.documents) <= set(everything.documents)
    assert "whole rows" in some.chosen


def test_shares_of_stretches_know_their_documents():
    documents = [Document(b"x" * 10, str(n), "") for n in range(1000)]
    owners = [number // 300 for number in range(1000)]
    share = Material(documents, "all", owners=owners).shares(500)
    assert len(share.documents) == 32
    assert share.owners == [owners[int(document.name)] for document in share.documents]
    last = Material(documents, "all", owners=[0] * 999 + [7]).shares(10**6)
    assert last.owners == [0] * 999 + [1]  # as numbers of the documents that are left


def test_long_documents_are_read_from_everywhere_and_count_as_documents(tmp_path, model):
    """Two files of which each is longer than the limit: half of the bytes are of either."""
    easy, hard = tmp_path / "easy.txt", tmp_path / "hard.txt"
    easy.write_bytes(b"a" * 20_000)
    hard.write_bytes(b"b" * 20_000)
    (tmp_path / "train.txt").write_bytes(b"ab" * 500)
    data = dataset(tmp_path / "set", tmp_path / "train.txt", val_inputs=[str(easy), str(hard)])
    some = gather([str(data)], modality("text"), 8000, context=64)
    assert 7500 <= some.bytes <= 8000
    assert len(some.documents) >= 60
    assert all(len(each.data) % 64 == 0 or each.offset + len(each.data) == 20_000 for each in some.documents)
    counts = [
        sum(len(each.data) for each in some.documents if each.source.endswith(name)) for name in ("y.txt", "d.txt")
    ]
    assert counts == pytest.approx([4000, 4000], rel=0.05)
    assert max(each.offset for each in some.documents) > 19_000
    assert "of its 40,000 bytes, stretches of at most 64 bytes" in some.chosen
    scores = score(model, [each.data for each in some.documents], 64).grouped(some.owners)
    assert scores.documents == 2
    assert scores.unit == "window"
    assert scores.bytes.sum() == some.bytes


def test_of_a_damaged_file_nothing_is_kept_and_the_others_follow(tmp_path, capsys):
    """A container cut short says so at its end, after bytes that may have been read."""
    (tmp_path / "1.txt").write_text("first " * 20)
    (tmp_path / "2.txt.gz").write_bytes(gzip.compress(bytes(range(97, 123)) * 9000 + b"\n", 0)[:-9000])
    (tmp_path / "3.jsonl.gz").write_bytes(gzip.compress(b'{"text": "a row"}\n' * 5000, 0)[:60000])
    (tmp_path / "4.txt").write_text("last " * 20)
    found = gather([str(tmp_path)], modality("text"), 400_000)
    assert [each.data[:5] for each in found.documents] == [b"first", b"last "]
    names = [str(error).split(" ")[0] for error in found.damaged]
    assert names == [str(tmp_path / name) for name in ("2.txt.gz", "3.jsonl.gz")]
    assert capsys.readouterr().err.count("left out:") == 2
    assert found.chosen.endswith("all but 2 damaged")


def test_files_that_are_all_damaged_are_an_error(tmp_path):
    for name in ("1.txt.gz", "2.txt.gz"):
        (tmp_path / name).write_bytes(gzip.compress(b"some words\n" * 90)[:-6])
    with pytest.raises(InputError, match=r"1\.txt\.gz is truncated"):
        gather([str(tmp_path)], modality("text"), None)
