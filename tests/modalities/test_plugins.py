"""Modalities from other packages: found through their entry point, and harmless to others when broken."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "hnet-morse"
MORSE = (EXAMPLE / "hnet_morse.py").read_text(encoding="utf-8")


def by_hand(site: Path, package: str, code: str, points: str) -> None:
    """What an installer leaves behind: a module and its metadata."""
    site.mkdir(exist_ok=True)
    (site / f"{package}.py").write_text(code)
    info = site / f"{package}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package.replace('_', '-')}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[hnet.modalities]\n{points}\n")


@pytest.fixture(scope="module")
def morse(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example package, installed with pip into a folder of its own."""
    base = tmp_path_factory.mktemp("a plugin")
    if not (importlib.util.find_spec("setuptools") and importlib.util.find_spec("pip")):
        by_hand(base / "site", "hnet_morse", MORSE, "morse = hnet_morse:Morse")
        return base / "site"
    shutil.copytree(EXAMPLE, base / "source")  # building writes beside the sources
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-index", "--no-deps"]
    command = [*pip, "--no-build-isolation", "--target", base / "site", base / "source"]
    subprocess.run(command, check=True, capture_output=True)
    return base / "site"


def python(site: Path, *arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Python as a user would start it with the packages of `site` installed."""
    root = str(Path(__file__).parents[2])
    path = os.pathsep.join([str(site), root, os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, cwd=cwd, env=os.environ | {"PYTHONPATH": path}
    )


def evaluated(site: Path, expression: str) -> object:
    """The value of an expression over `modality` in a fresh process, as JSON."""
    code = f"import json; from hnet_cli import modality; print(json.dumps({expression}))"
    run = python(site, "-c", code)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


def test_an_installed_plugin_appears(morse: Path) -> None:
    assert evaluated(morse, "modality.names()") == ["chinese", "code", "dna", "morse", "text"]
    assert evaluated(morse, "modality.get('morse').summary") == "Morse code, written with . - and /"


def test_it_keeps_the_contract(morse: Path) -> None:
    code = "from hnet_cli import contract, modality; print(contract.check_modality(modality.get('morse')))"
    run = python(morse, "-c", code)
    assert run.stdout.strip() == "[]", run.stderr


def test_prepare_uses_it(morse: Path, tmp_path: Path) -> None:
    """Asked for by name, and recognised without being asked for."""
    (tmp_path / "sos.txt").write_text("... --- ... / " * 200)
    for number, choice in enumerate((["--modality", "morse"], [])):
        run = python(morse, "-m", "hnet_cli", "prepare", "sos.txt", *choice, "--out", f"d{number}", cwd=tmp_path)
        assert run.returncode == 0, run.stderr
        assert json.loads((tmp_path / f"d{number}/dataset.json").read_text())["modality"] == "morse"


def test_an_unknown_name_lists_it(morse: Path, tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("...")
    run = python(morse, "-m", "hnet_cli", "prepare", "--modality", "klingon", "x.txt", cwd=tmp_path)
    assert run.returncode == 2
    assert "klingon" in run.stderr
    assert "morse" in run.stderr
    assert "Traceback" not in run.stderr


def test_a_broken_plugin_hurts_nobody_else(tmp_path: Path) -> None:
    by_hand(tmp_path / "site", "hnet_broken", "raise OSError('no such library')", "broken = hnet_broken:Broken")
    assert evaluated(tmp_path / "site", "modality.names()") == ["broken", "chinese", "code", "dna", "text"]
    assert evaluated(tmp_path / "site", "modality.get('text').name") == "text"
    (tmp_path / "x.txt").write_text("hello, hello. " * 200)
    for choice in (["--modality", "text"], []):
        run = python(tmp_path / "site", "-m", "hnet_cli", "prepare", "x.txt", "--overwrite", *choice, cwd=tmp_path)
        assert run.returncode == 0, run.stderr
    run = python(tmp_path / "site", "-m", "hnet_cli", "prepare", "--modality", "broken", "x.txt", cwd=tmp_path)
    assert run.returncode == 69
    assert "no such library" in run.stderr
    assert "Traceback" not in run.stderr


def test_two_plugins_of_one_name_are_named(morse: Path, tmp_path: Path) -> None:
    by_hand(tmp_path / "site", "other_morse", MORSE, "morse = other_morse:Morse")
    both = Path(os.pathsep.join([str(morse), str(tmp_path / "site")]))
    run = python(both, "-c", "from hnet_cli import modality; modality.names()")
    assert "UsageError" in run.stderr
    assert "hnet-morse" in run.stderr
    assert "other-morse" in run.stderr


def test_doctor_shows_what_is_wrong_with_which(morse: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    by_hand(site, "hnet_broken", "raise OSError('no such library')", "broken = hnet_broken:Broken")
    by_hand(site, "hnet_lax", MORSE.replace("yield Refused", "pass #").replace("morse", "lax"), "lax = hnet_lax:Morse")
    by_hand(site, "other_morse", MORSE, "morse = other_morse:Morse")
    code = "import json; from hnet_cli.cli import doctor; print(json.dumps(doctor.installed_modalities()))"
    run = python(Path(os.pathsep.join([str(morse), str(site)])), "-c", code)
    assert run.returncode == 0, run.stderr
    rows = [(row["name"], row["package"], "; ".join(row["problems"])) for row in json.loads(run.stdout)]
    told = {name: problems for name, _, problems in rows}
    assert "no such library" in told["broken"]
    assert "neither a document nor a reason" in told["lax"]
    assert told["text"] == told["dna"] == told["code"] == told["chinese"] == ""
    assert sorted(package for name, package, _ in rows if name == "morse") == ["hnet-morse 1.0", "other-morse 1.0"]
    assert all("hnet-morse" in p and "other-morse" in p for name, _, p in rows if name == "morse")
