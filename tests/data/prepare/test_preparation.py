"""prepare: exact book-keeping, and parts on many machines that join to the bytes of one go."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from corpuskit import Lines, make, stored, text, tree
from hypothesis import given
from hypothesis import strategies as st
from strangerkit import resealed

from hnet_cli import modality
from hnet_cli.cli.app import run
from hnet_cli.data.dataset import Dataset
from hnet_cli.data.prepare import planning, preparation
from hnet_cli.data.prepare.preparation import join, part_folder, prepare, whole_folder
from hnet_cli.errors import DamagedError, InputError, StorageError, UsageError


@pytest.mark.slow
@given(files=st.lists(st.lists(st.binary(max_size=200), max_size=20), min_size=1, max_size=5))
def test_book_keeping_is_exact(files: list[list[bytes]], tmp_path_factory: pytest.TempPathFactory) -> None:
    """Bytes and documents in = kept + refused, and what is kept can be read back."""
    root = tmp_path_factory.mktemp("books")
    (root / "in").mkdir()
    (root / "in" / "base").write_bytes(text(0))
    contents = [text(0)]
    for index, parts in enumerate(files):
        contents.append(b".\n" + b"\n".join(parts))  # what looks like an archive is another test's business
        (root / "in" / f"file{index}").write_bytes(contents[-1])
    summary, dataset = make(root / "out", root / "in")
    kept = [line for data in contents for line in data.splitlines(keepends=True) if not line.startswith(b"#")]
    dropped = [line for data in contents for line in data.splitlines(keepends=True) if line.startswith(b"#")]
    assert stored(dataset) == b"".join(kept)
    assert (summary.documents, summary.bytes) == (len(kept), sum(map(len, kept)))
    assert summary.refused.get("comment", (0, 0, ""))[:2] == (len(dropped), sum(map(len, dropped)))
    assert sorted(b"".join(dataset.documents(s)) != b"" for s in dataset.splits) == [True, True]
    assert sum(dataset.nbytes(split) for split in dataset.splits) == summary.bytes


def same(one: Path, other: Path) -> bool:
    return {f.name: f.read_bytes() for f in one.iterdir()} == {f.name: f.read_bytes() for f in other.iterdir()}


def in_parts(out: Path, parts: int, *inputs: Path, **options: Any) -> list[Path]:
    plugin = options.pop("modality", Lines())
    return [
        prepare(list(inputs), plugin, out, part=(part, parts), measure=False, **options).path
        for part in range(1, parts + 1)
    ]


def test_what_was_read_of_one_standard_input_is_not_taken_for_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both are called "-"; and what is kept of a stopped run is much, so that it is looked for."""
    monkeypatch.setattr(preparation, "UNIT_BYTES", 100)
    for words, count in ((b"alpha\n", 200), (b"delta\n", 2000)):
        (tmp_path / "input").write_bytes(words * count)
        with open(tmp_path / "input", "rb") as given, monkeypatch.context() as patch:
            patch.setattr("sys.stdin", io.TextIOWrapper(given))
            if count == 200:
                with pytest.raises(InputError, match="too little data"):
                    prepare(["-"], Lines(), tmp_path / "out", measure=False)
                assert list(tmp_path.glob(".out*"))
            else:
                prepare(["-"], Lines(), tmp_path / "out", measure=False)
    assert b"alpha" not in stored(Dataset.open(tmp_path / "out"))


