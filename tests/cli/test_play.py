"""`hnet play` as a process: an address with a token, and a clean end."""

import os
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request

import pytest

from hnet_cli.cli.play import _divide
from hnet_cli.errors import UsageError


def test_models_and_a_file_are_told_apart(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a.txt", "b.txt", "tokenizer.json"):
        (tmp_path / name).write_text("{}")
    assert _divide(["starter:text", "a.txt"]) == (["starter:text"], "a.txt")
    assert _divide(["tokenizer.json", "starter:code"]) == (["tokenizer.json", "starter:code"], None)
    assert _divide(["starter:code", "starter:code"]) == (["starter:code"], None)
    assert _divide(["runs/gone"]) == (["runs/gone"], None)
    with pytest.raises(UsageError, match="2 files"):
        _divide(["a.txt", "b.txt"])


@pytest.mark.slow
def test_it_serves_its_page_until_it_is_interrupted(tmp_path):
    (tmp_path / "a.txt").write_text("Words of a file.")
    command = [sys.executable, "-m", "hnet_cli", "play", "starter:text", "a.txt", "--no-browser"]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        address = re.search(r"http://127\.0\.0\.1:\d+/\?token=\S+", process.stderr.readline())[0]
        assert "Words of a file." in urllib.request.urlopen(address, timeout=60).read().decode()
        with pytest.raises(urllib.error.HTTPError, match="403"):
            urllib.request.urlopen(address.partition("?")[0], timeout=60)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert (process.returncode, out, err) == (0, "", "Ended.\n")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "code", "words"), [(["nowhere"], 3, "no model at nowhere"), (["--port", "99999"], 2, "--port")]
)
def test_mistakes_end_in_one_line(tmp_path, arguments, code, words):
    command = [sys.executable, "-m", "hnet_cli", "play", *arguments, "--no-browser"]
    done = subprocess.run(
        command,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "HNET_MODEL": "starter:text"},
    )
    assert done.returncode == code
    assert words in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
