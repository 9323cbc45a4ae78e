"""What the page asks for: chunks of a text as it stands, continuations that are valid, nothing by a path."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from modelkit import tiny_config, tiny_model
from pydantic import ValidationError

from hnet_cli.data import tokens
from hnet_cli.errors import EnvironmentLimit, HNetError, InputError, UsageError
from hnet_cli.inference.segment import segment_bytes
from hnet_cli.play import session as playing
from hnet_cli.play.session import MOST_BYTES, ContinueRequest, CutRequest, Session

TWO = tiny_model(torch.float32).eval()


def opened(monkeypatch, *models):
    """A session over models in memory, under the names m0, m1, ..."""
    names = {f"m{n}": model for n, model in enumerate(models)}
    monkeypatch.setattr(playing, "load_any", lambda name, device: names[name])
    monkeypatch.setattr(playing, "starters", list)
    monkeypatch.setattr(playing, "_runs", list)
    return Session(list(names))


def units(lists):
    return [int(n) for n in lists.get("u", lists["n"]).split(",")]


@pytest.mark.slow
@given(text=st.text(max_size=200), bytes_per_chunk=st.sampled_from([None, 1.5, 3.0]))
def test_chunks_are_those_of_the_text_as_it_stands(text, bytes_per_chunk):
    with pytest.MonkeyPatch.context() as monkeypatch:
        session = opened(monkeypatch, TWO)
        told = session.cut(CutRequest(model=0, text=text, bytes_per_chunk=bytes_per_chunk))
    data = text.encode("utf-8", "replace")
    assert TWO.thresholds == [0.5, 0.5]
    assert (told["bytes"], told["stages"]) == (len(data), 2)
    if not data:
        assert told["lists"]["n"] == ""
        return
    sizes = [int(n) for n in told["lists"]["n"].split(",")]
    assert sum(sizes) == len(data)
    assert sum(units(told["lists"])) == len(data.decode().encode("utf-16-le")) // 2
    assert told["chunks"] == [len(sizes), sum(p != "" for p in told["lists"]["p1"].split(","))]
    if bytes_per_chunk is None:
        assert sizes == [len(chunk) for chunk in segment_bytes(TWO, data)]
    assert told["bits"] > 0
    assert len(told["lists"].pop("s")) == len(data)
    with pytest.MonkeyPatch.context() as monkeypatch:
        quick = opened(monkeypatch, TWO).cut(
            CutRequest(model=0, text=text, bytes_per_chunk=bytes_per_chunk, bits=False)
        )
    assert quick == {key: value for key, value in told.items() if key != "bits"}


def test_a_tokenizer_cuts_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tokenizer.json").write_text(tokens.learn([b"the cat and the other cat " * 50], 270))
    session = Session(["tokenizer.json"])
    told = session.cut(CutRequest(model=0, text="the cat, 世"))
    assert sum(map(int, told["lists"]["n"].split(","))) == told["bytes"] == 12
    assert told["bits"] is None
    with pytest.raises(InputError, match="continues nothing"):
        list(session.continued(ContinueRequest(model=0, text="the")))


def test_a_text_that_a_model_cannot_continue_is_explained_without_options():
    session = Session(["starter:dna"])
    with pytest.raises(UsageError, match="not valid for this model's modality") as error:
        list(session.continued(ContinueRequest(model=0, text="hello")))
    assert "--" not in error.value.hint


def test_a_continuation_is_valid_and_repeatable(monkeypatch):
    session = opened(monkeypatch, tiny_model(torch.float32, config=tiny_config(extra={"modality": "chinese"})).eval())
    request = ContinueRequest(model=0, text="春天", max_bytes=40, seed=5)
    first, again = ("".join(session.continued(request)) for _ in range(2))
    assert first == again
    assert "\ufffd" not in first
    assert 0 < len(first.encode()) <= 40


FIXED = tiny_config(("m1", ("T1",), "m1"), chunker={"kind": "fixed", "k": 3})


@pytest.mark.parametrize("config", [tiny_config(("m2",)), FIXED], ids=["flat", "fixed"])
def test_a_model_without_learned_boundaries_continues_too(monkeypatch, config):
    session = opened(monkeypatch, tiny_model(torch.float32, config=config).eval())
    assert "".join(session.continued(ContinueRequest(model=0, text="abc", max_bytes=5)))


def test_one_odd_run_or_plugin_does_not_end_the_page(tmp_path, monkeypatch):
    def broken(name):
        raise EnvironmentLimit(f"modality {name} cannot be loaded")

    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").write_text("no folder")
    monkeypatch.setattr(playing.modalities, "get", broken)
    offered = Session(["starter:text"]).offered()
    assert offered[0] == {"name": "starter:text", "modality": "text", "example": ""}


def test_models_are_held_while_they_are_used(monkeypatch):
    models = [tiny_model(torch.float32) for _ in range(5)]
    session = opened(monkeypatch, *models)
    for number in (0, 1, 2, 0, 3, 4):
        assert session.player(number) is models[number]
    assert list(session._loaded) == [0, 3, 4]


def test_what_is_offered_has_examples():
    offered = Session().offered()
    assert {"starter:text", "starter:dna"} <= {each["name"] for each in offered}
    assert all(each["example"] for each in offered if each["name"].startswith("starter:"))
    json.dumps(offered)


def test_the_text_of_a_file_is_read_as_the_modality_does(monkeypatch):
    session = Session(["starter:dna", "starter:text"])
    assert session.text_of(0, b">one\nACGT\nACGT\n>two\nGG\n") == ("ACGTACGT", False)
    assert session.text_of(1, "\ufeffÜber".encode()) == ("Über", False)
    long, more = session.text_of(1, "ä".encode() * MOST_BYTES)
    assert more
    assert 0 < len(long.encode()) <= MOST_BYTES
    assert session.text_of(0, b"ACGTTGCA") == ("ACGTTGCA", False)
    for cut in (1, 2):  # where the page stops reading
        assert session.text_of(1, ("世界" * 9).encode()[:-cut])[0] == "世界" * 8 + "世"
    for data in (b"", b"\x7fELF\0\0\0\1\2"):
        with pytest.raises(InputError, match="nothing of this file"):
            session.text_of(1, data)


@pytest.mark.parametrize(
    "body",
    [
        {"model": -1, "text": ""},
        {"model": "../../etc/passwd", "text": ""},
        {"model": 0, "text": "x" * (MOST_BYTES + 1)},
        {"model": 0, "text": "", "bytes_per_chunk": 0.5},
        {"model": 0, "text": "", "bytes_per_chunk": True},
        {"model": 0, "text": "", "path": "/etc"},
        {"model": 0, "text": "", "max_bytes": 10**9},
        {"model": 0, "text": "", "temperature": -1},
    ],
)
def test_requests_are_typed_and_bounded(body):
    with pytest.raises(ValidationError):
        ContinueRequest.model_validate_json(json.dumps(body))


def test_what_is_not_there_is_named():
    session = Session()
    with pytest.raises(InputError, match="no model 99"):
        session.cut(CutRequest(model=99, text=""))
    with pytest.raises(InputError, match="20,000 can be cut"):
        session.cut(CutRequest(model=0, text="世" * 10_000))
    with pytest.raises(HNetError, match="no model at nowhere"):
        Session(["nowhere"]).player(0)


def test_figures_of_a_text_without_boundaries():
    one = playing._told(b"abc", np.array([0]), np.array([[1.0, np.nan]]), np.array([np.nan, 1.0, 2.0]), None)
    assert one["lists"]["p1"] == ""
    assert one["chunks"] == [1, 0]
