"""The server answers whoever has the token, from this machine, and nothing else."""

import json
import re
import threading
from html import unescape

import pytest
from starlette.testclient import TestClient

from hnet_cli.errors import EnvironmentLimit, UsageError
from hnet_cli.play import server
from hnet_cli.play.server import HEADER, MOST_FILE, MOST_REQUEST, application, listen
from hnet_cli.play.session import Session

TOKEN = "a-token"
HOST = "127.0.0.1:8000"
KEY = {HEADER: TOKEN}


@pytest.fixture(scope="module")
def client():
    app = application(Session(["starter:text"]), TOKEN, {HOST}, text="</script><b>", beside=1)
    return TestClient(app, base_url=f"http://{HOST}")


def test_the_page_runs_its_own_scripts_only(client):
    answer = client.get("/", params={"token": TOKEN})
    assert answer.status_code == 200
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["x-frame-options"] == "DENY"
    (policy,) = re.findall('Content-Security-Policy" content="([^"]+)"', answer.text)
    assert "default-src 'none'" in policy
    assert policy.count("sha256-") == answer.text.count("<script>") == 3
    assert policy.endswith("connect-src 'self'")
    setup = json.loads(unescape(re.findall('data-setup="([^"]+)"', answer.text)[0]))
    assert (setup["text"], setup["b"], setup["models"][0]["name"]) == ("</script><b>", 1, "starter:text")
    assert "</script><b>" not in answer.text


def test_chunks_and_continuations(client):
    told = client.post("/chunks", json={"model": 0, "text": "The cat sat."}, headers=KEY).json()
    assert sum(map(int, told["lists"]["n"].split(","))) == 12
    wanted = {"model": 0, "text": "The cat", "max_bytes": 12, "seed": 1}
    answer = client.post("/continuation", json=wanted, headers=KEY)
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    assert 0 < len(answer.content) <= 12
    assert client.post("/file?model=0", content=b"Some words.", headers=KEY).json() == {
        "text": "Some words.",
        "more": False,
    }


@pytest.mark.parametrize(
    ("method", "path", "options", "status"),
    [
        ("GET", "/", {"headers": {"host": "evil.example:8000"}}, 403),
        ("GET", "/?token=another", {}, 403),
        ("GET", "/?token=%C3%A9", {}, 403),
        ("GET", f"/?token={TOKEN}", {"headers": {"host": "evil.example:8000"}}, 403),
        ("POST", "/chunks", {"json": {"model": 0, "text": "a"}}, 403),
        ("POST", f"/chunks?token={TOKEN}", {"json": {"model": 0, "text": "a"}}, 403),
        ("POST", "/chunks", {"json": {"model": 0, "text": "a"}, "headers": KEY | {"host": "localhost"}}, 403),
        ("POST", "/chunks", {"content": b"{", "headers": KEY}, 422),
        ("POST", "/chunks", {"content": b"[" * 10_000, "headers": KEY}, 422),
        ("POST", "/chunks", {"content": b"\xff\xfe", "headers": KEY}, 422),
        ("POST", "/chunks", {"content": b'{"model": 0, "text": "\\ud800"}', "headers": KEY}, 422),
        ("POST", "/chunks", {"json": {"model": 99, "text": "a"}, "headers": KEY}, 422),
        ("POST", "/chunks", {"content": b" " * (MOST_REQUEST + 1), "headers": KEY}, 413),
        ("POST", "/continuation", {"json": {"model": 0, "text": "a", "max_bytes": 0}, "headers": KEY}, 422),
        ("POST", "/file?model=0", {"content": b" " * (MOST_FILE + 1), "headers": KEY}, 413),
        ("POST", "/file?model=../a", {"content": b"a", "headers": KEY}, 422),
        ("POST", "/file?model=٣", {"content": b"a", "headers": KEY}, 422),
        ("POST", "/file", {"content": b"a", "headers": KEY}, 422),
        ("GET", "/chunks", {"headers": KEY}, 405),
        ("GET", "/../../etc/passwd", {"headers": KEY}, 404),
        ("GET", "/static/page.css", {"headers": KEY}, 404),
    ],
)
def test_everything_else_is_refused_in_a_line(client, method, path, options, status):
    answer = client.request(method, path, **options)
    assert answer.status_code == status, answer.text
    if status in (403, 413, 422):
        assert "\n" not in answer.json()["error"]
        assert len(answer.json()["error"]) < 400


def test_without_a_token_there_are_words_and_nothing_secret(client):
    answer = client.get("/")
    assert answer.status_code == 403
    assert "Open the address that <code>hnet play</code> has printed" in answer.text
    assert TOKEN not in answer.text


def test_a_fault_of_ours_is_said_in_the_terminal(client, monkeypatch, capsys):
    monkeypatch.setattr("hnet_cli.play.session._cut", lambda *_: 1 / 0)
    answer = client.post("/chunks", json={"model": 0, "text": "a"}, headers=KEY)
    assert (answer.status_code, "terminal" in answer.json()["error"]) == (500, True)
    assert "a bug of ours: ZeroDivisionError" in capsys.readouterr().err


def test_ports():
    with listen(0) as opened:
        assert opened.getsockname()[0] == "127.0.0.1"
        opened.listen()
        with pytest.raises(EnvironmentLimit, match="cannot be used"):
            listen(opened.getsockname()[1])
    with pytest.raises(UsageError, match="--port"):
        listen(1 << 16)


def test_requests_while_a_text_is_continued_are_answered(client):
    """The lock is free between two bytes; a continuation that nobody reads ends."""
    session = Session(["starter:text"])
    pieces = session.continued(server.ContinueRequest(model=0, text="The", max_bytes=500))
    assert next(pieces)
    answered = threading.Thread(target=session.cut, args=(server.CutRequest(model=0, text="The cat"),))
    answered.start()
    answered.join(timeout=60)
    assert not answered.is_alive()
    pieces.close()
