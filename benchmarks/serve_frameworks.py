"""What a web framework costs: the same small endpoint in plain ASGI + msgspec, Starlette + msgspec, and Litestar.

Each runs under uvicorn (uvloop, httptools) in a process of its own and answers a request of 20 items with a list of 50,
without any model: what is measured is reading, checking and writing. A client on 8 kept connections asks as fast as it
is answered. Printed: microseconds of the server's processor time per request, and the median and p99 answer times.

    python benchmarks/serve_frameworks.py                        # those that are installed
    python benchmarks/serve_frameworks.py --requests 50000 --only plain --only litestar
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import msgspec

ANSWERS = {"content-type": "application/json"}


class Ask(msgspec.Struct, forbid_unknown_fields=True):
    history: list[int | str] = []
    k: int = 50


class Place(msgspec.Struct):
    item_id: str
    rank: int
    score: float
    interest: int


class Answer(msgspec.Struct):
    items: list[Place]


def answer(ask: Ask) -> Answer:
    """What an engine would say."""
    return Answer([Place(f"item-{i}", i + 1, 1.0 / (i + 1), i % 5) for i in range(ask.k)])


def plain() -> Any:
    decode, encode = msgspec.json.Decoder(Ask).decode, msgspec.json.Encoder().encode

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        parts, more = [], True
        while more:
            message = await receive()
            parts.append(message["body"])
            more = message["more_body"]
        body = encode(answer(decode(b"".join(parts))))
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    return app


def starlette() -> Any:
    from starlette.applications import Starlette  # type: ignore[import-not-found, unused-ignore]
    from starlette.responses import Response  # type: ignore[import-not-found, unused-ignore]
    from starlette.routing import Route  # type: ignore[import-not-found, unused-ignore]

    decode, encode = msgspec.json.Decoder(Ask).decode, msgspec.json.Encoder().encode

    async def recommend(request: Any) -> Any:
        return Response(encode(answer(decode(await request.body()))), headers=ANSWERS)

    return Starlette(routes=[Route("/recommend", recommend, methods=["POST"])])


def litestar() -> Any:
    from litestar import Litestar, post  # type: ignore[import-not-found, unused-ignore]

    async def recommend(data: Ask) -> Answer:
        return answer(data)

    recommend.__annotations__.update(data=Ask, **{"return": Answer})
    return Litestar(route_handlers=[post("/recommend", status_code=200)(recommend)], debug=False)


APPS = {"plain": plain, "starlette": starlette, "litestar": litestar}


def serve(name: str, port: int) -> None:
    import uvicorn

    uvicorn.run(APPS[name](), port=port, log_level="warning", access_log=False, lifespan="off", loop="uvloop")


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def client(port: int, count: int, taken: list[float]) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    body = msgspec.json.encode(Ask([f"item-{i}" for i in range(20)]))
    head = (
        f"POST /recommend HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    for _ in range(count):
        start = time.perf_counter()
        writer.write(head.encode() + body)
        found = (await reader.readuntil(b"\r\n\r\n")).lower()
        assert found.startswith(b"http/1.1 200"), found
        await reader.readexactly(int(found.partition(b"content-length: ")[2].partition(b"\r\n")[0]))
        taken.append(time.perf_counter() - start)
    writer.close()


def measure(name: str, requests: int) -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen([sys.executable, __file__, "--serve", name, "--port", str(port)])
    try:
        for _ in range(200):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.05)

        async def load(count: int, taken: list[float]) -> None:
            await asyncio.gather(*(client(port, count // 8, taken) for _ in range(8)))

        asyncio.run(load(800, []))
        taken: list[float] = []
        before = cpu_seconds(process.pid)
        asyncio.run(load(requests, taken))
        spent = cpu_seconds(process.pid) - before
    finally:
        process.terminate()
        process.wait()
    taken.sort()
    p50, p99 = taken[len(taken) // 2], taken[int(len(taken) * 0.99)]
    return f"| {name} | {1e6 * spent / len(taken):.0f} | {1e3 * p50:.2f} | {1e3 * p99:.2f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--only", action="append", choices=sorted(APPS))
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        serve(args.serve, args.port)
        return
    print("| framework | processor us per request | p50 ms | p99 ms |\n|---|---|---|---|")
    for name in args.only or APPS:
        if name == "plain" or importlib.util.find_spec(name):
            print(measure(name, args.requests), flush=True)


if __name__ == "__main__":
    main()
