"""The living page: what it holds, whom it refuses, and that its script cuts as Python does."""

import base64
import json
import re
import zlib
from html import unescape
from importlib.resources import files
from itertools import accumulate, pairwise

import axe
import numpy as np
import pytest
import torch
from browserkit import CHROME, opens, visit
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from modelkit import tiny_config, tiny_model
from pagekit import checked
from segmentkit import TEXT, written

from hnet_cli import modality
from hnet_cli.checkpoints.find import load
from hnet_cli.errors import UsageError
from hnet_cli.inference import live_page
from hnet_cli.inference.segment import boundaries
from hnet_cli.inference.windows import windows
from hnet_cli.modality import Document

in_browser = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROME is None, reason="there is no chromium or google-chrome on this machine"),
]
EXAMPLES = {name: modality.get(name).example for name in ("text", "chinese", "code", "dna")}


def live(text, **options):
    return written(text, "live", **options)


def setup_of(source):
    return json.loads(unescape(re.findall('data-setup="([^"]+)"', source)[0]))


def halves(model):
    """The model with weights that half precision holds, as those of a page are."""
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(weight.half())
    return model


# -- what a page holds -------------------------------------------------------------------------------------------------


def test_carriage_returns_are_spoken_of():
    assert ["carriage returns" in live(text) for text in ("a\r\nb\r\n", "a\nb\n")] == [True, False]


@pytest.mark.parametrize("plugin", ["text", None])
def test_a_page_stands_alone(plugin):
    source = live(TEXT * 200, plugin=plugin)
    page = checked(source, program=True)
    assert len(source.encode()) < live_page.MOST_BYTES
    setup = setup_of(source)
    assert len(setup["text"].encode()) <= live_page.EXAMPLE_BYTES
    assert (TEXT * 200).replace("\r\n", "\n").startswith(setup["text"].replace("\r\n", "\n"))
    assert len(setup["levels"]) == len(setup["thresholds"]) == 2
    assert len(page.scripts) == 4
    assert "http" not in "".join(page.values("content"))


def test_the_largest_starter_fits_with_all_its_bits(monkeypatch):
    monkeypatch.setattr(live_page, "MANTISSA", (10,))
    source = live(">a\n" + "ACGT" * 500, plugin="dna", model=load("starter:dna", "cpu"))
    assert len(source.encode()) < live_page.MOST_BYTES


def test_one_record_is_shown_in_bases():
    setup = setup_of(live(">a\nACGTNNNNNNNN\n>b\n" + "ACGT" * 20, plugin="dna", name="a.fa"))
    assert (setup["text"], setup["units"], setup["table"][ord("u")]) == ("ACGT" * 20, "bases", ord("T"))


# -- weights -----------------------------------------------------------------------------------------------------------


def unpacked(weights, packed, stepped):
    """The weights of a page, of which the shapes are known."""
    data = zlib.decompress(base64.b85decode(packed.translate(str.maketrans(".,:", "&<>"))))
    count = sum(weight.numel() for weight in weights.values() if weight.ndim == 2)
    high, low = (np.frombuffer(data, np.uint8, count, count * part).astype(np.uint16) for part in range(2))
    words, singles = high << 8 | low, np.frombuffer(data, "<f4", offset=2 * count)
    found = {}
    for name, weight in weights.items():
        if weight.ndim == 2:
            values, words = words[: weight.numel()].reshape(weight.shape), words[weight.numel() :]
            if stepped and not name.startswith("0."):
                number = values.astype(np.int32)
                steps, singles = singles[: len(weight)], singles[len(weight) :]
                found[name] = torch.from_numpy(((number >> 1) ^ -(number & 1)) * steps[:, None])
            else:
                found[name] = torch.from_numpy(values.view(np.float16).astype(np.float32))
        else:
            values, singles = singles[: weight.numel()], singles[weight.numel() :]
            found[name] = torch.from_numpy(values.copy())
    assert len(words) == len(singles) == 0
    return found


def test_weights_come_back():
    weights = live_page.weights_of(halves(tiny_model(torch.float32)), 2)
    assert {"0.embeddings.weight", "1.pad_dimension", "0.routing.weight", "1.encoder.rmsnorm.weight"} <= set(weights)
    found = unpacked(weights, *live_page.pack(weights, 1 << 30))
    assert found.keys() == weights.keys()
    assert all(torch.equal(found[name], weight) for name, weight in weights.items())


