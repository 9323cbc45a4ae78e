"""Archives and datasets made by somebody hostile: nothing outside what the user named is read or written."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hostilekit import PROSE, zip_of

from hnet_cli import storage
from hnet_cli.cli.app import run
from hnet_cli.data.dataset import Dataset
from hnet_cli.errors import DamagedError

SECRET = b"the secret that nobody may read\n"


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "", size: int | None = None) -> bytes:
    """A tar of one member, and a good one whose path leads through it."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        info, through = tarfile.TarInfo(name), tarfile.TarInfo(f"{name}/through.txt")
        info.type, info.linkname = kind, link
        info.size, through.size = len(PROSE) if kind == tarfile.REGTYPE else 0, len(PROSE)
        archive.addfile(info, io.BytesIO(PROSE))
        archive.addfile(through, io.BytesIO(PROSE))
    if size is None:
        return out.getvalue()
    info.size = size
    return info.tobuf(tarfile.GNU_FORMAT) + out.getvalue()[512:]


ARCHIVES: dict[str, tuple[bytes, int]] = {
    "parent": (member("../../written.txt"), 0),
    "symlink to a file": (member("a.txt", tarfile.SYMTYPE, "../secret.txt"), 0),
    "symlink to a folder": (member("a", tarfile.SYMTYPE, ".."), 0),
    "absolute symlink": (member("a.txt", tarfile.SYMTYPE, "/etc/passwd"), 0),
    "hard link": (member("a.txt", tarfile.LNKTYPE, "../secret.txt"), 0),
    "absolute hard link": (member("a.txt", tarfile.LNKTYPE, "/etc/passwd"), 0),
    "hard link to itself": (member("a.txt", tarfile.LNKTYPE, "a.txt"), 0),
    "character device": (member("zero", tarfile.CHRTYPE), 0),
    "block device": (member("disk", tarfile.BLKTYPE), 0),
    "pipe": (member("pipe", tarfile.FIFOTYPE), 0),
    "a member of an exabyte": (member("a.txt", size=1 << 60), 3),
    "a member of less than nothing": (member("a.txt", size=-(1 << 40)), 3),
    "zip": (zip_of({"../../written.txt": PROSE}), 3),
}


def below(place: Path) -> set[str]:
    return {str(path.relative_to(place)) for path in place.rglob("*")}


def test_r19_archives(tally: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    """Members are streamed: names are for display, links and devices are refused."""
    counted = tally("R19", "archives with members that point outside")
    (tmp_path / "secret.txt").write_bytes(SECRET * 99)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    absolute = tmp_path / "absolute.txt"
    for what, (content, wanted) in {**ARCHIVES, "absolute": (member(str(absolute)), 0)}.items():
        Path("x.tar").write_bytes(content)
        before = below(tmp_path)
        code = run(["prepare", "x.tar", "--modality", "text", "--out", "out", "--allow-skips"])
        error = capfd.readouterr().err
        good = code == wanted and "Traceback" not in error and not absolute.exists()
        new = {name for name in below(tmp_path) - before if not name.startswith("work/out")}
        if Path("out").exists():
            dataset = Dataset.open(Path("out"))
            stored = dataset.shards.read(0, dataset.about["bytes"])
            good = good and SECRET not in stored and b"root:" not in stored
            storage.remove_folder(Path("out"))
        counted.count(good and not new, f"{what}: exit {code}, new {new}: {error[-300:]}")


def rewritten(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    """dataset.json changed by somebody who also makes the manifest fit."""

    def act(folder: Path) -> None:
        about = json.loads((folder / "dataset.json").read_bytes())
        change(about)
        (folder / "dataset.json").unlink()
        storage.write_json(folder / "dataset.json", about)
        text = (folder / "dataset.json").read_bytes()
        manifest = json.loads((folder / "manifest.json").read_bytes())
        entry = {"size": len(text), "sha256": hashlib.sha256(text).hexdigest()}
        manifest["files"] = dict(sorted((about["files"] | {"dataset.json": entry}).items()))
        (folder / "manifest.json").unlink()
        storage.write_json(folder / "manifest.json", manifest)

    return act


def names_a_file_outside(name: str) -> Callable[[Path], None]:
    return rewritten(lambda about: about["files"].update({name: about["files"]["names.txt"]}))


def a_split_outside(folder: Path) -> None:
    """A split whose name leads to a file of the very bytes that are in the folder."""
    (folder / "split-").mkdir()
    (folder.parent / "outside.bin").write_bytes((folder / "split-train.bin").read_bytes())
    rewritten(lambda about: about["splits"].update({"/../../outside": about["splits"]["train"]}))(folder)


DATASETS: dict[str, Callable[[Path], object]] = {
    "a file above": names_a_file_outside("../secret.txt"),
    "a file by its path": names_a_file_outside("/etc/passwd"),
    "a file through a folder": names_a_file_outside("a/../../secret.txt"),
    "a split": a_split_outside,
    "a deep dataset.json": lambda folder: (folder / "dataset.json").write_bytes(b"[" * 200_000),
    "a deep manifest.json": lambda folder: (folder / "manifest.json").write_bytes(b'{"a":' * 200_000),
    "a format unknown": rewritten(lambda about: about.update(format="../1")),
    "bytes beyond the shards": rewritten(lambda about: about.update(bytes=1 << 62)),
    "no table": rewritten(lambda about: about["files"].pop("documents.bin")),
}


@pytest.mark.parametrize("what", DATASETS)
def test_r19_datasets(what: str, data: Path, tally: Any, tmp_path: Path) -> None:
    counted = tally("R19", "datasets whose description names what it must not: refused, nothing outside read", what)
    (tmp_path / "secret.txt").write_bytes(SECRET)
    folder = shutil.copytree(data, tmp_path / "dataset")
    DATASETS[what](folder)
    with pytest.raises(DamagedError) as error:
        Dataset.open(folder)
    counted.count(error.value.exit_code == 4 and SECRET.decode() not in str(error.value), str(error.value))
