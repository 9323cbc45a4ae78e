"""Tokens of byte-level BPE: nothing is lost, the same data give the same tokenizer, and a run keeps its own."""

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rowkit import rows_dataset
from runkit import dataset, fox, metrics, tiny

from hnet_cli.checkpoints import find as finding
from hnet_cli.checkpoints.convert import convert
from hnet_cli.cli import app as cli
from hnet_cli.config.run import resolve
from hnet_cli.data import tokens
from hnet_cli.data.dataset import Dataset
from hnet_cli.data.loader import Batches, Windows
from hnet_cli.data.mixture import Mixture
from hnet_cli.errors import DamagedError, EnvironmentLimit, InputError, UsageError
from hnet_cli.inference.continuations import loglikelihoods
from hnet_cli.inference.scoring import passes, score, stretches
from hnet_cli.inference.segment import segment_bytes
from hnet_cli.training.loop import train
from hnet_cli.training.start import tuned
from hnet_cli.training.validation import validation

pytest.importorskip("tokenizers")
ROOT = Path(__file__).parents[2]
TEXT = "Das Öl fließt; 漢字かな, x += 1 <|endoftext|> don't \N{GRINNING FACE}\n".encode() * 40
TOKENIZER = tokens.Tokenizer(tokens.learn([TEXT], 400))
TOKENS = [  # nothing but a stack, and its tokens
    "model.arch_layout=[T2]",
    "model.d_model=[64]",
    "model.d_intermediate=[128]",
    "model.attn_cfg={num_heads: [2], rotary_emb_dim: [16], window_size: [-1]}",
    "train.target_ratios=[]",
    "train.lr_multipliers=[1]",
    "tokenizer=bpe:400",
]


# -- the tokenizer -----------------------------------------------------------------------------------------------------


@given(
    st.lists(
        st.binary(max_size=40) | st.text(max_size=30).map(str.encode) | st.sampled_from([TEXT[:99], TEXT[7:8]]),
        min_size=1,
        max_size=5,
    )
)
def test_any_bytes_come_back(parts):
    """Invalid UTF-8 and characters that are cut apart included; batched as alone."""
    sequences = [*parts, b"".join(parts)]
    encoded = TOKENIZER.encode(sequences)
    for data, ids in zip(sequences, encoded, strict=True):
        assert TOKENIZER.decode(ids.tolist()) == data
        assert TOKENIZER.lengths[ids].sum() == len(data)
        assert TOKENIZER.bos not in ids
        assert np.array_equal(ids, TOKENIZER.encode([data])[0])


def test_every_window_of_a_text_comes_back():
    cuts = [TEXT[a : a + n] for a in range(70) for n in range(1, 9)]
    assert [TOKENIZER.decode(ids) for ids in TOKENIZER.encode(cuts)] == cuts


def test_words_become_tokens():
    (ids,) = TOKENIZER.encode([TEXT])
    assert len(ids) < len(TEXT) / 2
    assert 280 < TOKENIZER.size <= 400
    assert TOKENIZER.bos == TOKENIZER.size - 1
    assert TOKENIZER.decode([TOKENIZER.bos]) == b""


def test_the_same_data_give_the_same_tokenizer_in_another_process(tmp_path):
    data = dataset(tmp_path)
    code = f"""
from pathlib import Path
from hnet_cli.data import tokens
from hnet_cli.data.dataset import Dataset
print(tokens.learned(Dataset.open(Path({str(data)!r})), 350).text, end="")
"""
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True).stdout
    assert other == tokens.learned(Dataset.open(data), 350).text


def test_a_mixture_teaches_in_its_shares(tmp_path):
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder, word in zip(folders, ("apple ", "börek "), strict=True):
        folder.mkdir()
        (folder / "x.txt").write_text(word * 900)
    one, two = (Dataset.open(dataset(folder, folder / "x.txt")) for folder in folders)
    both = tokens.learned(Mixture([one, two], [1, 1]), 280)
    assert {b" apple", " börek".encode()} <= set(both._bytes)
    assert b" apple" not in tokens.learned(two, 280)._bytes
    assert tokens.learned(Mixture([one]), 280).text == tokens.learned(one, 280).text