def test_what_does_not_fit_loses_bits_first():
    weights = {"0.a": torch.randn(100, 200), "0.b": torch.randn(7)}
    whole, _ = live_page.pack(weights, 1 << 30)
    shorter, stepped = live_page.pack(weights, len(whole) - 1000)
    assert 0 < len(shorter) <= len(whole) - 1000
    assert not stepped
    for packed, error in ((whole, 2**-11), (shorter, 2**-8)):
        found = unpacked(weights, packed, False)
        assert torch.equal(found["0.b"], weights["0.b"])
        assert torch.all((found["0.a"] - weights["0.a"]).abs() <= error * weights["0.a"].abs() + 1e-7)
    assert live_page.pack(weights, 1000) is None


@pytest.mark.parametrize(("share", "fineness"), [(0.72, 64), (0.64, 32)])
def test_inner_levels_are_in_steps_before_they_are_left_out(share, fineness):
    """The outermost keeps its bits."""
    weights = {
        "0.a": (1 + torch.rand(100, 200)).bfloat16().float(),
        "1.a": torch.randn(300, 200),
        "1.b": torch.randn(7),
    }
    weights["1.a"][0] = 0
    weights["1.a"][1] *= 1e-3
    whole, stepped = live_page.pack(weights, 1 << 30)
    assert not stepped
    shorter, stepped = live_page.pack(weights, int(share * len(whole)))
    assert stepped
    found = unpacked(weights, shorter, True)
    assert torch.equal(found["0.a"], weights["0.a"])
    assert torch.equal(found["1.b"], weights["1.b"])
    step = weights["1.a"].square().mean(1, keepdim=True).sqrt() / fineness
    error = (found["1.a"] - weights["1.a"]).abs()
    assert torch.all(error <= 0.501 * step)
    assert torch.all(error.amax(1)[1:] > 0.4 * step[1:, 0])


@given(arrays(np.float32, 50, elements=st.floats(-1000, 1000, width=32)), st.integers(7, 10))
def test_rounding(values, bits):
    found = live_page.rounded(values, bits).view(np.float16).astype(np.float64)
    assert np.all(
        np.abs(found - values) <= np.maximum(np.abs(values) * (2.0 ** -(bits + 1) + 2.0**-11), 2.0 ** -(14 + bits))
    )
    assert np.array_equal(live_page.rounded(found.astype(np.float32), bits).view(np.float16), found)


def test_the_program_is_that_of_its_source():
    """As far as can be seen without a compiler: the same functions, in the same order."""
    source = (files("hnet_cli") / "pages/kernels.wat").read_text()
    program = (files("hnet_cli") / "pages/kernels.wasm").read_bytes()
    names = re.findall(r'export "(\w+)"', source)
    places = [program.index(bytes([len(name)]) + name.encode() + b"\0") for name in names]
    assert places == sorted(places)


# -- who is refused ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layout", "ours", "options", "message"),
    [
        (("m1", ("T1",), "m1"), {"chunker": {"kind": "space"}}, {}, "cuts by a fixed rule"),
        (
            ("m1", ("T1m1", ("T1",), "m1"), "m1"),
            {"chunker": [{"kind": "learned"}, {"kind": "fixed", "k": 2}]},
            {},
            "fixed",
        ),
        (("m1", ("T1m1", ("T1",), "m1"), "m1"), {"smoothing": "input"}, {}, "smoothing"),
        (("m1", ("T1",), "m1"), {"ngram_rows": 8}, {}, "n-grams"),
        (("m1", ("T1",), "m1"), {}, {"max_bytes": 20_001}, "at most 20,000 bytes"),
        (("T1",), {}, {}, "no chunking stages"),
    ],
)
def test_models_that_a_page_cannot_compute(layout, ours, options, message):
    model = tiny_model(torch.float32, config=tiny_config(layout, **ours))
    with pytest.raises(UsageError, match=message):
        live("A text", model=model, **options)


