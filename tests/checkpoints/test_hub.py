"""Models of the Hub, from a server on this machine that speaks its protocol."""

import base64
import hashlib
import json
import shutil
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from convertkit import CONFIG, same, weights

import hnet_cli
from hnet_cli.checkpoints import hub
from hnet_cli.checkpoints.find import find
from hnet_cli.errors import EnvironmentLimit, InputError, UsageError

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(BaseHTTPRequestHandler):
    """One repository, `me/model`, with one commit."""

    files: ClassVar[dict[str, bytes]] = {}
    asked: ClassVar[list[str]] = []

    def do_HEAD(self):
        self.answer(False)

    def do_GET(self):
        self.answer(True)

    def do_POST(self):
        """What an upload of small files asks for; the last is the commit, a JSON line a file."""
        path, body = self.path.partition("?")[0], self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.headers.get("Authorization") != "Bearer secret":
            told, status = {"error": "no"}, 401
        elif path == "/api/repos/create":
            told, status = {"url": f"http://{self.headers['Host']}/me/model"}, 200
        elif path == "/api/models/me/model/preupload/main":
            wanted = json.loads(body)["files"]
            files = [{"path": each["path"], "uploadMode": "regular", "shouldIgnore": False} for each in wanted]
            told, status = {"files": files}, 200
        else:
            assert path == "/api/models/me/model/commit/main"
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            told, status = {"commitUrl": f"http://{self.headers['Host']}/me/model", "commitOid": COMMIT}, 200
        answer = json.dumps(told).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def answer(self, whole):
        path = self.path.partition("?")[0]
        self.asked.append(path)
        place, _, name = path.partition(f"/resolve/{COMMIT}/")
        if path == f"/api/models/me/model/tree/{COMMIT}":
            told = [{"type": "file", "oid": "0" * 40, "size": len(d), "path": n} for n, d in self.files.items()]
            body, kind = json.dumps(told).encode(), "application/json"
        elif path.removeprefix("/api/models/me/model").removeprefix("/revision") in ("", "/main", "/v1", f"/{COMMIT}"):
            about = {"id": "me/model", "sha": COMMIT, "siblings": [{"rfilename": name} for name in self.files]}
            body, kind = json.dumps(about).encode(), "application/json"
        elif place == "/me/model" and name in self.files:
            body, kind = self.files[name], "application/octet-stream"
        else:
            missing = "RevisionNotFound" if path.startswith("/api/models/me/model") else "RepoNotFound"
            self.send_response(404)
            self.send_header("X-Error-Code", missing)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if whole:
            self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def serve(tmp_path, monkeypatch):
    """A function that puts files on the Hub."""
    constants = pytest.importorskip("huggingface_hub.constants")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_address[1]}"
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.utils._cache_assets.HF_ASSETS_CACHE", str(tmp_path / "assets"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)

    def put(files):
        monkeypatch.setattr(Hub, "files", files)
        monkeypatch.setattr(Hub, "asked", [])

    yield put
    server.shutdown()
    server.server_close()


def files_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_a_model_folder_of_ours(serve, trained):
    serve(files_of(find(trained)) | {"README.md": b"# A model", "pickle.pkl": b"cos\nsystem\n(S'touch pwned'\ntR."})
    model = hnet_cli.load("hf:me/model")
    assert model.label == "hf:me/model"
    assert model.segment(b"The quick brown fox") == hnet_cli.load(trained).segment(b"The quick brown fox")
    assert not [path for path in Hub.asked if path.endswith((".pkl", ".md"))]
    assert hub.fetched(f"hf:me/model@{COMMIT}").name == COMMIT
    assert hub.fetched("hf:me/model@v1").name == COMMIT


def test_an_official_release_is_converted_once(serve, tmp_path):
    released = weights()
    torch.save(released, tmp_path / "hnet.pt")
    serve({"hnet.pt": (tmp_path / "hnet.pt").read_bytes(), "config.json": json.dumps(CONFIG).encode()})
    model = hnet_cli.load("hf:me/model")
    assert model.label == "hf:me/model"
    assert same(model.state_dict(), released)
    written = (model.source / "model.safetensors").stat().st_mtime_ns
    assert (hnet_cli.load("hf:me/model").source / "model.safetensors").stat().st_mtime_ns == written


def test_a_folder_that_is_not_in_the_cache_has_its_own_name():
    for path in ("/home/me/hnet/runs/x/model", "/home/me/hnet/me--model/x/model", "model", "/snapshots/model"):
        assert hub.label(Path(path)) is None, path


def test_without_a_network_the_cache_serves(serve, trained, monkeypatch):
    serve(files_of(find(trained)))
    folder = hub.fetched("hf:me/model")
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:1")
    assert hub.fetched("hf:me/model") == folder
    shutil.rmtree(folder.parents[2])
    with pytest.raises(EnvironmentLimit, match="the Hub fails"):
        hub.fetched("hf:me/model")


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("hf:model", UsageError, "no model of the Hub"),
        ("hf:../../etc/passwd", UsageError, "no model of the Hub"),
        ("hf:me/model@", UsageError, "no model of the Hub"),
        ("hf:me/model\n", UsageError, "no model of the Hub"),
        ("hf:me/other", InputError, "the Hub has no hf:me/other"),
        ("hf:me/model@v2", InputError, "the Hub has no hf:me/model@v2"),
        ("hf:me/model", InputError, "holds no H-Net"),
    ],
)
def test_what_is_not_there(serve, name, error, message):
    serve({"README.md": b"# Nothing"})
    with pytest.raises(error, match=message):
        hub.fetched(name)


def test_a_folder_is_sent_and_comes_back(serve, trained, monkeypatch):
    serve({})
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", "/nowhere")
    folder = find(trained)
    monkeypatch.setenv("HF_TOKEN", "wrong")
    with pytest.raises(InputError, match="the Hub refuses"):
        hub.sent(folder, "hf:me/model")
    monkeypatch.setenv("HF_TOKEN", "secret")
    assert hub.sent(folder, "hf:me/model").endswith("/me/model")
    assert hnet_cli.load("hf:me/model").segment(b"The quick") == hnet_cli.load(trained).segment(b"The quick")
    for name in ("hf:me/model@v1", "me/model"):
        with pytest.raises(UsageError):
            hub.sent(folder, name)