def test_a_long_corpus_is_sampled_from_all_over(tmp_path):
    file = tmp_path / "long.txt"
    file.write_bytes(b"".join(bytes([97 + i % 26]) * 70_000 for i in range(20)))
    data = Dataset.open(dataset(tmp_path / "d", file))
    sample = list(tokens._sample(data, 200_000))
    assert sum(map(len, sample)) == 200_000
    assert max(map(len, sample)) <= tokens.PIECE
    assert sample == list(tokens._sample(data, 200_000))
    assert sorted(sample) != sorted(tokens._sample(data, 10**9))[: len(sample)]
    assert sum(map(len, tokens._sample(data, 10**9))) == data.nbytes("train")


def test_a_tokenizer_learned_from_few_bytes_knows_no_more(tmp_path):
    """`bpe:N@BYTES` reads so many, from all over; enough bytes for all are the whole split."""
    file = tmp_path / "long.txt"
    file.write_bytes(b"".join(b"word%04d " % i for i in range(9000)))
    data = Dataset.open(dataset(tmp_path / "d", file))
    few, whole = (tokens.of_setting(f"bpe:2000@{n}", data) for n in (2_000, 10**9))
    assert 257 < few.size < whole.size == 2000
    assert whole.text == tokens.of_setting("bpe:2000", data).text  # the split is smaller than what that would read
    sample = list(tokens._sample(data, 2_000, tokens.LEAST_PIECE))
    assert [len(part) for part in sample] == [256] * 7 + [2_000 - 7 * 256]
    assert tiny(*TOKENS[:-1], "tokenizer=bpe:2000@5").model.vocab_size == 2000


def test_endless_words_are_cut_to_learn_from():
    """DNA is one word: no token is longer than a piece, and learning is not quadratic."""
    dna = np.random.default_rng(0).choice(np.frombuffer(b"ACGT", np.uint8), 200_000).tobytes()
    tokenizer = tokens.Tokenizer(tokens.learn([dna], 500))
    assert 8 < tokenizer.lengths.max() * 2 <= 2 * tokens.LONGEST_WORD
    assert tokenizer.decode(tokenizer.encode([dna])[0]) == dna


# -- a given one -------------------------------------------------------------------------------------------------------


def changed(**parts):
    data = json.loads(TOKENIZER.text)
    for key, value in parts.items():
        place = data
        *path, last = key.split("__")
        for step in path:
            place = place[step]
        place[last] = value
    return json.dumps(data)


BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}


