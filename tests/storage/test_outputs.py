"""Files named for output: inputs, what others wrote and devices stay what they are."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import pytest

from hnet_cli import storage
from hnet_cli.errors import BusyError
from hnet_cli.storage import outputs
from hnet_cli.storage.outputs import PAGE_MARK, output_file, refuse_output, write_output


def test_what_hnet_did_not_write_stays_unless_asked(tmp_path: Path) -> None:
    path = tmp_path / "thesis.txt"
    write_output(path, "mine")
    os.chmod(path, 0o600)
    with pytest.raises(BusyError, match="exists already"):
        write_output(path, "new")
    assert path.read_text() == "mine"
    write_output(path, "new", overwrite=True)
    assert path.read_text() == "new"
    assert path.stat().st_mode & 0o777 == 0o600
    (tmp_path / "made by mktemp").touch()
    write_output(tmp_path / "made by mktemp", "new")
    assert sorted(os.listdir(tmp_path)) == ["made by mktemp", "thesis.txt"]


def test_a_page_is_replaced_by_a_newer_one_but_never_as_an_input(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_bytes(b"<!doctype html><head>" + PAGE_MARK)
    assert refuse_output(page) == page
    (tmp_path / "link.html").symlink_to(page)
    os.link(page, tmp_path / "other.html")
    for inputs in ([page], [tmp_path], [tmp_path / "link.html"], [tmp_path / "other.html"], ["-", "missing", page]):
        with pytest.raises(BusyError, match="input"):
            refuse_output(page, inputs=inputs)
    assert refuse_output(tmp_path / "new.html", inputs=[tmp_path]) == tmp_path / "new.html"


def test_links_are_followed(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "there" / "x")
    for overwrite in (False, True):
        write_output(tmp_path / "link", "new", overwrite)
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "there" / "x").read_text() == "new"
    with pytest.raises(BusyError, match="exists already"):
        write_output(tmp_path / "link", "newer")


def test_devices_and_pipes_are_written_through(tmp_path: Path) -> None:
    write_output(Path(os.devnull), "nothing")
    (tmp_path / "null").symlink_to(os.devnull)
    write_output(tmp_path / "null", "nothing", overwrite=True)
    assert Path(os.devnull).is_char_device()
    fifo, read = tmp_path / "fifo", list[str]()
    os.mkfifo(fifo)
    reader = threading.Thread(target=lambda: read.append(fifo.read_text()))
    reader.start()
    write_output(fifo, "through the pipe")
    reader.join(10)
    assert read == ["through the pipe"]
    assert fifo.is_fifo()
    (tmp_path / "log").write_text("before ")
    program = (
        "from pathlib import Path; from hnet_cli.storage import write_output; write_output(Path('/dev/stdout'), 'x')"
    )
    with open(tmp_path / "log", "a") as log:
        subprocess.run([sys.executable, "-c", program], stdout=log, check=True)
    assert (tmp_path / "log").read_text() == "before x"
    with pytest.raises(BusyError, match="folder"):
        write_output(tmp_path, "x")


def test_nothing_is_left_of_what_was_not_finished(tmp_path: Path) -> None:
    def interrupted() -> None:
        with output_file(tmp_path / "x") as file:
            file.write(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert os.listdir(tmp_path) == []


@pytest.fixture
def marks(tmp_path: Path) -> None:
    """Where the disk has no attributes, there is nothing to test."""
    probe = tmp_path / "probe"
    probe.touch()
    outputs.mark_output(str(probe))
    if not outputs.is_output(probe):
        pytest.skip("no extended attributes here")
    probe.unlink()


@pytest.mark.slow
@pytest.mark.usefixtures("marks")
def test_outputs_are_told_from_what_others_wrote(tmp_path: Path) -> None:
    """Also what standard output was sent to, unless there was something before."""
    write_output(tmp_path / "x.txt", "chunks")
    os.rename(tmp_path / "x.txt", tmp_path / "y.txt")
    (tmp_path / "log.txt").write_text("mine\n")
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    for name, mode in (("new.yaml", "w"), ("log.txt", "a")):
        with (tmp_path / name).open(mode) as stdout:
            command = [sys.executable, "-m", "hnet_cli", "presets", "nano"]
            subprocess.run(command, stdout=stdout, env=environment, check=True)
    assert {path.name: outputs.is_output(path) for path in tmp_path.iterdir()} == {
        "y.txt": True,
        "new.yaml": True,
        "log.txt": False,
    }
    assert not outputs.is_output(tmp_path / "missing")


def test_a_page_is_told_by_its_head() -> None:
    page = b"<!doctype html>\n<html><head>" + PAGE_MARK
    assert outputs.is_page(page)
    assert outputs.is_page(b"\n" + page.replace(b"doctype", b"DOCTYPE"))
    assert not outputs.is_page(b"PAGE_MARK = b'" + PAGE_MARK + b"'")
    assert not outputs.is_page(b"<!doctype html>")


def test_a_spool_leaves_nothing_and_a_member_has_no_date(tmp_path: Path) -> None:
    path = tmp_path / "x.zip"
    with storage.output_file(path) as file, zipfile.ZipFile(file, "w") as archive, storage.spool(path) as column:
        column.write(b"first")
        column.write(b"last")
        assert len(list(tmp_path.iterdir())) == 1  # that of the output alone
        with storage.member(archive, "a") as inside:
            inside.write(column.read(0, column.size))
    assert [path.name for path in tmp_path.iterdir()] == ["x.zip"]
    with zipfile.ZipFile(tmp_path / "x.zip") as archive:
        assert archive.read("a") == b"firstlast"
        assert archive.infolist()[0].date_time == (1980, 1, 1, 0, 0, 0)
