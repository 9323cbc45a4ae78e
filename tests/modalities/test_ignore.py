"""Patterns of .gitignore files: the verdicts are git's own."""

from __future__ import annotations

import os
import random
import re
import subprocess
from pathlib import Path

import pytest

from hnet_cli.modalities._ignore import Ignored

PIECES = [
    *(
        "a",
        "b",
        "1",
        "-",
        "]",
        "*",
        "*",
        "**",
        "?",
        "/",
        "/",
        "/**/",
        "**/",
        "/**",
        "***",
        "\\*",
        "\\a",
        "\\/",
        " ",
        "\\ ",
    ),
    *("#", "!", "é", "[ab]", "[!a]", "[^b]", "[a-c]", "[c-a]", "[]a]", "[\\]1]", "[a\\-c]", "[-a]", "[a-]", "[--1]"),
    *("[[]", "[", "\\", "[a/]", "[[:digit:]]", "[![:alpha:]]", "[[:alpha:][:digit:]_]", "[:digit:]", "[[:punct:]-b]"),
    *("[[:foo:]]", "[[:digit:]", "[[:]]"),
]
NAMES = ("a", "b", "c", "1", "ab", "a b", "-", "]", "*", "#a", "!a", "é", "a1", "i:", "_")


def ignored_by(pattern: str, path: str) -> bool:
    named = Ignored(lambda file: pattern.encode() if file == Path(".gitignore") else b"")
    return bool(named(Path(path)))


@pytest.mark.parametrize("seed", range(4))
def test_the_verdicts_are_git_s(seed: int, tmp_path: Path) -> None:
    """A thousand files of one to three lines at random, each about paths of one to four names."""
    drawn = random.Random(seed)
    files, paths = {}, []
    for number in range(250):
        lines = ["".join(drawn.choices(PIECES, k=drawn.randint(1, 5))) for _ in range(drawn.randint(1, 3))]
        lines = [re.sub(r"(?<=[^/*])\*\*+", "*", line) for line in lines]
        lines = [line + "/" * (drawn.random() < 0.1) + "\r" * (drawn.random() < 0.05) for line in lines]
        lines = ["!" * (at > 0 and drawn.random() < 0.4) + line for at, line in enumerate(lines)]
        folder = f"f{number}"
        files[folder] = "\n".join(lines).encode()
        (tmp_path / folder).mkdir()
        (tmp_path / folder / ".gitignore").write_bytes(files[folder])
        paths += ["/".join([folder, *drawn.choices(NAMES, k=drawn.randint(1, 4))]) for _ in range(40)]
    paths, alone = sorted(set(paths)), {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    try:
        subprocess.run(["git", "init", "-q", "."], cwd=tmp_path, check=True, capture_output=True, env=alone)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("git is not installed")
    words = ["git", "-c", "core.excludesFile=/dev/null", "check-ignore", "--no-index", "-z", "--stdin"]
    asked = "\0".join(paths).encode()
    told = subprocess.run(words, cwd=tmp_path, input=asked, capture_output=True, env=alone).stdout.decode()
    named = Ignored(lambda file: files.get(file.parent.as_posix(), b""))
    assert [path for path in paths if named(Path(path))] == told.split("\0")[:-1]
    assert len(paths) / 20 < told.count("\0") < len(paths) / 2


@pytest.mark.parametrize(
    ("pattern", "path", "named"),
    [
        ("*a" * 30 + "*b", "a" * 200 + ".c", False),
        ("*a" * 30 + "*b", "a" * 200 + "b", True),
        ("*[ab]?" * 30 + "*c", "ab" * 100, False),
        ("**/a" * 30 + "/**/b", "a/" * 200 + "c", False),
        ("**/a" * 30 + "/**/b", "a/" * 200 + "b", True),
        ("x/**/*a*/" * 20 + "b", "x/" + "aa/" * 200 + "c", False),
        ("[" + "[:" * 100_000, "a", False),
    ],
    ids=range(7),
)
def test_many_stars_take_little_time(pattern: str, path: str, named: bool) -> None:
    """Each of these would take years if every star were tried at every place."""
    assert ignored_by(f"{pattern}\n", path) == named


@pytest.mark.parametrize(
    ("lines", "taken"),
    [
        ("*\n!*/\n!*.py\n", ["src/a.py", "dir/keep.py", "dir/x.py"]),
        ("*\n!src/\n!a.py\n", ["src/a.py"]),
        ("/*\n!/src/\n", ["src/a.py"]),
        ("dir/**\n!dir/keep.py\n", ["src/a.py", "dir/keep.py"]),
        ("dir/*\n!dir/keep.py\n", ["src/a.py", "dir/keep.py"]),
        ("**/*\n!src/**\n", []),
    ],
)
def test_a_folder_that_a_later_line_takes_back_is_read(lines: str, taken: list[str]) -> None:
    """The verdicts are those of `git check-ignore`."""
    assert [path for path in ("src/a.py", "dir/keep.py", "dir/x.py") if not ignored_by(lines, path)] == taken


@pytest.mark.parametrize("line", ["!", "a\\", "\\", "[z-a]", "["])
def test_a_malformed_pattern_fits_nothing(line: str) -> None:
    assert not ignored_by(f"{line}\n", "a/b.c")
    assert ignored_by(f"{line}\n*.c\n", "a/b.c")