def test_a_tokenizer_as_llama_3_has_it():
    text = changed(
        pre_tokenizer={
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": r"\p{L}+|\s+"}, "behavior": "Isolated", "invert": False},
                BYTES,
            ],
        },
        normalizer={"type": "Sequence", "normalizers": []},  # as DeepSeek has it
        added_tokens=[
            {
                "id": 500 + i,
                "content": word,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
            for i, word in enumerate(("<|begin_of_text|>", "<|endoftext|>"))
        ],
        truncation={"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0},
    )
    tokenizer = tokens.Tokenizer(text)
    assert (tokenizer.bos, tokenizer.size) == (500, 502)
    (ids,) = tokenizer.encode([TEXT])  # a mark in the user's text is text
    assert ids.max() < 500
    assert tokenizer.decode(ids) == TEXT


def special(content, number):
    parts = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": number, "content": content, "special": True, **parts}


PLAIN = json.loads(TOKENIZER.text)["model"]
MERGED = ["".join(merge.split(" ") if isinstance(merge, str) else merge) for merge in PLAIN["merges"]]


@pytest.mark.parametrize("content", ["e", MERGED[0], MERGED[-1], "Ġ"])
def test_a_special_token_that_text_can_become_keeps_its_bytes(content):
    """A list of special tokens that names a word, a letter or a space; text cannot become the mark."""
    number = PLAIN["vocab"][content]
    marks = [special(content, number), special("<|mark|>", 600)]
    tokenizer = tokens.Tokenizer(changed(added_tokens=marks))
    data = TOKENIZER.decode([number])
    assert [ids.tolist() for ids in tokenizer.encode([data])] == [[number]]
    for text in (data, TEXT + data, TEXT):
        (ids,) = tokenizer.encode([text])
        assert tokenizer.decode(ids) == text
        assert tokenizer.lengths[ids].sum() == len(text)
    assert (tokenizer.bos, tokenizer.size, tokenizer.decode([600])) == (600, 601, b"")
    with pytest.raises(InputError, match="no mark is left"):
        tokens.Tokenizer(changed(added_tokens=marks[:1]))
    ordinary = tokens.Tokenizer(changed(added_tokens=[marks[0] | {"special": False}]))
    assert ordinary.decode(ordinary.encode([data])[0]) == data


def test_a_mark_in_the_vocabulary_that_nothing_merges_into_is_a_mark():
    """GPT-2's; but with `ignore_merges` (Llama 3) a whole word is looked up, and the mark may be one."""
    vocab = PLAIN["vocab"] | {"mark": len(PLAIN["vocab"])}
    number = vocab["mark"]
    text = b"mark a mark"
    gpt2 = tokens.Tokenizer(changed(model__vocab=vocab, added_tokens=[special("mark", number)]))
    assert (gpt2.bos, gpt2.decode([number])) == (number, b"")
    assert number not in gpt2.encode([text])[0]
    marks = [special("mark", number), special("<|other|>", number + 1)]
    llama = tokens.Tokenizer(changed(model__vocab=vocab, model__ignore_merges=True, added_tokens=marks))
    (ids,) = llama.encode([text])
    assert number in ids
    assert (llama.bos, llama.decode(ids)) == (number + 1, text)


def test_a_token_outside_of_the_alphabet_of_bytes_is_no_text():
    vocab = PLAIN["vocab"] | {"<unk 字>": len(PLAIN["vocab"])}
    tokenizer = tokens.Tokenizer(changed(model__vocab=vocab))
    assert tokenizer.decode(tokenizer.encode([TEXT])[0]) == TEXT
    assert tokenizer.decode([vocab["<unk 字>"]]) == b""


def test_a_byte_order_mark_before_a_tokenizer_is_skipped(tmp_path):
    (tmp_path / "mine.json").write_text("\ufeff" + TOKENIZER.text)
    assert tokens.of_setting(str(tmp_path / "mine.json"), None).text == TOKENIZER.text
    assert tiny(*TOKENS[:-1], f"tokenizer={tmp_path / 'mine.json'}").model.vocab_size == TOKENIZER.size


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "Expecting"),
        ("[]", "JSON object"),
        ('{"model": {"type": "WordPiece"}}', "its model is WordPiece"),
        (changed(normalizer={"type": "NFC"}), "NFC"),
        (changed(normalizer={"type": "Sequence", "normalizers": [{"type": "Lowercase"}]}), "Sequence"),
        (changed(pre_tokenizer={"type": "Sequence", "pretokenizers": [BYTES, BYTES]}), "not ByteLevel once"),
        (changed(pre_tokenizer={"type": "Metaspace"}), "Metaspace"),
        (changed(pre_tokenizer=None), "not ByteLevel"),
        (changed(pre_tokenizer__add_prefix_space=True), "space in front"),
        (changed(model__dropout=0.1), "chance"),
        (changed(model__vocab={"a": 0}, model__merges=[]), "255 bytes have no token"),
        (
            changed(model__vocab=json.loads(TOKENIZER.text)["model"]["vocab"] | {"xx": 7}),
            "two of its tokens have one id",
        ),
    ],
)
def test_what_would_lose_bytes_is_refused(text, said, tmp_path):
    file = tmp_path / "mine.json"
    file.write_text(text)
    with pytest.raises(InputError, match=said) as error:
        tokens.of_setting(str(file), None)
    assert "mine.json is not a byte-level BPE" in str(error.value)


