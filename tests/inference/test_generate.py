"""Sampling: always valid, the same for the same seed, no row disturbed by another."""

import base64

import numpy as np
import pytest
import torch
from hypothesis import assume, example, given
from hypothesis import strategies as st
from laws import one_in
from modelkit import tiny_config, tiny_model

from hnet_cli import modality
from hnet_cli.errors import NumericalError, UsageError
from hnet_cli.inference.generate import (
    Choice,
    Grammar,
    Printer,
    generate,
    read_prompts,
    sample,
    sample_bytes,
    sample_records,
    typical,
)
from hnet_cli.inference.scoring import BATCH_BYTES
from hnet_cli.modality import Automaton

MODEL = tiny_model(torch.float32)
TEXT, DNA = modality.get("text"), modality.get("dna")
UTF8 = TEXT.automaton()
# "ab" or "cde", again and again: units of two lengths, so that ends in the middle would show
WORDS = Automaton(
    tuple(tuple(moves.get(byte, -1) for byte in range(256)) for moves in ({97: 1, 99: 2}, {98: 0}, {100: 3}, {101: 0}))
)


def continued(prompts, model=MODEL, **options):
    """The bytes of each row."""
    rows = [bytearray() for _ in prompts]
    for each in generate(model, prompts, **options):
        rows[each.row].append(each.byte)
    return [bytes(row) for row in rows]


# -- validity ----------------------------------------------------------------------------------------------------------


@one_in(5)
@given(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=6),
    st.integers(0, 3),
    st.integers(1, 30),
    st.integers(0, 9),
)
def test_text_is_valid_utf8_from_any_prompt(text, cut, max_bytes, seed):
    data = text.encode()
    prompt = data[: max(0, len(data) - cut)]
    (more,) = continued([prompt], max_bytes=max_bytes, temperature=2.0, seed=seed, automaton=UTF8)
    assert len(more) <= max_bytes
    assume(more)
    (prompt + more).decode()


def test_a_prompt_that_ends_inside_a_character_is_completed():
    prompt = "世界".encode()[:-1]
    for seed in range(5):
        (more,) = continued([prompt], max_bytes=5, temperature=2.0, seed=seed, automaton=UTF8)
        assert (prompt + more).decode()[0] == "世"
    assert continued([prompt[:-1]], max_bytes=1, automaton=UTF8) == [b""]  # too few to complete it: nothing


@pytest.mark.slow
def test_a_unit_is_never_begun_that_cannot_be_finished():
    lengths = set()
    for seed in range(8):
        for more in continued([b"", b"a", b"cd"], max_bytes=8, temperature=2.0, seed=seed, automaton=WORDS):
            lengths.add(len(more))
            assert len(more) <= 8
        rows = continued([b"", b"a", b"cd"], max_bytes=8, temperature=2.0, seed=seed, automaton=WORDS)
        assert all(WORDS.run(p + more) == 0 for p, more in zip([b"", b"a", b"cd"], rows, strict=True))
    assert max(lengths) == 8
    assert min(lengths) < 8


def test_dna_is_acgt_and_lower_case_prompts_are_read():
    options = {"max_bytes": 40, "temperature": 2.0, "automaton": DNA.automaton(), "input_table": DNA.input_table}
    rows = continued([b"acgu", b"ACGT", b""], **options)
    assert all(len(row) == 40 and not row.strip(b"ACGT") for row in rows)


def test_without_rules_any_byte_may_come():
    (row,) = continued([b"\xff\xfe"], max_bytes=200, temperature=50.0)
    assert len(row) == 200
    assert max(row) > 250


def test_a_prompt_of_another_modality_is_refused():
    with pytest.raises(UsageError, match=r"byte 2 is 0x4e"):
        continued([b"ACN"], max_bytes=5, automaton=DNA.automaton(), input_table=DNA.input_table)


def test_grammar_knows_how_far_the_end_is():
    assert Grammar(WORDS).distance == [0, 1, 2, 1, Grammar.NEVER]
    dead_end = Automaton(((1, *[0] * 255), (-1,) * 256))
    legal = Grammar(dead_end).legal(torch.tensor([0]), torch.tensor([10]), 10)
    assert not legal[0, 0]
    assert legal[0, 1:].all()


