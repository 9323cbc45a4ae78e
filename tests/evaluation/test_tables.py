"""The tables say what was counted."""

import re

from rowkit import PAIRS, rows_file


def test_the_definition_stands_before_the_figures(hnet, tmp_path):
    file = tmp_path / "a.txt"
    file.write_text("It was the best of times.\n" * 12)
    code, out, _ = hnet("eval", "starter:text", "--data", file, "--context", 128, "--stride", 64, "--no-samples")
    assert code == 0
    assert f"{file.stat().st_size:,} bytes, each counted once, of 1 document;" in out
    assert "at most 128 bytes before it" in out
    assert "at least 65" in out
    assert "Intervals: none, for fewer than 8" in out
    assert out.index("counted once") < out.index("nats per byte")


def test_of_rows_the_completions_are_said_to_count(hnet, tmp_path):
    rows = rows_file(tmp_path / "rows.jsonl", PAIRS[:12])
    code, out, err = hnet("eval", "starter:text", rows, "--exact", "--no-samples", "--context", 64)
    assert code == 0, err
    counted = sum(len(completion.encode()) + 1 for _, completion in PAIRS[:12])
    assert f"{counted} bytes, each counted once, of 12 documents" in out
    assert "the completions and the mark that ends each" in out
    assert "A longer one is read from 64 bytes before its end on" in out
    assert "xz" not in out
    assert re.search(r"answered exactly +0\.0000 +0\.0000 to 0\.\d+", out)
    assert out.count("Wrong: ") == 3
    assert "walk I\\x0a -> " in out