def test_settings_that_name_no_tokenizer(tmp_path):
    for setting, said in (
        ("bpe:100", "from 257"),
        ("bpe:x", "from 257"),
        ("bpe:400@", "BYTES"),
        ("bpe:400@0", "BYTES"),
        ("bpe:400@1e6", "BYTES"),
    ):
        with pytest.raises(UsageError, match=said):
            tiny(*TOKENS[:-1], f"tokenizer={setting}")
    with pytest.raises(UsageError, match="cannot read the tokenizer"):
        tokens.of_setting(str(tmp_path / "none.json"), None)
    with pytest.raises(UsageError, match="no chunking stages"):
        tiny("tokenizer=bpe:400")


def test_without_the_library_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(EnvironmentLimit, match="tokenizers") as error:
        tokens.Tokenizer(TOKENIZER.text)
    assert "hnet-cli[bpe]" in str(error.value.hint)


# -- batches -----------------------------------------------------------------------------------------------------------


def test_a_batch_of_tokens_is_the_same_bytes(tmp_path):
    data = Dataset.open(dataset(tmp_path))
    batch = Batches(data, sequence_length=64, rows=12, seed=1).batch(3)
    found = tokens.tokenised(batch, TOKENIZER)
    assert found.nbytes == len(batch.targets) == found.lengths.sum()
    assert TOKENIZER.decode(found.targets.tolist()) == batch.targets.tobytes()
    for b, (low, high) in enumerate(zip(found.cu_seqlens, found.cu_seqlens[1:], strict=False)):
        start, end = batch.cu_seqlens[b : b + 2]
        assert TOKENIZER.decode(found.targets[low:high].tolist()) == batch.targets[start:end].tobytes()
        assert found.inputs[low] == TOKENIZER.bos
        assert np.array_equal(found.inputs[low + 1 : high], found.targets[low : high - 1])
    halves = found.halves()
    assert sum(half.nbytes for half in halves) == found.nbytes


def test_a_tokens_weight_is_the_mean_of_its_bytes(tmp_path):
    file = tmp_path / "a.fa"
    file.write_text(">a\n" + "ACGTacgtAC" * 400 + "\n")
    data = Dataset.open(dataset(tmp_path / "d", file, kind="dna"))
    batch = Batches(data, sequence_length=128, rows=4).batch(0)
    found = tokens.tokenised(batch, tokens.learned(data, 280))
    assert found.weights.dtype == np.float32
    assert len(found.weights) == len(found.targets)
    assert np.dot(found.weights, found.lengths) == pytest.approx(batch.weights.sum(), rel=1e-5)
    assert found.weights.min() < found.weights.max()


def test_no_token_has_bytes_of_a_prompt_and_of_its_completion(tmp_path):
    """Though "a b" is a token in both, and another stands where they meet; so that training and scoring read alike."""
    pairs = [(f"user: {n} a\nassistant: ", "a b") for n in range(200)]
    data = rows_dataset(tmp_path, pairs)
    tokenizer = tokens.learned(data, 300)
    assert tokenizer.encode([b": a b"])[0].tolist() != np.concatenate(tokenizer.encode([b": ", b"a b"])).tolist()
    batch = Batches(data, sequence_length=64, rows=12, seed=1).batch(0)
    found = tokens.tokenised(batch, tokenizer)
    assert set(found.weights) == {0, 1}
    assert found.lengths[found.weights > 0].sum() == (batch.weights > 0).sum()
    for low, high, start, end in zip(
        *(found.cu_seqlens[:-1], found.cu_seqlens[1:]), *(batch.cu_seqlens[:-1], batch.cu_seqlens[1:]), strict=True
    ):
        assert tokenizer.decode(found.targets[low:high].tolist()) == batch.targets[start:end].tobytes()
        assert found.inputs[low] == tokenizer.bos


