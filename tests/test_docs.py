"""The README is true: its commands parse, its test command is CI's, its links and names exist."""

from __future__ import annotations

import importlib.util
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from hnet_cli.cli.app import app
from hnet_cli.config.presets import preset_names
from hnet_cli.config.run import resolve

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```sh\n(.*?)```", README, re.DOTALL)


def commands() -> list[str]:
    """Every `hnet` command line in the README's shell blocks."""
    lines = [part.strip() for block in BLOCKS for line in block.splitlines() for part in line.split("&&")]
    return [line for line in lines if line.startswith("hnet ")]


def test_the_three_lines_stand_as_written() -> None:
    assert {
        "hnet prepare --modality dna genome.fa",
        "hnet train --preset 2stage-xl",
        "hnet segment file.txt",
    } <= set(commands())


@pytest.mark.parametrize("line", commands())
def test_commands_parse(line: str) -> None:
    import typer.main

    name, *arguments = shlex.split(line)[1:]
    command = typer.main.get_command(app).commands[name]  # type: ignore[attr-defined]
    command.make_context(name, arguments)


def test_ci_runs_the_readme_s_own_test_command() -> None:
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    pattern = re.search(r"sed -n 's/\^\\\((.*)\\\)\$/", script)
    assert pattern is not None
    found = [line for line in README.splitlines() if re.fullmatch(pattern.group(1), line)]
    assert found == ['pip install -e ".[test]" && python -m pytest']


PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/*.md")])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_and_pictures_exist(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target


def test_the_index_names_every_page() -> None:
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    for page in (ROOT / "docs").rglob("*.md"):
        name = page.relative_to(ROOT / "docs").as_posix()
        assert name == "README.md" or f"({name})" in index, name


def test_files_named_in_the_readme_exist() -> None:
    for name in re.findall(r"`((?:hnet_cli|benchmarks|modalities|presets|tests|docs)/[\w./-]+)`", README):
        assert (ROOT / name).exists(), name


def test_nothing_is_left_to_fill_in() -> None:
    assert "@@" not in README


def test_presets_named_in_the_readme_exist() -> None:
    named = re.findall(r"--preset ([\w-]+)", README)
    assert named
    assert set(named) <= set(preset_names())


def test_settings_named_in_the_readme_exist() -> None:
    for setting in re.findall(r"--set ([\w.]+=[\w.:-]+)", README):
        resolve("nano", [setting])


def test_module_runs_as_the_command() -> None:
    done = subprocess.run([sys.executable, "-m", "hnet_cli", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("hnet ")


def test_the_reference_is_that_of_the_code() -> None:
    spec = importlib.util.spec_from_file_location("reference", ROOT / "docs" / "reference.py")
    assert spec is not None
    assert spec.loader is not None
    reference = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(reference)
    for name, page in reference.PAGES.items():
        assert (reference.FOLDER / name).read_text(encoding="utf-8") == page(), "run `python docs/reference.py`"


@pytest.mark.slow
def test_the_example_notebook_runs_and_shows_what_it_says(tmp_path: Path) -> None:
    """Every cell, in a kernel of its own; the chunks in the file are those that the model makes."""
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    notebook = nbformat.read(ROOT / "examples" / "notebook.ipynb", as_version=4)
    stored = [cell.outputs for cell in notebook.cells if cell.cell_type == "code"]
    resources = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=600, kernel_name="python3", resources=resources).execute()
    made = [cell.outputs for cell in notebook.cells if cell.cell_type == "code"]
    for before, after in zip(stored, made, strict=True):
        assert [out.output_type for out in before] == [out.output_type for out in after if "execution_count" in out]
    texts = [re.findall(r">([^<]*)</span>", outputs[0].data["text/html"]) for outputs in (stored[1], made[1])]
    assert texts[0] == texts[1]
    assert len(texts[0]) > 10