@given(st.integers(0, 999), st.integers(1, 9))
def test_what_is_legal_is_what_can_be_finished(seed, remaining):
    random = np.random.default_rng(seed)
    transitions = np.where(random.random((8, 256)) < 0.003, random.integers(0, 8, (8, 256)), -1)
    accepting = frozenset({0, 3})
    grammar = Grammar(Automaton(tuple(map(tuple, transitions.tolist())), accepting=accepting))
    legal = grammar.legal(torch.arange(8), torch.full((8,), remaining), remaining).numpy()
    for state in range(8):
        limit = Grammar.NEVER if state in accepting else remaining
        assert (legal[state] == (np.array(grammar.distance)[transitions[state]] < limit)).all()


# -- chance ------------------------------------------------------------------------------------------------------------


def test_the_seed_decides():
    a, b, c = (continued([b"ab"], max_bytes=30, seed=seed, automaton=UTF8) for seed in (1, 1, 2))
    assert a == b != c


@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_a_row_alone_is_the_row_in_a_batch(temperature):
    prompts = [b"", b"Hello", "世界".encode(), b"a" * 40, b"Hello"]
    options = {"max_bytes": 24, "temperature": temperature, "seed": 3, "automaton": UTF8}
    model = tiny_model(torch.float64)
    together = continued(prompts, model, **options)
    for row, prompt in enumerate(prompts):
        alone = bytes(each.byte for each in generate(model, [prompt], first_row=row, **options))
        assert alone == together[row]
    assert (together[1] == together[4]) == (temperature == 0)


