"""The targets that a teacher gives, and the losses from them."""

from itertools import pairwise

import pytest
import torch
from runkit import tiny
from safetensors.torch import save_file

from hnet_cli import storage
from hnet_cli.data.dataset import Dataset
from hnet_cli.data.loader import BOS, Batches, Windows
from hnet_cli.data.tokens import learned
from hnet_cli.training.build import build_model
from hnet_cli.training.teacher import CUT, TABLE, TOKENIZER, Teacher

pytest.importorskip("tokenizers")


@pytest.fixture(scope="module")
def tokenizer(data):
    return learned(Dataset.open(data), 320)


@pytest.fixture(scope="module")
def made(tokenizer, tmp_path_factory):
    """A teacher with random embeddings, and its table."""
    folder, table = tmp_path_factory.mktemp("teacher") / "folder", torch.randn(tokenizer.size, 64)
    with storage.staged_folder(folder, manifest={"kind": "model"}) as staged:
        storage.write_text(staged / TOKENIZER, tokenizer.text)
        save_file({"embeddings": table}, staged / TABLE)
    return Teacher(folder), table


def test_a_lesson_gives_the_transformer_what_it_is_used_to_read(made, data, tokenizer):
    """BOS, then token after token: so the main network computes what the Transformer computed."""
    teacher, table = made
    batch = next(Windows(Dataset.open(data), "train", 64).batches(512))  # the first begins with the document mark
    assert batch.inputs[0] == BOS
    lesson = teacher.lesson(batch, torch.device("cpu"))
    at = 0
    edges = batch.cu_seqlens.tolist()
    for a, b in pairwise(edges):
        text = batch.inputs[a:b].tobytes()
        first = a + (text[0] == BOS)
        tokens = tokenizer.encode([batch.inputs[first:b].tobytes()])[0]
        starts = lesson.boundary[a:b].nonzero()[:, 0] + a
        pieces = [batch.inputs[x:y].tobytes() for x, y in zip(starts, [*starts[1:].tolist(), b], strict=True)]
        assert b"".join(pieces) == text
        assert pieces[1:] == [tokenizer.decode([token]) for token in tokens[1:]]
        expected = table[[tokenizer.bos, *tokens[:-1]]]
        assert torch.equal(lesson.embedding[at : at + len(tokens)], expected)
        at += len(tokens)
        assert not lesson.judged[a]
        assert not lesson.judged[max(a, b - CUT) : b].any()
        assert torch.equal(lesson.certain[at - len(tokens) : at], starts < max(a + 1, b - CUT))
    assert at == len(lesson.embedding)
    assert lesson.judged.sum() > 200


def test_losses_are_least_for_what_the_teacher_says(made, data):
    model, (teacher, _) = build_model(tiny()), made
    batch = Batches(Dataset.open(data), sequence_length=64, rows=4, seed=3).batch(0)
    lesson = teacher.lesson(batch, torch.device("cpu"))
    ids, edges = torch.from_numpy(batch.inputs).long(), torch.from_numpy(batch.cu_seqlens)
    with torch.no_grad():
        routing = model(ids, cu_seqlens=edges).routing[0]
    first = lesson.losses(routing, None)
    routing.boundary_prob, routing.boundary_mask = lesson.boundary.float(), lesson.boundary
    assert lesson.losses(routing, lesson.embedding).tolist() == pytest.approx([0, 0, 1], abs=2e-6)
    assert first[0] > 0.1
    assert first[2] < 1
    routing.boundary_mask = torch.ones_like(lesson.boundary)  # a chunk per byte: those at first bytes are compared
    embedding = torch.zeros(len(ids), 64)
    embedding[lesson.boundary] = lesson.embedding
    assert lesson.losses(routing, embedding)[1] == 0
    wanted = lesson.embedding[lesson.certain].square().sum(-1).mean() / lesson.scale
    assert lesson.losses(routing, torch.zeros(len(ids), 64))[1] == pytest.approx(float(wanted), rel=1e-5)


def test_bytes_to_come_cannot_change_a_lesson(made, data):
    """Whatever a chunk holds in the last bytes of a sequence, where tokens may still grow, costs nothing."""
    teacher, _ = made
    batch = Batches(Dataset.open(data), sequence_length=64, rows=4, seed=3).batch(0)
    lesson = teacher.lesson(batch, torch.device("cpu"))
    routing = build_model(tiny())(torch.from_numpy(batch.inputs).long(), cu_seqlens=torch.from_numpy(batch.cu_seqlens))
    routing = routing.routing[0]
    routing.boundary_mask = lesson.boundary
    embedding = lesson.embedding.clone()
    embedding[~lesson.certain] += 5
    assert lesson.certain.logical_not().sum() > 4
    assert lesson.losses(routing, embedding)[1] == 0
