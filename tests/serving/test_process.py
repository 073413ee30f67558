"""The server as an operator has it: a process that is killed, told to stop, and plagued by slow clients."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import resource
import shutil
import socket
import ssl
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from gemirec.serving.events import read_events
from support_cli import gemirec
from support_serving import Server, serving

pytest.importorskip("uvicorn")


def test_no_acknowledged_event_is_lost_when_the_server_is_killed(
    artifact: Path, other_artifact: Path, tmp_path: Path
) -> None:
    events = tmp_path / "events.sqlite"
    acknowledged: list[str] = []
    with serving(artifact, "--events", events) as server:
        threads = [threading.Thread(target=write, args=(server, who, acknowledged)) for who in range(4)]
        for thread in threads:
            thread.start()
        while len(acknowledged) < 100:
            time.sleep(0.005)
        reload = threading.Thread(target=quietly_reload, args=(server, other_artifact))
        reload.start()
        time.sleep(0.02)
        server.kill()  # events are being written, and another artifact is being loaded
        for thread in [*threads, reload]:
            thread.join(20)
    stored = read_events(events)["event_id"].to_list()
    assert set(acknowledged) <= set(stored)
    assert len(stored) == len(set(stored))
    with serving(artifact, "--events", events) as server:  # and it starts again, with what it knew
        answer = httpx.post(f"{server.url}/recommend", json={"user_id": "writer-0"}).json()
        assert answer["source"] == "model"
        last = httpx.post(f"{server.url}/events", json={"events": [{"user_id": 1, "item_id": 2}]}).json()["last"]
        assert last == len(stored) + 1


def write(server: Server, who: int, acknowledged: list[str]) -> None:
    """Send events until the server is gone; note those that it acknowledged."""
    with httpx.Client() as client, contextlib.suppress(httpx.HTTPError):
        for number in range(100_000):
            name = f"{who}-{number}"
            events = [{"user_id": f"writer-{who}", "item_id": f"item-{number % 120 + 1}", "event_id": name}]
            answer = client.post(f"{server.url}/events", json={"events": events})
            assert answer.status_code == 200
            acknowledged.append(name)


def quietly_reload(server: Server, path: Path) -> None:
    with contextlib.suppress(httpx.HTTPError):
        httpx.post(f"{server.url}/reload", json={"artifact": str(path)}, timeout=20)


def test_told_to_stop_it_answers_what_it_took_on(artifact: Path, tmp_path: Path) -> None:
    """Behind TLS and with keys of the environment, on all addresses, as a server stands in the world."""
    cert, key = certificate(tmp_path)
    keys = "keys: [{name: shop, key: a-key-of-the-environment, scopes: [read, events]}]"
    flags: list[str | Path] = [
        "--tls-cert",
        cert,
        "--tls-key",
        key,
        "--events",
        tmp_path / "e.sqlite",
        "--host",
        "0.0.0.0",
    ]
    # A batch waits 3 s for company, so that all requests are in flight when the signal comes.
    with serving(
        artifact, *flags, "--set", "batch_wait_ms=3000", "--set", "deadline_ms=30000", GEMIREC_API_KEYS=keys
    ) as server:
        assert server.url.startswith("https://")
        url, headers = f"https://127.0.0.1:{server.port}", {"x-api-key": "a-key-of-the-environment"}
        context = ssl.create_default_context(cafile=str(cert))

        async def story() -> list[Any]:
            async with httpx.AsyncClient(base_url=url, timeout=30, verify=context) as client:
                assert (await client.post("/recommend", json={})).status_code == 401
                client.headers.update(headers)
                asks = [asyncio.create_task(client.post("/recommend", json={})) for _ in range(8)]
                event = {"user_id": 1, "item_id": "item-1"}
                asks += [asyncio.create_task(client.post("/events", json={"events": [event]}))]
                deadline = time.monotonic() + 20
                while "gemirec_queue_users 8.0" not in (await client.get("/metrics")).text:
                    assert time.monotonic() < deadline
                    await asyncio.sleep(0.01)
                server.process.terminate()
                return await asyncio.gather(*asks)

        assert [answer.status_code for answer in asyncio.run(story())] == [200] * 9
        assert server.process.wait(30) == 0
        with pytest.raises(OSError, match="refused"):
            socket.create_connection(("127.0.0.1", server.port))
    assert read_events(tmp_path / "e.sqlite").height == 1


def certificate(folder: Path) -> tuple[Path, Path]:
    """Make a certificate of this machine and its key."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not here")
    cert, key = folder / "cert.pem", folder / "key.pem"
    make = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=localhost"]
    files = ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(cert)]
    subprocess.run([*make, *files], check=True, capture_output=True)
    return cert, key


