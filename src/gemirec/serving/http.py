"""What every route needs of HTTP: errors as JSON with a status, bodies with limits, answers.

Plain ASGI: three frameworks were measured on the real shape of a request (``benchmarks/serve_frameworks.py``), and none
does anything for this server that msgspec and these few functions do not.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass, field
from typing import Any, TypeVar
from urllib.parse import parse_qsl

import msgspec

from gemirec.errors import (
    ArtifactError,
    ConfigError,
    DataError,
    GemirecError,
    MissingExtraError,
    RetrievalError,
    StorageError,
)
from gemirec.serving.wire import ErrorBody

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
BodyT = TypeVar("BodyT")

encode = msgspec.json.Encoder().encode
JSON = "application/json"
_STATUS: dict[type[GemirecError], int] = {
    DataError: 422,
    ConfigError: 422,
    ArtifactError: 422,
    MissingExtraError: 501,
    StorageError: 503,
    RetrievalError: 503,
}


class HttpError(GemirecError):
    """An error with a status of its own.

    Args:
        status: HTTP status code.
        what: What is wrong.
        got: The offending thing.
        fix: What to do.
        headers: Further headers of the answer.
    """

    def __init__(self, status: int, what: str, *, got: object, fix: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(what, got=got, fix=fix)
        self.status = status
        self.headers = headers or {}


class ClientGone(Exception):  # noqa: N818 - an event, not a fault
    """The client hung up: nobody is left to answer."""


@dataclass(frozen=True)
class Response:
    """An answer before it is sent."""

    body: bytes
    status: int = 200
    content_type: str = JSON
    headers: dict[str, str] = field(default_factory=dict)


def failure(error: GemirecError) -> Response:
    """Return an error as an answer: its three parts, with the status that fits.

    Example:
        >>> failure(DataError("no such item", got="9", fix="ask for another")).status
        422
        >>> failure(HttpError(404, "no such path", got="/x", fix="see /openapi.json")).body
        b'{"error":"no such path","got":"/x","fix":"see /openapi.json"}'
    """
    status, headers = next((code for kind, code in _STATUS.items() if isinstance(error, kind)), 500), {}
    if isinstance(error, HttpError):
        status, headers = error.status, error.headers
    body = encode(ErrorBody(error=error.what, got=error.got[:1000], fix=error.fix))
    return Response(body, status, headers=dict(headers))


def header(scope: Scope, name: bytes) -> str | None:
    """Return a header of the request, the first if there are several; ``name`` in lower case."""
    return next((value.decode("latin-1") for key, value in scope["headers"] if key == name), None)


async def read_body(scope: Scope, receive: Receive, most: int, timeout_s: float) -> bytes:
    """Return the body of a request, reading no more than ``most`` bytes.

    Raises:
        HttpError: It is larger (413), comes too slowly (408), or is not plain JSON by its headers (415).
        ClientGone: The client hung up.
    """
    _check_headers(scope, most)
    parts, size = [], 0
    try:
        async with asyncio.timeout(timeout_s):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ClientGone
                size += len(message.get("body", b""))
                if size > most:
                    raise _too_large(f"more than {most} bytes", most)
                parts.append(message.get("body", b""))
                if not message.get("more_body", False):
                    return b"".join(parts)
    except TimeoutError:
        raise HttpError(
            408,
            "the body did not arrive in time",
            got=f"{size} bytes in {timeout_s:g} s",
            fix="send the whole body at once",
            headers={"connection": "close"},
        ) from None


def _check_headers(scope: Scope, most: int) -> None:
    """Refuse a body by what its headers say of it."""
    length = header(scope, b"content-length")
    if length is not None and length.isdigit() and int(length[:20]) > most:
        raise _too_large(f"{length[:20]} bytes", most)
    kind = (header(scope, b"content-type") or "").partition(";")[0].strip().lower()
    coding = (header(scope, b"content-encoding") or "identity").strip().lower()
    if kind != JSON or coding != "identity":
        raise HttpError(
            415,
            "the body must be JSON as it is",
            got=f"content-type {kind or 'missing'}, content-encoding {coding}",
            fix="send the header Content-Type: application/json, without compression",
            headers={"connection": "close"},
        )


def _too_large(got: str, most: int) -> HttpError:
    # The rest of the body is not read: the connection cannot serve another request.
    return HttpError(
        413,
        "the body is too large",
        got=got,
        fix=f"send at most {most} bytes, in several requests if need be",
        headers={"connection": "close"},
    )


def decoded(decoder: msgspec.json.Decoder[BodyT], body: bytes) -> BodyT:
    """Return a body as its struct.

    Raises:
        HttpError: It is not JSON in UTF-8 (400), or its fields or values are wrong (422).

    Example:
        >>> from gemirec.serving.wire import SimilarRequest
        >>> decoded(msgspec.json.Decoder(SimilarRequest), b'{"item_ids": [NaN]}')
        Traceback (most recent call last):
        gemirec.serving.http.HttpError: the body is not JSON
          got: JSON is malformed: invalid character (byte 14)
          fix: send one JSON object in UTF-8, as in /openapi.json
    """
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        message, _, path = str(error).partition(" - at `$")
        raise HttpError(
            422,
            "the body does not fit",
            got=f"{path.rstrip('`').lstrip('.') or 'body'}: {message}",
            fix="correct the field; /openapi.json says what each takes",
        ) from None
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        fix = "send one JSON object in UTF-8, as in /openapi.json"
        raise HttpError(400, "the body is not JSON", got=error, fix=fix) from None


def decoded_query(kind: type[BodyT], scope: Scope) -> BodyT:
    """Return the query of a request as its struct; numbers are read from their digits.

    Raises:
        HttpError: A field or value is wrong (422).

    Example:
        >>> from gemirec.serving.wire_explorer import MapQuery
        >>> decoded_query(MapQuery, {"query_string": b"count=20&variant=B"})
        MapQuery(variant='B', count=20)
    """
    try:
        given = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True, max_num_fields=20)
        return msgspec.convert(dict(given), kind, strict=False)
    except ValueError as error:  # msgspec's are ValueErrors, too
        fix = "correct the query; /openapi.json says what it takes"
        raise HttpError(422, "the query does not fit", got=error, fix=fix) from None


async def respond(send: Send, response: Response, timeout_s: float) -> None:
    """Send an answer.

    Raises:
        TimeoutError: The client does not read.
    """
    headers = {"content-type": response.content_type, "content-length": str(len(response.body)), **response.headers}
    raw = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
    async with asyncio.timeout(timeout_s):
        await send({"type": "http.response.start", "status": response.status, "headers": raw})
        await send({"type": "http.response.body", "body": response.body})
