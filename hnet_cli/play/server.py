"""The local server of `hnet play`: one page and three requests, for whoever has its token, on this machine alone."""

from __future__ import annotations

import json
import secrets
import socket
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from typing import Any

import uvicorn
from pydantic import ValidationError
from starlette.applications import Starlette
from starlette.concurrency import iterate_in_threadpool, run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from hnet_cli.errors import EnvironmentLimit, HNetError, UsageError
from hnet_cli.pages.html import page
from hnet_cli.play.session import MOST_BYTES, MOST_FILE, ContinueRequest, CutRequest, Session
from hnet_cli.terminal import failures

HOST = "127.0.0.1"
MOST_REQUEST = 16 * MOST_BYTES
"""Bytes of a request in JSON, where a byte of text may take several."""
HEADER = "x-hnet-token"
HEADERS = {
    "cache-control": "no-store",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "cross-origin-resource-policy": "same-origin",
}


class Refusal(Exception):
    """A request that is not answered, with a status and a line."""

    def __init__(self, status: int, line: str) -> None:
        super().__init__(line)
        self.status = status


def application(session: Session, token: str, hosts: set[str], text: str = "", beside: int | None = None) -> Starlette:
    """The server's application.

    `text` stands in the page at first; `beside`: the second model by its place in the session's list. `hosts`: values
    of the header Host that are answered, so that no other site's name can stand for this machine.
    """

    def check(request: Request, given: str | None) -> None:
        if request.headers.get("host") not in hosts:
            raise Refusal(403, "this address is not served")
        if not secrets.compare_digest((given or "").encode(), token.encode()):
            raise Refusal(403, "open the address that `hnet play` has printed: it ends with a token")

    async def body(request: Request, most: int) -> bytes:
        check(request, request.headers.get(HEADER))
        read = bytearray()
        async for part in request.stream():
            read += part
            if len(read) > most:
                raise Refusal(413, f"this is more than {most:,} bytes")
        return bytes(read)

    async def home(request: Request) -> Response:
        given = request.query_params.get("token")
        if given is None and request.headers.get("host") in hosts:
            return HTMLResponse(page("reopen.html"), 403)
        check(request, given)
        setup = {"models": session.offered(), "a": 0, "b": beside, "most": MOST_BYTES, "token": token}
        return HTMLResponse(page("play.html", setup=json.dumps(setup | {"text": text})))

    async def chunks(request: Request) -> Response:
        wanted = CutRequest.model_validate_json(await body(request, MOST_REQUEST))
        return JSONResponse(await run_in_threadpool(session.cut, wanted))

    async def continuation(request: Request) -> Response:
        wanted = ContinueRequest.model_validate_json(await body(request, MOST_REQUEST))
        pieces = session.continued(wanted)
        first = await run_in_threadpool(next, pieces, "")  # what is wrong shows before the answer has begun

        def rest() -> Iterator[str]:
            yield first
            try:
                yield from pieces
            except Exception as error:  # the answer has begun, so that it can only end
                failures.report(error)

        return StreamingResponse(iterate_in_threadpool(rest()), media_type="text/plain; charset=utf-8")

    async def file(request: Request) -> Response:
        data = await body(request, MOST_FILE)
        number = request.query_params.get("model", "")
        if not (number.isascii() and number.isdecimal() and len(number) < 6):
            raise Refusal(422, "no model is named")
        read, more = await run_in_threadpool(session.text_of, int(number), data)
        return JSONResponse({"text": read, "more": more})

    def guarded(answer: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
        async def answered(request: Request) -> Response:
            try:
                response = await answer(request)
            except Refusal as error:
                response = _error(error.status, str(error))
            except ValidationError as error:
                first = error.errors(include_url=False, include_context=False, include_input=False)[0]
                response = _error(422, f"{'.'.join(map(str, first['loc']))}: {first['msg']}"[:300])
            except HNetError as error:
                response = _error(422, f"{error}{f' ({error.hint})' if error.hint else ''}"[:1000])
            except ClientDisconnect:
                response = Response(status_code=400)
            except Exception as error:
                failures.report(error)
                response = _error(500, "this failed; the terminal of `hnet play` says why")
            response.headers.update(HEADERS)
            return response

        return answered

    return Starlette(
        routes=[
            Route("/", guarded(home), methods=["GET"]),
            Route("/chunks", guarded(chunks), methods=["POST"]),
            Route("/continuation", guarded(continuation), methods=["POST"]),
            Route("/file", guarded(file), methods=["POST"]),
        ]
    )


def _error(status: int, line: str) -> Response:
    return JSONResponse({"error": line}, status)


def listen(port: int) -> socket.socket:
    """A socket of this machine alone; port 0: any that is free. Raises UsageError, EnvironmentLimit."""
    if not 0 <= port < 1 << 16:
        raise UsageError(f"--port must be 0 to 65535, not {port}")
    opened = socket.socket()
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        opened.bind((HOST, port))
    except OSError as error:
        opened.close()
        raise EnvironmentLimit(f"port {port} cannot be used: {error.strerror}", "another --port, or none") from error
    return opened


def serve(session: Session, opened: socket.socket, text: str, beside: int | None, ready: Callable[[str], Any]) -> None:
    """Serve until Ctrl-C, which ends it at once and without an error. `ready` gets the page's address; the rest as in
    `application`."""
    token, port = secrets.token_urlsafe(16), opened.getsockname()[1]
    hosts = {f"{name}:{port}" for name in (HOST, "localhost")}
    config = uvicorn.Config(
        application(session, token, hosts, text, beside),
        log_level="critical",
        access_log=False,
        lifespan="off",
        server_header=False,
        timeout_graceful_shutdown=1,
        limit_concurrency=64,
    )
    server = uvicorn.Server(config)
    opened.listen()
    ready(f"http://{HOST}:{port}/?token={token}")
    with suppress(KeyboardInterrupt):
        server.run(sockets=[opened])
