"""Modalities from other packages: found through their entry point, and harmless to others when broken."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "hnet-morse"
MORSE = (EXAMPLE / "hnet_morse.py").read_text(encoding="utf-8")
PRELUDE = """
import json
from hnet_cli import contract, modality
from hnet_cli.cli import machine
from hnet_cli.cli.app import run
"""
BROKEN = "raise OSError('no such library')"


def install(site: Path, package: str, code: str, name: str, entry: str) -> Path:
    """Write the files that an installer leaves behind: a module and its metadata."""
    info = site / f"{package}-1.0.dist-info"
    info.mkdir(parents=True)
    (site / f"{package}.py").write_text(code)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package.replace('_', '-')}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[hnet.modalities]\n{name} = {package}:{entry}\n")
    return site


@pytest.fixture(scope="module")
def morse(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example package, installed with pip into a folder of its own."""
    base = tmp_path_factory.mktemp("a plugin")
    if not (importlib.util.find_spec("setuptools") and importlib.util.find_spec("pip")):
        return install(base / "site", "hnet_morse", MORSE, "morse", "Morse")
    shutil.copytree(EXAMPLE, base / "source")  # building writes beside the sources
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-index", "--no-deps"]
    command = [*pip, "--no-build-isolation", "--target", base / "site", base / "source"]
    subprocess.run(command, check=True, capture_output=True)
    return base / "site"


def evaluated(sites: list[Path], cwd: Path, *expressions: str) -> tuple[list[Any], str]:
    """Values of expressions in a fresh process with the packages of `sites` installed; and its standard error."""
    path = os.pathsep.join([*map(str, sites), str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    code = f"{PRELUDE}print(json.dumps([{', '.join(expressions)}]))"
    environment = os.environ | {"PYTHONPATH": path.rstrip(os.pathsep)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=cwd, env=environment)
    return (json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else []), done.stderr


@pytest.mark.slow
def test_an_installed_plugin_works_like_our_own(morse: Path, tmp_path: Path) -> None:
    """It is listed, keeps the contract, and `prepare` uses it, asked for by name or recognised."""
    (tmp_path / "sos.txt").write_text("... --- ... / " * 200)
    values, said = evaluated(
        [morse],
        tmp_path,
        "modality.names()",
        "modality.get('morse').summary",
        "contract.check_modality(modality.get('morse'))",
        "run(['prepare', 'sos.txt', '--out', 'named', '--modality', 'morse'])",
        "run(['prepare', 'sos.txt', '--out', 'recognised'])",
        "run(['prepare', 'sos.txt', '--out', 'unknown', '--modality', 'klingon'])",
    )
    names = ["chinese", "code", "dna", "morse", "text"]
    assert values == [names, "Morse code, written with . - and /", [], 0, 0, 2], said
    for out in ("named", "recognised"):
        assert json.loads((tmp_path / out / "dataset.json").read_text())["modality"] == "morse"
    last = said.splitlines()[-1]
    assert "klingon" in last
    assert "morse" in last
    assert "Traceback" not in said


def test_a_broken_plugin_hurts_nobody_else(tmp_path: Path) -> None:
    site = install(tmp_path / "site", "hnet_broken", BROKEN, "broken", "Broken")
    (tmp_path / "x.txt").write_text("hello, hello. " * 200)
    values, said = evaluated(
        [site],
        tmp_path,
        "modality.names()",
        "run(['prepare', 'x.txt', '--modality', 'text'])",
        "run(['prepare', 'x.txt', '--overwrite'])",
        "run(['prepare', 'x.txt', '--modality', 'broken'])",
    )
    assert values == [["broken", "chinese", "code", "dna", "text"], 0, 0, 69], said
    assert "no such library" in said
    assert "Traceback" not in said


@pytest.mark.slow
def test_two_plugins_of_one_name_are_named(morse: Path, tmp_path: Path) -> None:
    other = install(tmp_path / "site", "other_morse", MORSE, "morse", "Morse")
    _, said = evaluated([morse, other], tmp_path, "modality.names()")
    assert "UsageError" in said
    assert "hnet-morse" in said
    assert "other-morse" in said


def test_doctor_shows_what_is_wrong_with_which(morse: Path, tmp_path: Path) -> None:
    site = install(tmp_path / "site", "hnet_broken", BROKEN, "broken", "Broken")
    install(site, "hnet_lax", MORSE.replace("yield Refused", "pass #").replace("morse", "lax"), "lax", "Morse")
    install(site, "other_morse", MORSE, "morse", "Morse")
    (rows,), _ = evaluated([morse, site], tmp_path, "machine.installed_modalities()")
    problems = {row["name"]: "; ".join(row["problems"]) for row in rows}
    assert "no such library" in problems["broken"]
    assert "neither a document nor a reason" in problems["lax"]
    assert problems["text"] == problems["dna"] == problems["code"] == problems["chinese"] == ""
    twins = [row for row in rows if row["name"] == "morse"]
    assert sorted(row["package"] for row in twins) == ["hnet-morse 1.0", "other-morse 1.0"]
    assert all("hnet-morse" in str(row["problems"]) and "other-morse" in str(row["problems"]) for row in twins)