# -- a run -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokens")
    given_path = folder / "given.json"
    data = dataset(folder)
    given_path.write_text(tokens.learned(Dataset.open(data), 400).text)
    config = tiny(*TOKENS[:-1], f"tokenizer={given_path}", "train.samples=true", "train.lr=5e-3")
    assert config.model.vocab_size == 400
    train(config, data, folder / "run")
    given_path.unlink()
    return folder / "run", data, config


def test_it_learns_and_counts_bytes(run):
    folder, data, _ = run
    records = metrics(folder)
    steps = [record for record in records if "loss" in record]
    assert steps[-1]["bpb"] < 0.8 * steps[0]["bpb"]
    assert [record["bytes"] for record in steps] == [256 * (i + 1) for i in range(12)]
    batch = Batches(Dataset.open(data), sequence_length=64, rows=4, seed=0).batch(0)
    count = len(tokens.tokenised(batch, tokens.of_run(folder, "", None)).targets)
    assert steps[0]["bpb"] == pytest.approx(steps[0]["loss"] * count / 256 / math.log(2), rel=1e-5)


def test_a_model_folder_has_its_tokenizer(run):
    folder, data, _ = run
    model = finding.load(folder)
    assert model.tokenizer.text == (folder / "tokenizer.json").read_text()
    scored = validation(model, Windows(Dataset.open(data), "val", 64, 512), [])
    last = [record for record in metrics(folder) if "val_bpb" in record][-1]
    assert scored["bpb"] == pytest.approx(last["val_bpb"], rel=1e-5)
    assert scored["bytes"] == 512
    whole = validation(model, Windows(Dataset.open(data), "val", 64), [])
    scores = score(model, Dataset.open(data).documents("val"), 64)
    assert scores.bytes.sum() == whole["bytes"]
    assert scores.nats.sum() / whole["bytes"] / math.log(2) == pytest.approx(whole["bpb"], rel=1e-5)
    with pytest.raises(UsageError, match="no chunking stages"):
        segment_bytes(model, b"abc")


def test_it_is_converted_with_its_tokenizer(run, tmp_path):
    convert(run[0], tmp_path / "model", dtype="bf16")
    assert finding.load(tmp_path / "model").tokenizer.text == (run[0] / "tokenizer.json").read_text()
    with pytest.raises(UsageError, match="official code reads bytes"):
        convert(run[0], tmp_path / "x.pt")


def test_a_model_may_have_more_ids_than_its_tokenizer(run, tmp_path):
    """Little data gives fewer than asked for; a model that goes on from it has as many."""
    given = f"tokenizer={run[0] / 'tokenizer.json'}"
    for size, expected in ((401, 401), (399, 400)):
        assert tiny(*TOKENS[:-1], given, f"model.vocab_size={size}").model.vocab_size == expected
    _, data, _ = run
    train(tiny(*TOKENS[:-1], "tokenizer=bpe:4096", "train.steps=1"), data, tmp_path / "run")
    config, _ = tuned(str(tmp_path / "run"), [], Mixture.of(Dataset.open(data)), "cpu")
    assert config.model.vocab_size == 4096
    train(config, data, tmp_path / "next")


def test_every_byte_counts_once_whatever_the_stride(run):
    model = finding.load(run[0])
    text = fox(run[0].parent, lines=4).read_bytes()
    for context, stride in ((40, 40), (40, 13), (None, None)):
        assert score(model, [text, b"x"], context, stride).bytes.sum() == len(text) + 1


def test_a_token_costs_at_its_first_byte(run):
    model, text = finding.load(run[0]), fox(run[0].parent, lines=2).read_bytes()
    (read,) = passes(model, stretches(text, 0, 40, 13))
    for stretch, low in zip(read.stretches, read.offsets, strict=False):
        (scored,) = model.tokenizer.encode([stretch.targets[stretch.skip :]])
        begins = np.cumsum([stretch.skip, *model.tokenizer.lengths[scored][:-1]])
        assert np.flatnonzero(read.nats[low : low + len(stretch.targets)]).tolist() == begins.tolist()