def test_large_models(monkeypatch):
    model = tiny_model(torch.float32)
    monkeypatch.setattr(live_page, "MANTISSA", (10,))
    monkeypatch.setattr(live_page, "MOST_BYTES", len(live("A text", model=model, stage=0)) + 200)
    source = live("A text", model=model)
    assert len(setup_of(source)["levels"]) == 1
    assert "1 more is too large" in checked(source, program=True).text
    monkeypatch.setattr(live_page, "MOST_BYTES", len(source) - 100)
    with pytest.raises(UsageError, match="weights, too many"):
        live("A text", model=model)


# -- in a browser ------------------------------------------------------------------------------------------------------


@pytest.fixture
def opened(browser, tmp_path):
    """Open a page and wait for its chunks; errors of its scripts fail the test."""
    faults, pages = [], []

    def show(source):
        path = tmp_path / "page.html"
        path.write_text(source)
        page = browser.new_page()
        pages.append(page)
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("console", lambda message: message.type == "error" and faults.append(message.text))
        page.on("request", lambda request: request.url.startswith("file:") or faults.append(request.url))
        page.goto(path.as_uri())
        return done(page)

    yield show
    for page in pages:
        page.close()
    assert faults == []


def done(page):
    page.wait_for_selector("body[data-state=done]", timeout=60_000)
    return page


def drawn(page):
    """Per stage: where its chunks begin; and the text of the chunks."""
    known, text = page.evaluate("(({ known: { n, p }, textContent }) => [{ n, p }, textContent])(chunks)")
    places = list(accumulate(known["n"], initial=0))[:-1]
    return [[at for at, p in zip(places, row, strict=True) if not np.isnan(p)] for row in known["p"]], text


def cut(model, data, **options):
    table = modality.get(model.config.extra["modality"]).input_table if "modality" in model.config.extra else None
    every = list(windows(model, [Document(data, "-", "-")], input_table=table, **options))
    starts, p = np.concatenate([w.starts for w in every]), np.concatenate([w.probability for w in every])
    return [starts[~np.isnan(row)].tolist() for row in p.T]


@pytest.mark.parametrize("name", EXAMPLES)
class TestStarters:
    pytestmark = in_browser

    def test_cuts_as_python_does(self, name, opened):
        text = (EXAMPLES[name] + "\n" * (name != "dna")) * (2500 // len(EXAMPLES[name].encode()) + 1)  # two windows
        model = load(f"starter:{name}", "cpu")
        page = opened(live(f">a\n{text}" if name == "dna" else text, plugin=name, model=model, max_bytes=3000))
        assert page.input_value("#text") == drawn(page)[1]
        data = page.input_value("#text").encode()
        stages = drawn(page)[0]
        assert len(stages) == len(model.routers)
        for stage, places in enumerate(stages):
            differ = set(places) ^ set(boundaries(model, data, stage)[0].tolist())
            assert len(differ) <= len(data) / 1000


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["firefox", "webkit"])
def test_other_browsers_cut_alike(engine, tmp_path):
    """The starters, as in Chromium."""
    if not opens(engine):
        pytest.skip(f"no {engine} opens a page on this machine")
    pages, texts = {}, {}
    for name, example in EXAMPLES.items():
        model = load(f"starter:{name}", "cpu")
        source = live(f">a\n{example}" if name == "dna" else example, plugin=name, model=model)
        pages[name], texts[name] = source, setup_of(source)["text"].encode()
    for told in visit(tmp_path, pages, {key: [1000] for key in pages}, engine):
        text = texts[told["page"]]
        places = set(accumulate(told["sizes"], initial=0)) - {len(text)}
        differ = places ^ set(boundaries(load(f"starter:{told['page']}", "cpu"), text)[0].tolist())
        assert len(differ) <= len(text) / 1000
        assert (told["errors"], told["requests"]) == ([], 0)
        assert told["overflow"] <= 0


MODELS = {
    "two stages": (tiny_config(), {}),
    "all layers": (tiny_config(("M1t1m1", ("T1m1", ("T1",), "m1"), "m1T1"), window=9), {}),
    "three stages": (tiny_config(("m1", ("t1", ("m2", ("T1",), "m1"), "m1"), "m1"), network_norms=False), {}),
    "characters": (tiny_config(chunker=[{"kind": "characters"}, {"kind": "learned"}]), {}),
    "carried": (tiny_config(), {"carried": True}),
}


