"""Whatever is sent, the server answers with what its description allows, and never with a fault of its own.

Requests are made from the OpenAPI description (such as follow it, and such as break it), and from any JSON and any
bytes. Some hundreds by default; over 10,000 with ``-m slow``.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable

from gemirec.serving.routes import ROUTES
from support_serving import Client

schemathesis = pytest.importorskip("schemathesis")
uvicorn = pytest.importorskip("uvicorn")

from schemathesis.checks import not_a_server_error  # noqa: E402 - behind the question whether it is here
from schemathesis.specs.openapi import checks as of_openapi  # noqa: E402

CHECKS = [
    not_a_server_error,
    of_openapi.status_code_conformance,
    of_openapi.content_type_conformance,
    of_openapi.response_headers_conformance,
    of_openapi.response_schema_conformance,
    of_openapi.allow_header_conformance,
]

POSTS = [route.path for route in ROUTES if route.method == "POST"]
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.just("item-1"),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
FIELDS = ["user_id", "history", "k", "lambda", "quota", "allow", "items", "item_ids", "events", "requests", "artifact"]
BODIES = (
    st.dictionaries(st.sampled_from(FIELDS), JSON_VALUES, max_size=4).map(lambda value: json.dumps(value).encode())
    | JSON_VALUES.map(lambda value: json.dumps(value).encode())
    | st.binary(max_size=200)
)


def quiet(count: int) -> settings:
    """So many examples, the same every time, none kept."""
    checks = list(HealthCheck)
    return settings(
        max_examples=count, database=None, derandomize=True, phases=[Phase.generate], suppress_health_check=checks
    )


@pytest.fixture(scope="module")
def url(artifact: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server on a thread of this process, in no hurry."""
    client = Client(artifact, tmp_path_factory.mktemp("fuzz") / "events.sqlite", deadline_ms=60_000)
    server = uvicorn.Server(uvicorn.Config(client.app, log_level="error", http="httptools", ws="none"))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        while not server.started:
            time.sleep(0.01)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        server.should_exit = True
        thread.join()


def patient(headers: dict[str, Any]) -> dict[str, Any]:
    """Return headers without a deadline that can pass: 504 would be the right answer to it."""
    with contextlib.suppress(ValueError, TypeError):
        if float(headers.get("X-Deadline-Ms", "none")) > 0:
            return {**headers, "X-Deadline-Ms": "60000"}
    return headers


def from_description(url: str, each: int) -> int:
    """Send ``each`` requests to every operation, half of them against the rules; return how many were sent."""
    sent = 0
    schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
    for found in schema.get_all_operations():
        for mode in (schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE):

            @quiet(each // 2)
            @given(case=found.ok().as_strategy(generation_mode=mode))
            def ask(case: Any) -> None:
                nonlocal sent
                sent += 1
                case.headers = patient(dict(case.headers or {}))
                case.call_and_validate(checks=CHECKS)

            with contextlib.suppress(Unsatisfiable):  # a route without a body has nothing to break
                ask()
    return sent


def from_nothing(url: str, count: int) -> set[int]:
    """Send any JSON and any bytes to the routes that take a body; return the statuses of the answers."""
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=60)
    seen = set()

    @quiet(count)
    @given(path=st.sampled_from(POSTS), body=BODIES)
    def ask(path: str, body: bytes) -> None:
        connection.request("POST", path, body, {"content-type": "application/json"})
        answer = connection.getresponse()
        json.loads(answer.read())
        seen.add(answer.status)

    ask()
    connection.close()
    return seen


def test_some_requests_made_from_the_description(url: str) -> None:
    assert from_description(url, 10) >= 75


def test_some_requests_made_from_nothing(url: str) -> None:
    assert from_nothing(url, 200) <= {200, 400, 422}


@pytest.mark.slow
def test_ten_thousand_requests(url: str) -> None:
    assert from_description(url, 800) >= 6000
    assert from_nothing(url, 5000) <= {200, 400, 409, 422}
