"""What uvicorn lacks against slow clients: limits on the head of a request, and on how long an answer is not taken."""

from __future__ import annotations

import asyncio
from typing import Any

MOST_HEAD = 65_536
"""Most bytes of a request's line and headers."""
_TOO_LARGE = b"HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"


class Patience:
    """Laid over uvicorn's HTTP protocol: whoever takes longer than ``timeout_s`` loses the connection.

    It counts from the connection, or the first byte of a request, to the end of the headers; and while an answer is not
    taken. Bodies are the application's matter (:func:`gemirec.serving.http.read_body`).
    """

    timeout_s: float
    transport: asyncio.Transport
    loop: asyncio.AbstractEventLoop
    _in_body = False
    _head = 0
    _head_timer: asyncio.TimerHandle | None = None
    _write_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:
        """Start to wait for the first request."""
        super().connection_made(transport)  # type: ignore[misc]
        self._wait_for_head()

    def data_received(self, data: bytes) -> None:
        """Hand data on, and refuse a head without end."""
        if not self._in_body:
            self._wait_for_head()
        super().data_received(data)  # type: ignore[misc]
        self._head = self._head + len(data) if self._head_timer is not None else 0
        if self._head > MOST_HEAD:
            self.transport.write(_TOO_LARGE)
            self.transport.close()

    def on_message_begin(self) -> None:
        """Start to wait for the headers."""
        self._wait_for_head()
        super().on_message_begin()  # type: ignore[misc]

    def on_headers_complete(self) -> None:
        """Stop waiting for them."""
        self._in_body = True
        _cancel(self._head_timer)
        self._head_timer = None
        super().on_headers_complete()  # type: ignore[misc]

    def on_message_complete(self) -> None:
        """Note that the next byte is of another request."""
        self._in_body = False
        super().on_message_complete()  # type: ignore[misc]

    def pause_writing(self) -> None:
        """Start to wait for the client to read."""
        super().pause_writing()  # type: ignore[misc]
        self._write_timer = self._write_timer or self.loop.call_later(self.timeout_s, self.transport.abort)

    def resume_writing(self) -> None:
        """Stop waiting for it."""
        _cancel(self._write_timer)
        self._write_timer = None
        super().resume_writing()  # type: ignore[misc]

    def timeout_keep_alive_handler(self) -> None:
        """End an idle connection at once: closing would wait for a client that takes nothing."""
        self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop waiting."""
        _cancel(self._head_timer)
        _cancel(self._write_timer)
        super().connection_lost(exc)  # type: ignore[misc]

    def _wait_for_head(self) -> None:
        self._head_timer = self._head_timer or self.loop.call_later(self.timeout_s, self.transport.abort)


def patient(protocol: type[Any], timeout_s: float) -> type[Any]:
    """Return uvicorn's protocol class with these limits."""
    return type("PatientProtocol", (Patience, protocol), {"timeout_s": timeout_s})


def _cancel(timer: asyncio.TimerHandle | None) -> None:
    """Cancel a timer."""
    if timer is not None:
        timer.cancel()
