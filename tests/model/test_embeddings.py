"""Hashed n-grams: sums of rows that the last bytes name, of each document by itself."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from modelkit import randomised, tiny_config

from hnet_cli.kernels.packing import Packing
from hnet_cli.model import HNetForCausalLM, parameter_groups
from hnet_cli.model.embeddings import REACH, SIZES, Embeddings
from hnet_cli.model.optimization import NGRAM_RATE

ROWS = 50


def made(rows=ROWS):
    torch.manual_seed(0)
    return randomised(Embeddings(256, 4, rows).double())


def row(gram, size):
    """The row of an n-gram of `size` bytes, newest byte first; 0 bytes before the document."""
    code = gram[0]
    for byte in gram[1:size]:
        code = (code * 1_000_003 + byte) % 2**31
    return code * 0x9E3779B1 // 2**15 % ROWS + ROWS * (size - SIZES[0])


@given(st.lists(st.binary(min_size=1, max_size=12), min_size=1, max_size=3))
def test_a_byte_has_its_vector_and_those_of_the_ngrams_that_end_in_it(documents):
    table = made()
    assert table.ngrams is not None
    out = table.packed(torch.tensor(list(b"".join(documents))), Packing.of_lengths([len(d) for d in documents]))
    expected = []
    for document in documents:
        for end in range(len(document)):
            newest = [byte + 1 for byte in document[end::-1]] + [0] * REACH
            grams = [table.ngrams[row(newest, size)] for size in SIZES]
            expected.append(table.weight[document[end]] + sum(grams))
    assert torch.allclose(out, torch.stack(expected), atol=1e-12)


def test_rows_are_spread():
    ids = torch.randint(97, 123, (4000,))
    table = Embeddings(256, 1, 64)
    with torch.no_grad():
        table.ngrams[:] = torch.arange(len(table.ngrams))[:, None] % 64
        table.ngrams[64:] = 0
        table.weight.zero_()
    counts = torch.bincount(table.packed(ids, Packing.of_lengths([4000])).long().flatten(), minlength=64)
    assert counts.min() > 20
    assert counts.max() < 140


@pytest.mark.parametrize("cut", [1, 2, 5, 11])
def test_pieces_and_steps_are_the_whole(cut):
    table, documents = made(), [torch.randint(0, 256, (12,)) for _ in range(3)]
    whole = torch.stack([table.packed(ids, Packing.of_lengths([12])) for ids in documents])
    recent = table.allocate(3)
    first = table.packed(torch.cat([ids[:cut] for ids in documents]), Packing.of_lengths([cut] * 3), recent)
    assert torch.equal(first.view(3, cut, 4), whole[:, :cut])
    for at in range(cut, 12):
        rows = torch.tensor([2, 0]) if at % 2 else None
        for part in [rows, torch.tensor([1])] if at % 2 else [rows]:
            index = torch.arange(3) if part is None else part
            out = table.step(torch.stack([documents[i][at] for i in index]), recent, part)
            assert torch.allclose(out, whole[index, at], atol=1e-12)


def test_a_model_begins_as_the_one_without():
    config = tiny_config()
    torch.manual_seed(0)
    plain = HNetForCausalLM(config)
    torch.manual_seed(0)
    other = HNetForCausalLM(tiny_config(ngram_rows=ROWS))
    ids = torch.randint(0, 256, (1, 40))
    assert torch.equal(plain(ids).logits, other(ids).logits)
    assert sum(p.numel() for p in other.parameters()) == other.config.num_parameters
    assert "ngram_rows" not in config.to_dict().get("hnet", {})
    groups = parameter_groups(other, lr_multipliers=[2.0, 1.0, 1.0])
    (own,) = [group for group in groups if "embeddings.ngrams" in group["names"]]
    assert (own["lr_multiplier"], own["weight_decay"]) == (2 * NGRAM_RATE, 0)
