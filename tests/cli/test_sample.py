"""`hnet sample`: records, and what cannot be asked for."""

import io
import json

import pytest
import torch
from clikit import check_mistake
from modelkit import tiny_model

from hnet_cli.checkpoints.model_folder import save_model
from hnet_cli.cli.app import run
from hnet_cli.cli.sample import read_prompt
from hnet_cli.errors import InputError
from hnet_cli.model.config import EOS


@pytest.mark.parametrize(
    ("line", "code", "message"),
    [
        ("sample runs/fox --max-bytes 0", 2, "--max-bytes"),
        ("sample runs/fox --prompt a --prompt-file file.txt", 2, "exclude each other"),
        ("sample runs/fox --prompt-file nowhere", 3, "nowhere does not exist"),
        ("sample runs/fox --device cuda:99", 69, "cuda:99"),
        ("sample runs/fox --seed -1", 2, "--seed"),
        ("sample runs/fox --raw --show-chunks", 2, "exclude each other"),
        ("sample begun", 4, "begun has no complete checkpoint"),
    ],
)
def test_a_mistake_is_one_line_and_a_code(home, capsys, line, code, message):
    check_mistake(home, capsys, line, code, message)


@pytest.mark.slow
def test_a_chosen_length_is_found_on_what_the_model_writes(home, capsys):
    assert run(["sample", "runs/fox", "--max-bytes", "400", "--seed", "1", "--bytes-per-chunk", "3", "--json"]) == 0
    out, err = capsys.readouterr()
    record = json.loads(out)
    assert 4000 < record["compression"]["sample_bytes"] <= 4096  # a row may end early
    assert record["bytes_per_chunk"] == pytest.approx([3], rel=0.3)
    assert "Chunks at threshold 0." in err
    threshold = str(record["compression"]["thresholds"][0])
    assert run(["sample", "runs/fox", "--max-bytes", "400", "--seed", "1", "--threshold", threshold, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["text"] == record["text"]


def test_a_prompt_begins_after_its_byte_order_mark(tmp_path, monkeypatch):
    (tmp_path / "prompt.txt").write_text("Once", encoding="utf-8-sig")
    assert read_prompt(None, str(tmp_path / "prompt.txt")) == b"Once"
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"\xef\xbb\xbfOnce")))
    assert read_prompt(None, "-") == b"Once"
    (tmp_path / "prompt.txt").write_text("Once", encoding="utf-16")
    with pytest.raises(InputError, match=r"prompt\.txt is UTF-16LE"):
        read_prompt(None, str(tmp_path / "prompt.txt"))


def test_raw_records_know_no_rules(home, capsys):
    line = ["sample", "runs/fox", "--max-bytes", "60", "--temperature", "9", "--json"]
    assert run([*line, "--raw"]) == 0
    assert "bytes" in json.loads(capsys.readouterr().out)
    assert run(line) == 0
    assert "text" in json.loads(capsys.readouterr().out)


def test_a_model_that_ends_ends_the_output(tmp_path, capsysbinary):
    """EOS is no byte of the output, with the rules of a modality and without."""
    model = tiny_model(torch.float32)
    with torch.no_grad():
        model.lm_head.weight[EOS] *= 1000
    extra = {"modality": "text"}
    save_model(tmp_path, model, extra, [4.0, 2.0])
    for options in ([], ["--raw"], ["--temperature", "0"]):
        written = [run(["sample", str(tmp_path), "--prompt", f"{n}", "--max-bytes", "60", *options]) for n in range(2)]
        assert written == [0] * 2
        out = capsysbinary.readouterr().out
        assert bytes([EOS]) not in out
        assert len(out) < 2 * 50  # without an end there are 60 bytes of each
