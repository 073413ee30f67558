"""Bodies that are no bodies: too large, too deep, no JSON, no UTF-8, no numbers, and headers that are wrong."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from gemirec.serving import wire
from support_serving import Client

BAD: list[tuple[bytes, int]] = [
    (b"", 400),
    (b"{", 400),
    (b'{"history": ["item-1"]} more', 400),
    (b'{"history": ["\xff\xfe"]}', 400),
    (b'{"history": ["\\ud800"]}', 400),
    (b"\x00\x01\x02", 400),
    (b'{"lambda": NaN}', 400),
    (b'{"lambda": Infinity}', 400),
    (b'{"lambda": 1e999}', 422),
    (b'{"user_id": 1e3}', 422),
    (b'{"user_id": 9223372036854775808}', 422),
    (b'{"user_id": ' + b"9" * 10_000 + b"}", 422),
    (b"[" * 400_000, 422),
    (b'{"x":' * 100_000, 422),
    (b'{"history": ' + b"[" * 400_000, 422),
    (b"null", 422),
    (b'"\xf0\x9f\x8d\xb5"', 422),
    ('{"history": ["item-1"]}'.encode("utf-16"), 400),
]


@pytest.mark.parametrize(("body", "status"), BAD)
def test_a_body_that_cannot_be_read_is_refused_in_three_parts(reading: Client, body: bytes, status: int) -> None:
    for path in ("/recommend", "/events", "/reload"):
        answer = reading.post(path, content=body)
        assert answer.status_code in {400, 422}
        if path == "/recommend":
            assert answer.status_code == status
        assert len(msgspec.json.decode(answer.content, type=wire.ErrorBody).got) <= 1000


def test_a_body_is_read_no_further_than_the_limit(make_client: Callable[..., Client]) -> None:
    client = make_client(max_body=2000)
    fits = {"history": ["item-1"] * 150}
    assert client.post("/recommend", fits).status_code == 200
    assert client.post("/recommend", {"history": ["item-1"] * 200}).status_code == 413

    async def endless() -> Any:
        for _ in range(10_000):
            read.append(1)
            yield b'{"history": ['.ljust(500)

    read: list[int] = []  # no length is announced: it is found while reading
    headers = {"content-type": "application/json"}
    answer = client.run(lambda http: http.post("/recommend", content=endless(), headers=headers))
    assert (answer.status_code, answer.headers["connection"]) == (413, "close")
    assert len(read) <= 6


def test_a_body_that_does_not_come_is_not_waited_for(make_client: Callable[..., Client]) -> None:
    client = make_client(body_timeout_s=0.1)
    sent: list[dict[str, Any]] = []

    async def story() -> None:
        async def receive() -> dict[str, Any]:
            await asyncio.sleep(0.04)
            return {"type": "http.request", "body": b" ", "more_body": True}

        async def send(message: Any) -> None:
            sent.append(message)

        headers = [(b"host", b"localhost"), (b"content-type", b"application/json")]
        await client.app(
            {"type": "http", "method": "POST", "path": "/recommend", "query_string": b"", "headers": headers},
            receive,
            send,
        )

    asyncio.run(story())
    assert sent[0]["status"] == 408
    assert "time" in json.loads(sent[1]["body"])["error"]


def test_only_plain_json_is_taken(reading: Client) -> None:
    odd: list[dict[str, Any]] = [{"content_type": "text/plain"}, {"content_type": ""}, {"content_encoding": "gzip"}]
    for headers in odd:
        assert reading.post("/recommend", {}, **headers).status_code == 415
    assert reading.post("/recommend", {}, content_type="Application/JSON; charset=utf-8").status_code == 200


@pytest.mark.parametrize("value", ["soon", "0", "-3", "nan", ""])
def test_a_deadline_is_a_number_above_0(reading: Client, value: str) -> None:
    assert reading.post("/recommend", {}, x_deadline_ms=value).status_code == 400
    assert reading.post("/recommend", {}, x_deadline_ms="inf").status_code == 200
