"""A folder as a user has it: a genome, a text, a dataset of each, a finished run, and some files that are wrong."""

import random
import shutil

import pytest
from clikit import hnet
from runkit import TINY, fox


@pytest.fixture(scope="session")
def prepared(tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    bases = "".join(random.Random(0).choices("ACGT", k=20_000))
    (home / "genome.fa").write_text(">chr1\n" + "\n".join(bases[i : i + 60] for i in range(0, 20_000, 60)) + "\n")
    (home / "empty.txt").write_text("")
    (home / "bad.yaml").write_text("extends: nano\ntrain: { stepz: 1 }\n")
    (home / "rows.jsonl").write_text('{"text": "a fox"}\n')
    (home / "begun").mkdir()
    (home / "begun/config.yaml").write_text("extends: nano\n")
    (home / "tiny.yaml").write_text(TINY)
    fox(home).rename(home / "file.txt")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        patch.delenv("HNET_MODEL", raising=False)
        assert hnet("-q prepare genome.fa") == 0
        assert hnet("-q prepare file.txt") == 0
        assert hnet("-q train --preset tiny.yaml --run runs/fox") == 0
    return home


@pytest.fixture
def home(prepared, monkeypatch):
    """`prepared` as the current folder; not to be written to."""
    monkeypatch.chdir(prepared)
    monkeypatch.delenv("HNET_MODEL", raising=False)
    return prepared


@pytest.fixture
def own(prepared, tmp_path, monkeypatch):
    """A copy of `prepared` as the current folder."""
    shutil.copytree(prepared, tmp_path / "own")
    monkeypatch.chdir(tmp_path / "own")
    monkeypatch.delenv("HNET_MODEL", raising=False)
    return tmp_path / "own"
