"""A server inside the test's process, and one in a process of its own."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import httpx

from gemirec.serving.app import App
from gemirec.serving.config import ServeConfig, ServePlan
from gemirec.serving.keys import Keyring
from gemirec.serving.run import build_app
from gemirec.serving.split import Split

T = TypeVar("T")
JSON = "application/json"


class Client:
    """Asks an application without a network; every call runs in an event loop of its own unless :meth:`run` is used."""

    def __init__(
        self,
        artifact: Path,
        events: Path,
        *,
        keys: Keyring | None = None,
        split: Split | None = None,
        index: Path | None = None,
        **limits: Any,
    ) -> None:
        self.plan = ServePlan(artifact=artifact, events=events, split=split, index=index)
        self.app: App = build_app(self.plan, ServeConfig(**limits), keys)

    def run(self, story: Callable[[httpx.AsyncClient], Awaitable[T]]) -> T:
        """Run a coroutine that is given an HTTP client."""

        async def whole() -> T:
            transport = httpx.ASGITransport(self.app)
            async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as http:
                return await story(http)

        return asyncio.run(whole())

    def post(self, path: str, body: Any = None, *, content: bytes | None = None, **headers: str) -> httpx.Response:
        """Send a body, as JSON or as bytes; ``_`` in names of headers is ``-``."""
        raw = json.dumps(body).encode() if content is None else content
        named = {"content_type": JSON, **headers}
        sent = [(name.replace("_", "-").encode(), value.encode("latin-1")) for name, value in named.items()]
        return self.run(lambda http: http.post(path, content=raw, headers=sent))

    def get(self, path: str, **headers: str) -> httpx.Response:
        """Ask for a page."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.run(lambda http: http.get(path, headers=named))

    def counted(self, name: str) -> float:
        """Return one number of ``/metrics``; 0 if it is not there."""
        lines = self.get("/metrics").text.splitlines()
        return next((float(line.rpartition(" ")[2]) for line in lines if line.startswith(name)), 0.0)


class Server:
    """``gemirec serve`` in a process of its own."""

    def __init__(self, *words: str | Path, **environ: str) -> None:
        script = Path(sys.executable).with_name("gemirec")
        command = [str(script), "serve", *map(str, words), "--port", "0", "--json"]
        env = {**os.environ, "OMP_NUM_THREADS": "1", "POLARS_MAX_THREADS": "1", **environ}
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise AssertionError(self.process.communicate()[1])
        self.facts: dict[str, Any] = json.loads(line)
        self.url: str = self.facts["url"]
        self.port = int(self.url.rpartition(":")[2])

    def kill(self) -> None:
        """End it as a lack of memory would."""
        self.process.kill()
        self.process.communicate()

    def stop(self) -> int:
        """Ask it to end, as an operator would, and return its exit code."""
        self.process.send_signal(signal.SIGTERM)
        self.process.communicate(timeout=60)
        return self.process.returncode


@contextlib.contextmanager
def serving(*words: str | Path, **environ: str) -> Iterator[Server]:
    """Serve for the length of the block."""
    server = Server(*words, **environ)
    try:
        yield server
    finally:
        if server.process.poll() is None:
            server.kill()
