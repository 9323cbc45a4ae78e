"""Inputs behind URLs: streamed from a server of our own, which may break, and from fsspec's memory."""

from __future__ import annotations

import contextlib
import gzip
import http.server
import io
import json
import socketserver
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import fsspec
import pytest
import zstandard
from corpuskit import Lines, stored, text

from hnet_cli import modality
from hnet_cli.data.dataset import Dataset
from hnet_cli.data.prepare import remote
from hnet_cli.data.prepare.detection import detect
from hnet_cli.data.prepare.preparation import prepare
from hnet_cli.errors import EnvironmentLimit, InputError, StorageError


class Server(http.server.SimpleHTTPRequestHandler):
    """Serves a folder; may break off after so many bytes, so many times, with or without support for ranges."""

    breaks: list[int] = []  # noqa: RUF012
    ranges = True
    asked: list[str] = []  # noqa: RUF012

    def log_message(self, *arguments: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._send(body=False)

    def do_GET(self) -> None:
        self._send(body=True)

    def _send(self, body: bool) -> None:
        path = Path(self.translate_path(self.path))
        self.asked.append(f"{self.command} {self.path} {self.headers.get('Range', '')}")
        if "secret" in self.path or not path.is_file():
            self.send_error(403 if "secret" in self.path else 404)
            return
        data = path.read_bytes()
        size, wanted = len(data), self.headers.get("Range")
        if self.ranges and wanted:
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            data = data[int(first) : int(last or size) + 1]
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{int(first) + len(data) - 1}/{size}")
        else:
            self.send_response(200)
        if self.ranges:
            self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if body:
            if self.breaks:
                data = data[: self.breaks.pop()]
                self.close_connection = True
            self.wfile.write(data)


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Path, str]]:
    """A folder and the URL it is served at."""
    monkeypatch.setattr(remote, "PAUSE", 0.001)
    monkeypatch.setattr(Server, "breaks", [])
    monkeypatch.setattr(Server, "asked", [])
    folder = tmp_path / "served"
    folder.mkdir()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Server, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield folder, f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
    thread.join()


def rows(seed: int) -> bytes:
    """JSON lines as in the Pile."""
    lines = [{"text": text(seed + n).decode(), "meta": {"pile_set_name": "Pile-CC"}} for n in range(30)]
    return "".join(json.dumps(line) + "\n" for line in lines).encode()