@pytest.mark.parametrize("name", MODELS)
class TestModels:
    pytestmark = in_browser

    def test_cuts_as_python_does_after_any_change(self, name, opened, monkeypatch):
        config, options = MODELS[name]
        monkeypatch.setattr(live_page, "window_of", lambda config: (256, 64))
        read = options or {"width": 256, "warmup": 64}
        model = halves(tiny_model(torch.float32, config=config))
        page = opened(live(TEXT, model=model, plugin=None, **options))
        for text in (TEXT * 6, TEXT * 3 + "?" + TEXT * 3, TEXT[3:] * 5, "A word", "", "Ein Wört und 世界"):
            page.fill("#text", text)
            text = page.input_value("#text")  # a field has its own line ends
            if text:
                assert drawn(done(page)) == (cut(model, text.encode(), **read), text)
        page.locator("[name=threshold]").fill("0.2")
        threshold = float(page.inner_text("#threshold"))
        assert threshold == 0.55
        page.locator("#trained").click()
        assert drawn(done(page))[0] == cut(model, text.encode(), **read)


class TestPage:
    pytestmark = in_browser

    def test_a_threshold_is_moved_and_the_example_comes_back(self, opened):
        model = load("starter:text", "cpu")
        page = opened(live(EXAMPLES["text"], model=model))
        before = drawn(page)
        page.locator("[name=threshold]").fill("4")
        places = drawn(done(page))[0][0]
        with model.set_thresholds(1 / (1 + np.exp(-4))):
            assert places == boundaries(model, EXAMPLES["text"].encode())[0].tolist()
        page.locator("#trained").click()
        page.fill("#text", "Another text")
        assert "12 bytes" in page.inner_text("#figures")
        page.locator("#example").click()
        assert drawn(done(page)) == before
        page.locator("#text").press("Control+Home")
        page.locator("#here", has_text=re.compile(r"At the cursor: bytes 0 to \d+ .*p 1\.00")).wait_for()

    def test_a_pasted_record_is_its_sequence(self, opened):
        page = opened(live(">a\n" + "ACGT" * 9, plugin="dna"))
        page.fill("#text", ">name of it\nAC\ngu\n")
        assert page.input_value("#text") == "ACgu"
        page.locator("#text").press("Control+Home")
        page.locator("#here", has_text=re.compile(r"At the cursor: bases 1 to \d+ ")).wait_for()

    @pytest.mark.parametrize("stage", ["all", 0])
    def test_chunks_that_stay_keep_their_elements_and_their_colours(self, stage, opened):
        text = "Words that stay, and more of them. " * 6
        page = opened(live(text, stage=stage))
        look = """() => [...document.querySelectorAll("#chunks span")].map((span) => [
            span.mark ??= window.marks = (window.marks ?? 0) + 1, span.className, span.textContent,
        ])"""
        before = page.evaluate(look)
        assert [number for number, _, _ in before] == list(range(1, len(before) + 1))
        middle = len(text) // 2
        for typed in (text[:middle] + " new words" + text[middle:], text[: middle - 9] + text[middle:], text):
            page.fill("#text", typed)
            done(page)
            after = page.evaluate(look)
            kept = {mark: rest for mark, *rest in after if mark <= len(before)}
            assert len(kept) > len(before) // 4
            leaves = [name for _, name, _ in after if "outer" not in name]
            assert all(a != b for a, b in pairwise(leaves))
            assert "".join(words for _, name, words in after if "outer" not in name) == typed
            same = [mark for mark, name, words in before if kept.get(mark) == [name, words]]
            assert len(same) > 0.9 * len(kept)


@pytest.mark.parametrize("name", ["text", "dna"])
class TestAccess:
    pytestmark = axe.needed

    def test_no_violation(self, name, browser, tmp_path):
        example = EXAMPLES[name]
        path = tmp_path / "page.html"
        path.write_text(
            live(f">a\n{example}" if name == "dna" else example, plugin=name, model=load(f"starter:{name}", "cpu"))
        )
        for page, look in axe.looks(browser, path.as_uri()):
            done(page)
            assert axe.violations(page) == [], look
            assert page.locator("html").evaluate("root => root.scrollWidth - root.clientWidth") <= 0, look
