"""The tables say what was counted."""


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