@pytest.fixture(scope="module")
def server(artifact: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A server that gives clients half a second."""
    events = tmp_path_factory.mktemp("process") / "e.sqlite"
    with serving(artifact, "--events", events, "--set", "body_timeout_s=0.5") as server:
        yield server
        assert server.stop() == 0


HEAD = b"POST /recommend HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"", b""),
        (b"POST /recom", b""),
        (HEAD + b"x-slow: ", b""),
        (HEAD + b"content-length: 20\r\n\r\n{", b"408"),
        (HEAD + b"transfer-encoding: chunked\r\n\r\n1\r\n{\r\n", b"408"),
        (HEAD + b"x: " + b"y" * 100_000, b"431"),
        (HEAD + b"content-length: 999999999\r\n\r\n", b"413"),
        (b"\x16\x03\x01\x02\x00 nonsense\r\n\r\n", b"400"),
    ],
    ids=["silent", "half a line", "half a head", "half a body", "half a chunk", "endless head", "huge", "nonsense"],
)
def test_slow_and_endless_clients_lose_the_connection(server: Server, sent: bytes, status: bytes) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as client:
        client.sendall(sent)
        start, got = time.monotonic(), b""
        with contextlib.suppress(ConnectionError):
            while part := client.recv(65_536):
                got += part
        assert time.monotonic() - start < 5
        assert got[9:12] == status
    assert httpx.get(f"{server.url}/healthz").status_code == 200


def test_a_connection_serves_one_request_after_another(server: Server) -> None:
    client = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    body = json.dumps({"history": ["item-1"]})
    for _ in range(3):
        for path, sent, status in (("/recommend", body, 200), ("/recommend", "{", 400), ("/nowhere", body, 404)):
            client.request("POST", path, sent, {"content-type": "application/json"})
            answer = client.getresponse()
            answer.read()
            assert answer.status == status
        time.sleep(0.6)  # an idle connection is not a slow one
    client.close()


def test_a_client_that_takes_no_answer_does_not_hold_the_server(server: Server) -> None:
    body = json.dumps({"history": ["item-1"], "k": 1000, "per_interest": 1000}).encode()
    ask = HEAD + b"content-length: %d\r\n\r\n" % len(body) + body
    greedy = socket.socket()
    greedy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    greedy.connect(("127.0.0.1", server.port))
    greedy.settimeout(5)
    with contextlib.suppress(OSError):
        for _ in range(400):
            greedy.sendall(ask)
    assert httpx.post(f"{server.url}/recommend", json={}, timeout=10).status_code == 200
    greedy.close()


@pytest.mark.slow
def test_a_thousand_connections_at_once(server: Server) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 2500:
        pytest.skip(f"this machine allows {hard} open files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2500), hard))
    body = json.dumps({"user_id": "user-7", "k": 5}).encode()
    ask = HEAD + b"x-deadline-ms: 60000\r\ncontent-length: %d\r\n\r\n" % len(body) + body
    first = b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n"
    gate: asyncio.Event
    some: asyncio.Semaphore

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, sent: bytes) -> bytes:
        writer.write(sent)
        head = await reader.readuntil(b"\r\n\r\n")
        await reader.readexactly(int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]))
        return head[9:12]

    async def one() -> bytes:
        async with some:  # whoever connects and says nothing for half a second is thrown out
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            assert await answer(reader, writer, first) == b"200"
        opened.append(1)
        if len(opened) == 1000:
            gate.set()
        await gate.wait()
        status = b"429"
        while status == b"429":
            try:
                status = await answer(reader, writer, ask)
            except (asyncio.IncompleteReadError, ConnectionError):  # a slow machine: idle for too long meanwhile
                async with some:
                    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
                    status = await answer(reader, writer, ask)
            if status == b"429":
                refused.append(1)  # the queue holds 256: the others are told to come back, and do
                await asyncio.sleep(0.2)
        writer.close()
        return status

    async def story() -> list[bytes]:
        nonlocal gate, some
        gate, some = asyncio.Event(), asyncio.Semaphore(20)
        return await asyncio.gather(*(one() for _ in range(1000)))

    opened: list[int] = []
    refused: list[int] = []
    assert asyncio.run(story()) == [b"200"] * 1000
    text = httpx.get(f"{server.url}/metrics").text
    assert f'gemirec_requests_total{{route="recommend",status="429"}} {len(refused)}.0' in text or not refused


def test_what_an_operator_does_wrong(artifact: Path, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        for words, names in (
            (["--host", "0.0.0.0"], "without API keys"),
            (["--port", port], "cannot listen"),
            (["--tls-cert", "cert.pem"], "TLS needs"),
            (["--tls-cert", "cert.pem", "--tls-key", "key.pem"], "TLS files"),
            (["--keys", "none.yaml"], "none.yaml"),
            (["--set", "max_batch=0"], "serve.max_batch"),
            (["--set", "max_bach=3"], "did you mean 'max_batch'"),
        ):
            assert names in gemirec("serve", artifact, *words, cwd=tmp_path, code=2).stderr
    assert "nowhere" in gemirec("serve", "nowhere", "--port", "0", cwd=tmp_path, code=2).stderr