def test_the_disk_need_not_hold_what_is_not_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fields of rows are, members of an archive; a text that is larger than the disk is refused beforehand."""
    monkeypatch.setattr(preparation, "free_bytes", lambda path: 50_000)
    rows = (json.dumps({"title": text(n, 90).decode(), "other": "x" * 900}) + "\n" for n in range(100))
    (tmp_path / "x.jsonl").write_text("".join(rows))
    prepare([tmp_path / "x.jsonl"], modality.get("text"), tmp_path / "rows", field="title", measure=False)
    (tmp_path / "x.txt").write_bytes(text(1, 60_000))
    with pytest.raises(StorageError, match=r"disk full: .* needs about 5\d,\d+ bytes, 50,000 are free"):
        make(tmp_path / "out", tmp_path / "x.txt")


@pytest.mark.parametrize("parts", [1, 2, 5, 40])
def test_parts_joined_are_the_whole(parts: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Byte for byte, in any order given, also with more parts than units, with refusals and with --val-input."""
    monkeypatch.setattr(planning, "UNIT_FILES", 3)
    source = tree(tmp_path / "in", 20)
    (source / "loop").symlink_to(source)
    (source / "bad.txt").write_bytes(b"# refused\n" * 40)
    (source / "copy.txt").write_bytes(text(4))  # of the one held out
    (source / "link.txt").symlink_to("007.txt")
    (source / "x.jsonl").write_text(json.dumps({"text": "from a row\n" * 30}) + "\n{\n")
    options: dict[str, Any] = {"val_inputs": [source / "004.txt"], "modality": modality.get("text"), "tolerated": 0.2}
    whole = tmp_path / "whole"
    prepare([source], options["modality"], whole, measure=False, tolerated=0.2, val_inputs=options["val_inputs"])
    del options["tolerated"]
    folders = in_parts(tmp_path / "x", parts, source, **options)
    assert folders[-1] == part_folder(tmp_path / "x", parts, parts)
    assert whole_folder(folders[0]) == tmp_path / "x"
    summary = join(folders[::-1], tmp_path / "x", measure=False, tolerated=0.2)
    assert same(whole, tmp_path / "x")
    assert summary.documents == Dataset.open(whole).about["documents"]


def test_wrong_parts_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "UNIT_FILES", 3)
    source = tree(tmp_path / "in", 12)
    one, two, three = in_parts(tmp_path / "x", 3, source, modality=modality.get("text"))
    other = in_parts(tmp_path / "y", 3, source, val=0.2, modality=modality.get("text"))
    for folders, why in (
        ([one, three], "part 2 of 3 is missing"),
        ([one, two, two, three], "part 2 of 3 is there twice"),
        ([one, other[1], three], "part-2-of-3 and .*part-1-of-3 are not parts of one dataset"),
        ([one, two, tmp_path / "whole"], "whole is not a part"),
    ):
        if folders[-1].name == "whole":
            prepare([source], modality.get("text"), tmp_path / "whole", measure=False)
        with pytest.raises(DamagedError, match=why):
            join(folders, tmp_path / "joined", measure=False)
    with pytest.raises(InputError, match="no folder"):
        join([one, tmp_path / "none"], tmp_path / "joined")
    for name in ("part.json", "manifest.json", "shard-00000.bin", "documents.bin", "hashes.bin"):
        copy = tmp_path / "copy"
        shutil.copytree(two, copy)
        data = bytearray((copy / name).read_bytes())
        data[3 if name == "manifest.json" else len(data) // 2] ^= 4  # else in the digest of some other file
        (copy / name).write_bytes(data)
        with pytest.raises(DamagedError, match=name):
            join([one, copy, three], tmp_path / "joined", measure=False)
        shutil.rmtree(copy)
    assert not (tmp_path / "joined").exists()
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("part", [[1, 10**9], [0, 2], [3, 2], [1], ["1", None]])
def test_numbers_of_parts_are_bounded(part: list[Any], tmp_path: Path) -> None:
    """A billion parts of which all but one are missing took gigabytes to say so."""
    (one, two) = in_parts(tmp_path / "x", 2, tree(tmp_path / "in", 6), modality=modality.get("text"))
    about = json.loads((one / "part.json").read_text())
    (one / "part.json").write_text(json.dumps(about | {"part": part}))
    resealed(one)
    with pytest.raises(DamagedError, match=r"part\.json is missing or damaged"):
        join([one, two], tmp_path / "x", measure=False)


def test_parts_on_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    monkeypatch.chdir(tmp_path)
    tree(tmp_path / "in", 6)
    for part in ("1/2", "2/2"):
        assert run(["prepare", "in", "--modality", "text", "--part", part]) == 0
    assert "hnet prepare --join" in capfd.readouterr().err
    assert run(["prepare", "--join", "data/in.part-1-of-2"]) == 4
    assert "part 2 of 2 is missing" in capfd.readouterr().err
    assert run(["prepare", "--join", "data/in.part-2-of-2", "data/in.part-1-of-2"]) == 0
    assert Dataset.open(tmp_path / "data" / "in").about["modality"] == "text"
    for wrong in (["in", "--part", "3/2"], ["in", "--part", "x"], ["in", "--join", "--part", "1/2"]):
        assert run(["prepare", *wrong]) == 2
    with pytest.raises(UsageError, match="standard input cannot be prepared in parts"):
        prepare(["-"], Lines(), tmp_path / "y", part=(1, 2))