@one_in(5)
@given(st.lists(st.binary(max_size=40), min_size=1, max_size=4), st.integers(8, 300))
def test_prompts_are_read_in_blocks_and_equal_ones_once(prompts, block):
    """Whatever their lengths: the logits, and those after one byte more, are those of a full pass."""
    model, read = tiny_model(torch.float64), []
    rows = [b"\xfe" + prompt for prompt in [*prompts, *prompts[:2]]]
    passed = type(model).forward_packed
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(BATCH_BYTES, "cpu", block)
        patch.setattr(
            type(model), "forward_packed", lambda self, ids, *rest: read.append(len(ids)) or passed(self, ids, *rest)
        )
        state, logits = read_prompts(model, rows, 100)
    distinct = set(rows)
    if max(map(len, distinct)) * len(distinct) > block:  # else one pass of `prefill`
        assert max(read) <= block
        assert sum(read) == sum(map(len, distinct))
    after = model.step(torch.full((len(rows),), 97), state)[0]
    for row, prompt in enumerate(rows):
        with torch.no_grad():
            whole = model(torch.tensor([[*prompt, 97]])).logits[0]
        torch.testing.assert_close(logits[row], whole[-2], rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(after[row], whole[-1], rtol=1e-9, atol=1e-9)


@pytest.mark.slow
def test_rows_that_end_early_do_not_disturb_the_others():
    eos = {"max_bytes": 60, "temperature": 3.0, "eos": 255, "automaton": UTF8}
    model = tiny_model(torch.float64)
    with torch.no_grad():
        model.lm_head.weight[255] *= 4
    together = continued([b"x"] * 6, model, **eos)
    assert len({len(row) for row in together}) > 1
    for row, more in enumerate(together):
        assert bytes(each.byte for each in generate(model, [b"x"], first_row=row, **eos)) == more
        more.decode()  # an end inside a character would raise


def test_more_rows_than_are_continued_at_once(monkeypatch):
    prompts, options = [b"x", b"", b"more", b"x", b"yz"], {"max_bytes": 9, "temperature": 2.0, "first_row": 3}
    model = tiny_model(torch.float64)
    at_once = [*generate(model, prompts, **options)]
    monkeypatch.setattr("hnet_cli.inference.generate.BATCH", 2)
    parts = [*generate(model, prompts, **options)]
    assert {each.row for each in parts} == {*range(3, 8)}
    assert sorted(parts, key=lambda each: each.row) == sorted(at_once, key=lambda each: each.row)


def test_what_is_sampled_is_what_the_full_pass_says():
    (greedy,) = continued([b"abc"], max_bytes=20, temperature=0)
    ids = b"\xfeabc"
    for byte in greedy:
        assert MODEL(torch.tensor([[*ids]])).logits[0, -1].argmax() == byte
        ids += bytes([byte])


def test_depth_is_the_routing_of_the_full_pass():
    sampled = list(generate(MODEL, [b"abc"], max_bytes=40, temperature=2.0))
    ids = torch.tensor([[*b"\xfeabc", *(each.byte for each in sampled)]])
    outer, inner = (stage.boundary_mask for stage in MODEL(ids).routing)
    depth = outer.long()
    depth[outer.nonzero()[inner, 0]] += 1
    assert [each.depth for each in sampled] == depth[4:].tolist()
    assert {each.depth for each in sampled} == {0, 1, 2}


def chosen(choice, logits, uniform):
    return choice(torch.from_numpy(logits), torch.from_numpy(uniform)).numpy()


def frequencies(choice, logits, draws=20_000):
    uniform = np.random.default_rng(0).random(draws)
    return np.bincount(chosen(choice, np.tile(logits, (draws, 1)), uniform), minlength=len(logits)) / draws


def test_choice_follows_the_probabilities():
    logits = np.log([0.5, 0.3, 0.15, 0.05])
    cold = np.array([0.5, 0.3, 0.15, 0.05]) ** 2
    for choice, expected in (
        (Choice(), [0.5, 0.3, 0.15, 0.05]),
        (Choice(0.5), cold / cold.sum()),
        (Choice(top_k=2), [0.625, 0.375, 0, 0]),
        (Choice(top_p=0.81), [0.5 / 0.95, 0.3 / 0.95, 0.15 / 0.95, 0]),
        (Choice(top_p=1e-9), [1, 0, 0, 0]),
        (Choice(0), [1, 0, 0, 0]),
        (Choice(1e-310), [1, 0, 0, 0]),
    ):
        np.testing.assert_allclose(frequencies(choice, logits), expected, atol=0.015)


@given(st.lists(st.integers(0, 6), min_size=3, max_size=24), st.floats(0.01, 0.99), st.floats(0, 1, exclude_max=True))
@example([0, 3, 5, 5, 5, 5, 6, 6], 1 / 3, 0.0)
def test_of_equally_likely_bytes_top_p_keeps_the_first(weights, top_p, uniform):
    weights[0] += 1
    logits = np.log(np.maximum(np.array([weights, weights[::-1]], dtype=float), 1e-300))
    for row, drawn in enumerate(chosen(Choice(top_p=top_p), logits, np.array([uniform, uniform]))):
        p = np.exp(logits[row]) / np.exp(logits[row]).sum()
        kept, total = [], 0.0
        for byte in sorted(range(len(p)), key=lambda b: (-p[b], b)):
            if kept and total >= top_p - 1e-9:
                break
            kept.append(byte)
            total += p[byte]
        within = np.cumsum(p[sorted(kept)]) / total
        ends = np.array([total, total - p[kept[-1]]])  # rounding decides where the last byte more or less is top_p
        near = np.abs(within - uniform).min() < 1e-9 or np.abs(ends - top_p).min() < 2e-9
        assert near or drawn == sorted(kept)[int((within <= uniform).sum())]


def test_of_equally_likely_bytes_top_k_keeps_the_first():
    """In bfloat16 logits are often equal: one of them is still one."""
    logits = np.array([[0.0, 2.0, 2.0, 2.0, -np.inf]] * 40)
    uniform = np.linspace(0, 0.999, 40)
    assert set(chosen(Choice(top_k=1), logits, uniform)) == {1}
    assert set(chosen(Choice(top_k=2), logits, uniform)) == {1, 2}


def test_choice_never_takes_what_is_illegal():
    logits = np.array([[-np.inf, 0.0, -np.inf, -800.0, -np.inf]] * 3)
    for choice in (Choice(), Choice(100.0), Choice(top_k=4), Choice(top_p=0.999), Choice(0)):
        assert set(chosen(choice, logits, np.array([0.0, 0.5, np.nextafter(1, 0)]))) <= {1, 3}


@pytest.mark.parametrize(
    "bad",
    [{"temperature": -1}, {"temperature": float("nan")}, {"seed": -1}, {"top_k": 0}, {"top_p": 0}, {"top_p": 1.5}],
)
def test_options_that_mean_nothing_are_refused(bad):
    with pytest.raises(UsageError):
        continued([b""], max_bytes=1, **bad)


def test_a_broken_model_is_named():
    model = tiny_model(torch.float32)
    with torch.no_grad():
        model.lm_head.weight[3] = torch.nan
    with pytest.raises(NumericalError, match="not finite"):
        continued([b""], model, max_bytes=1)


# -- what is shown -----------------------------------------------------------------------------------------------------


def test_printer_waits_for_whole_characters():
    printer = Printer(TEXT)
    assert [printer.feed(byte) for byte in "é世a".encode()] == ["", "é", "", "", "世", "a"]
    assert printer.feed(0xE4) == ""
    assert printer.finish() == "\\xe4"


def test_printer_marks_chunks_at_characters():
    printer = Printer(TEXT, chunks=True)
    text = "".join(printer.feed(byte, depth) for byte, depth in zip("a世bc".encode(), (1, 0, 2, 0, 0, 1), strict=True))
    assert text == "|a世||b|c"


def test_printer_lets_no_command_through():
    printer = Printer(TEXT)
    assert "".join(printer.feed(byte) for byte in "\x1b[2J\x9b\u202e".encode()) == "\\x1b[2J\\x9b\\u202e"


@pytest.mark.parametrize(
    ("data", "shown"),
    [
        (b"a\r\nb", "a|\nb"),
        (b"a\r\r\nb", "a|\\x0d\nb"),
        (b"a\rb", "a|\\x0db"),
        ("a\ré".encode(), "a|\\x0dé"),
        (b"a\r", "a|\\x0d"),
        (b"a\r\xe4", "a|\\x0d\\xe4"),
    ],
)
def test_printer_shows_every_line_end_as_one(data, shown):
    """A model that has read line ends of Windows writes them."""
    printer = Printer(TEXT, chunks=True)
    assert "".join(printer.feed(byte, byte == ord("\r")) for byte in data[:2]) == "a"
    assert "a" + "".join(printer.feed(byte) for byte in data[2:]) + printer.finish() == shown
    plain = Printer(TEXT)
    assert "".join(map(plain.feed, data)) + plain.finish() == shown.replace("|", "")


@pytest.mark.parametrize("cut", range(5))
def test_line_ends_of_a_prompt_are_shown_as_such(cut):
    printer, data = Printer(TEXT), b"a\r\nb"
    assert printer.prompt(data[:cut]) + "".join(map(printer.feed, data[cut:])) + printer.finish() == "a\nb"


def test_typical_texts_are_such_as_the_model_reads():
    """Also without the rules: lower case is upper case to a model of DNA."""
    dna = modality.get("dna")
    upper, lower = (typical(MODEL, data * 600, dna, raw=True) for data in (b"ACGTTGCA", b"acgttgca"))
    assert upper == lower == [b"ACGTTGCA" * 600]
    free = b"".join(typical(MODEL, b"acgt", dna, raw=True))
    assert free.startswith(b"ACGT")
    assert set(free) - set(b"ACGT")
    assert not set(b"".join(typical(MODEL, b"acgt", dna))) - set(b"ACGT")


def test_sample_shows_prompt_and_continuation():
    options = {"max_bytes": 12, "temperature": 2.0, "seed": 1}
    (more,) = continued([b"Hi"], automaton=UTF8, **options)
    pieces = list(sample(MODEL, [b"Hi"], TEXT, **options))
    assert pieces[0] == "Hi"
    assert "".join(pieces) == "Hi" + TEXT.display(more) + "\n"
    several = "".join(sample(MODEL, [b"Hi"], TEXT, n=3, show_chunks=True, **options))
    assert several.count("of 3 <==\nHi") == 3


def test_records_hold_what_was_sampled():
    options = {"max_bytes": 30, "temperature": 2.0, "seed": 5}
    rows = continued([b"ab", b"ab", b"\xe4", b"\xe4"], **options)
    for row, record in enumerate(sample_records(MODEL, [b"ab", b"\xe4"], n=2, show_chunks=True, **options)):
        assert (record["row"], record["seed"], record["length"]) == (row, 5, len(rows[row]))
        data = base64.b64decode(record["bytes"]) if "bytes" in record else record["text"].encode()
        assert data == rows[row]
        assert ("prompt" in record, "prompt_bytes" in record) == (row < 2, row >= 2)
        assert 1 <= record["bytes_per_chunk"][0] <= record["bytes_per_chunk"][1]
        outer, inner = map(set, record["boundaries"])
        assert inner <= outer <= set(range(len(data)))
        assert record["bytes_per_chunk"][0] == round(len(data) / len(outer), 4)


def test_raw_bytes_are_the_bytes():
    options = {"max_bytes": 15, "temperature": 2.0}
    assert b"".join(sample_bytes(MODEL, [b"\xff"], n=2, **options)) == b"".join(
        b"\xff" + row for row in continued([b"\xff"] * 2, **options)
    )


def test_a_model_without_stages_samples_too():
    model = tiny_model(torch.float32, config=tiny_config(("m1",)))
    (record,) = sample_records(model, [b"a"], TEXT, max_bytes=10)
    assert record["bytes_per_chunk"] == []