@pytest.mark.parametrize("ranges", [True, False])
def test_compressed_rows_over_http(
    ranges: bool, served: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same documents as from the file; nothing of the URL that may be secret is written down."""
    folder, url = served
    monkeypatch.setattr(Server, "ranges", ranges)
    (folder / "x.jsonl.zst").write_bytes(zstandard.compress(rows(1)))
    address = f"{url.replace('//', '//me:password@')}/x.jsonl.zst?token=hidden"
    for number, given in enumerate((folder / "x.jsonl.zst", f"{url}/x.jsonl.zst", address)):
        prepare([given], modality.get("text"), tmp_path / f"out{number}", measure=False)
    local, plain, signed = (Dataset.open(tmp_path / f"out{number}") for number in range(3))
    assert stored(local) == stored(plain) == stored(signed)
    assert {**plain.about["sources"][0], "name": ""} == {**local.about["sources"][0], "name": ""}
    assert plain.about["sources"] == signed.about["sources"]
    assert "hidden" not in (tmp_path / "out2" / "dataset.json").read_text()
    assert "password" not in (tmp_path / "out2" / "dataset.json").read_text()
    assert detect([f"{url}/x.jsonl.zst"])[0] == "text"


@pytest.mark.parametrize("ranges", [True, False])
def test_a_broken_connection_is_taken_up_where_it_broke(
    ranges: bool, served: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, url = served
    monkeypatch.setattr(Server, "ranges", ranges)
    monkeypatch.setattr(remote, "REQUEST_BYTES", 50_000)
    data = text(7, 300_000)
    (folder / "x.txt").write_bytes(data)
    Server.breaks = [20_000, 120_000, 1]
    prepare([f"{url}/x.txt"], Lines(), tmp_path / "out", measure=False)
    assert stored(Dataset.open(tmp_path / "out")) == data
    assert not Server.breaks
    Server.breaks = [7] * 50
    with pytest.raises(StorageError, match=r"cannot read http.*x\.txt: "):
        prepare([f"{url}/x.txt"], Lines(), tmp_path / "out2", measure=False)
    assert 50 - len(Server.breaks) <= 2 * remote.ATTEMPTS * (300_000 // 50_000)


def test_what_is_not_there_is_one_clear_line(served: tuple[Path, str], tmp_path: Path) -> None:
    folder, url = served
    (folder / "cut.gz").write_bytes(gzip.compress(text(1))[:-9])
    for address, kind, why in (
        (f"{url}/none.txt", InputError, r"none\.txt does not exist"),
        (f"{url}/secret.txt?key=hidden", InputError, r"secret\.txt is not readable: permission denied"),
        (f"{url}/cut.gz", InputError, r"cut\.gz is truncated"),
        ("http://127.0.0.1:9/x.txt", StorageError, "cannot read http://127.0.0.1:9/x.txt"),
        ("gopher://a/b.txt", InputError, "gopher://a/b.txt cannot be read: .*rotocol"),
        ("memory://none/*.txt", InputError, "memory://none/.*matches nothing"),
    ):
        with pytest.raises(kind, match=why) as caught:
            prepare([address], Lines(), tmp_path / "out", measure=False)
        assert "hidden" not in str(caught.value) + caught.value.hint  # type: ignore[attr-defined]
        assert "\n" not in str(caught.value)
    for protocol in ("s3", "gs"):
        try:
            fsspec.get_filesystem_class(protocol)
        except ImportError:
            with pytest.raises(EnvironmentLimit, match=protocol):
                prepare([f"{protocol}://bucket/x.txt"], Lines(), tmp_path / "out", measure=False)
    assert [path.name for path in tmp_path.iterdir()] == ["served"]


def test_patterns_and_parquet_in_memory(tmp_path: Path) -> None:
    """memory:// stands for any file system of fsspec."""
    import pyarrow
    from pyarrow import parquet

    system = fsspec.filesystem("memory")
    for number in range(3):
        system.pipe(f"/corpus/{number}.txt.gz", gzip.compress(text(number)))
    table = pyarrow.table({"text": [text(9).decode()], "id": ["<urn:uuid:1>"]})
    with system.open("/corpus/rows.parquet", "wb") as file:
        parquet.write_table(table, file)
    prepare(["memory://corpus/*"], Lines(), tmp_path / "out", measure=False, workers=1)
    assert stored(Dataset.open(tmp_path / "out")) == text(0) + text(1) + text(2) + text(9)
    assert [source["name"] for source in Dataset.open(tmp_path / "out").about["sources"]] == [
        *(f"memory:///corpus/{n}.txt.gz" for n in range(3)),
        "memory:///corpus/rows.parquet",
    ]


class Unwilling(socketserver.BaseRequestHandler):
    """Takes a connection, and then answers in its own way until the test is over."""

    over = threading.Event()
    head = b""
    every = 0.0
    """Seconds between two bytes; 0: not one more."""

    def handle(self) -> None:
        with contextlib.suppress(OSError):
            self.request.recv(1 << 16)
            self.request.sendall(self.head)
            while not self.over.wait(self.every or 60):
                self.request.sendall(b"x" if self.every else b"")


@pytest.mark.slow
@pytest.mark.parametrize("head", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 99999999\r\n\r\n"], ids=["silent", "body"])
@pytest.mark.parametrize("every", [0.0, 0.01], ids=["nothing", "drips"])
@pytest.mark.parametrize("name", ["x.txt", "x.parquet", "x.jsonl.gz"])
def test_a_server_that_never_answers_is_given_up(
    head: bytes, every: float, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or that drips, though a byte comes again and again."""
    monkeypatch.setattr(remote, "PAUSE", 0.001)
    monkeypatch.setattr(remote, "PATIENCE", 0.1)
    monkeypatch.setattr(Unwilling, "over", threading.Event())
    monkeypatch.setattr(Unwilling, "head", head)
    monkeypatch.setattr(Unwilling, "every", every)
    server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Unwilling)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        with pytest.raises((StorageError, InputError), match=r"cannot read|does not answer|seconds"):
            prepare([f"http://127.0.0.1:{server.server_address[1]}/{name}"], Lines(), tmp_path / "out")
    finally:
        Unwilling.over.set()
        server.shutdown()
        server.server_close()
        thread.join()


def test_a_late_thread_changes_nothing() -> None:
    """Files opened, and failures, belong to an earlier attempt."""

    class Late(remote._RemoteStream):
        def _open(self) -> tuple[Any, int]:
            self._on_late()
            return io.BytesIO(b"stale"), 0

    stream = Late("memory://x", "x", 5)
    with pytest.raises(TimeoutError):
        stream._read(5, 0)
    assert stream._file is None