def test_a_continuation_costs_what_its_tokens_cost(run):
    model = finding.load(run[0])
    before, after = b"The quick brown", b" fox number 7"
    (log,), _ = loglikelihoods(model, [(b"\xfe" + before, after)])
    one, two = model.tokenizer.encode([before, after])
    ids = torch.from_numpy(np.concatenate([[model.tokenizer.bos], one, two]))
    with torch.no_grad():
        logs = model(ids[None, :-1]).logits[0].double().log_softmax(-1)
    assert log == pytest.approx(logs.gather(1, ids[1:, None])[-len(two) :].sum().item(), rel=1e-5)


def test_what_needs_bytes_or_chunks_is_refused_before_anything_is_written(run, tmp_path, capsys):
    text = tmp_path / "a.txt"
    text.write_text("Some words.")
    capsys.readouterr()
    for arguments in (["sample", str(run[0]), "--prompt", "hi"], ["segment", str(text), "--model", str(run[0])]):
        assert cli.run(arguments) == 2
        said = capsys.readouterr()
        assert said.out == ""
        assert said.err.count("\n") == 1


@pytest.mark.slow
def test_it_goes_on_without_the_original_file(run, tmp_path):
    """And ends with the bits of a run that was not stopped."""
    _, data, config = run
    folder, whole = tmp_path / "run", tmp_path / "whole"
    given_path = Path(config.tokenizer)
    given_path.write_text(tokens.learned(Dataset.open(data), 400).text)
    train(config, data, whole)

    class Stop(Exception):
        pass

    def stop(kind, record):
        if kind == "checkpoint" and record["step"] == 8:
            raise Stop

    with pytest.raises(Stop):
        train(config, data, folder, listen=stop)
    given_path.unlink()
    (folder / "tokenizer.json").unlink()
    stored = resolve(str(folder / "checkpoints/step-00000008/config.yaml"))
    train(stored, data, folder, resume=True)
    a, b = (path / "checkpoints/step-00000012/model.safetensors" for path in (whole, folder))
    assert a.read_bytes() == b.read_bytes()
    assert (folder / "tokenizer.json").exists()


def test_a_damaged_tokenizer_is_named(run, tmp_path):
    folder = tmp_path / "step"
    shutil.copytree(next((run[0] / "checkpoints").iterdir()), folder)
    file = folder / "tokenizer.json"
    file.write_text(file.read_text().replace("Ġ", "Ġx", 1))
    with pytest.raises(DamagedError, match=r"tokenizer\.json is damaged"):
        finding.load(folder)
    file.unlink()
    with pytest.raises(DamagedError, match=r"tokenizer\.json is missing"):
        finding.load(folder)


PUBLISHED = [
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",  # GPT-2
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{M}]*[\p{Ll}\p{M}]+(?i:'s|'t|'re)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s+",
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s+",
    "",
]
ENDLESS = [
    *(r"(a+)+b", r"(a|a)*b", r"(?:x+x+)+y", r"a*a*a*b", r"(\w+\s?)*$", r"([a-z]+){2,50}", r"(.)\1+", r"(?<=a+)b"),
    *(r"(a?){30}a{30}", "a?" * 30 + "a" * 30, "a{0,99}" * 3 + "b", "a" * 5000, 5, None),
]


def test_patterns_that_could_take_forever_are_refused():
    assert [pattern for pattern in PUBLISHED if not tokens.is_tame(pattern)] == []
    assert [pattern for pattern in ENDLESS if tokens.is_tame(pattern)] == []


@pytest.mark.parametrize("number", [-1, 2**24, 200_000_000, 10**30, "1", 1.5, None, True])
def test_ids_are_bounded(number):
    data = json.loads(tokens.learn([b"some words"], 300))
    data["model"]["vocab"]["!"] = number
    with pytest.raises(InputError, match=r"ids of tokens are integers|have one id"):
        tokens.Tokenizer(json.dumps(data))
