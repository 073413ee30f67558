"""The server as an ASGI application: from a request's bytes to an answer's."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from gemirec.errors import GemirecError
from gemirec.serving import http, page, wire
from gemirec.serving.batching import Batcher
from gemirec.serving.events import NOT_IN_HISTORIES, EventLog, EventWriter
from gemirec.serving.http import ClientGone, HttpError, Response
from gemirec.serving.keys import presented
from gemirec.serving.metrics import Metrics
from gemirec.serving.openapi import openapi
from gemirec.serving.routes import ROUTES, Route
from gemirec.serving.served import Served, Slot
from gemirec.serving.wire_explorer import ArtifactsAnswer

if TYPE_CHECKING:
    from gemirec.serving.config import ServeConfig
    from gemirec.serving.engine import Engine, Kind
    from gemirec.serving.http import Receive, Scope, Send
    from gemirec.serving.keys import Keyring
    from gemirec.serving.split import Experiment, Variant
    from gemirec.serving.wire_explorer import ArtifactsQuery, ItemsRequest, VariantQuery

Load = Callable[[Path, int | None], "Engine"]
"""Loads and checks an artifact; the number is that of the last event that it was trained on, ``None`` if not said."""
logger = logging.getLogger("gemirec.serving")


class App:
    """The ASGI application.

    Args:
        artifact: The folder that is served, and read again by ``/reload`` without one.
        load: How an artifact becomes an engine.
        events: Where events go.
        metrics: What is counted.
        config: Limits.
        keys: Who may ask; ``None`` answers this machine alone, under its own names.
        experiment: Serves a second artifact to a share of the users; ``None`` serves one to all.
        compare: A second artifact that is asked by its name alone (``?variant=B``). Not with an experiment, which has
            one.
    """

    def __init__(
        self,
        artifact: Path,
        load: Load,
        events: EventLog,
        metrics: Metrics,
        config: ServeConfig,
        keys: Keyring | None,
        experiment: Experiment | None = None,
        compare: Path | None = None,
    ) -> None:
        self.config = config
        self._load = load
        self._metrics = metrics
        self._keys = keys
        self._log = events
        self._writer = EventWriter(events, group=config.events_group)
        self._batcher = Batcher(
            metrics,
            max_batch=config.max_batch,
            max_queue=config.max_queue,
            wait_s=config.batch_wait_ms / 1000,
        )
        # the explorer's questions take a thread of their own, lest recommendations wait for them
        self._aside = Batcher(Metrics(), max_batch=1, max_queue=config.max_queue)
        self._experiment = experiment
        self._slots: dict[Variant, Slot] = {"A": Slot(artifact, Served(load(artifact, None)))}
        second = compare if experiment is None else experiment.split.artifact
        if second is not None:
            self._slots["B"] = Slot(second, Served(load(second, None)))
        metrics.serves(self.versions)
        self._reloading = False
        self._routes = {(route.method, route.path): route for route in ROUTES}
        self._decoders: dict[str, msgspec.json.Decoder[Any]] = {
            route.name: msgspec.json.Decoder(route.body) for route in ROUTES if route.body
        }
        self._description = http.encode(openapi(ROUTES, keys=keys is not None))

    @property
    def version(self) -> str:
        """The version that is served, by variant A if there are two."""
        return self._served.engine.version

    @property
    def versions(self) -> dict[Variant, str]:
        """The version of each variant."""
        return {variant: slot.served.engine.version for variant, slot in self._slots.items()}

    @property
    def _served(self) -> Served:
        return self._slots["A"].served

    @property
    def events_path(self) -> Path:
        """The file of the events."""
        return self._log.path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or follow the server's start and end."""
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
        elif scope["type"] == "http":
            start = time.perf_counter()
            name, response = await self._respond(scope, receive)
            if response is not None:
                with contextlib.suppress(TimeoutError, OSError):  # the client does not read, or is gone
                    await http.respond(send, response, self.config.body_timeout_s)
                self._metrics.request(name, response.status, time.perf_counter() - start)

    async def stop(self) -> None:
        """Finish what was taken on: batches, events, files."""
        await self._batcher.stop()
        await self._aside.stop()
        await self._writer.stop()
        if self._experiment is not None:
            self._experiment.stop()
        for slot in self._slots.values():
            slot.served.engine.close()
        self._log.close()

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        """Say that all is ready (it was loaded before), and finish when the server ends."""
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
                await send({"type": "lifespan.startup.complete"})
            elif message["type"] == "lifespan.shutdown":
                await self.stop()
                await send({"type": "lifespan.shutdown.complete"})
                return

    async def _respond(self, scope: Scope, receive: Receive) -> tuple[str, Response | None]:
        """Return the route's name and the answer, an error's too; no answer if the client is gone."""
        name = "unknown"
        try:
            route = self._route(scope)
            name = route.name
            return name, await self._answer(route, scope, receive)
        except ClientGone:
            return name, None
        except GemirecError as error:
            response = http.failure(error)
            if response.status >= 500:
                logger.warning("%s: %s", name, error)
            return name, response
        except Exception as error:
            logger.exception("%s failed", name)
            fix = "this is a fault in gemirec: the server's log has the traceback; please report it"
            return name, http.failure(
                HttpError(500, "something unexpected happened", got=type(error).__name__, fix=fix)
            )

    def _route(self, scope: Scope) -> Route:
        """Return the route of a request.

        Raises:
            HttpError: There is none: 404 for the path, 405 for the method.
        """
        method, path = scope["method"], scope["path"]
        route = self._routes.get(("GET" if method == "HEAD" else method, path))
        if route is not None:
            return route
        methods = sorted(known for known, where in self._routes if where == path)
        if not methods:
            raise HttpError(404, "there is no such path", got=path[:200], fix="/openapi.json has them all")
        allowed = ", ".join([*methods, "HEAD"] if "GET" in methods else methods)
        fix = f"use {allowed}"
        raise HttpError(405, "this path has no such method", got=method, fix=fix, headers={"allow": allowed})

    async def _answer(self, route: Route, scope: Scope, receive: Receive) -> Response:
        """Check who asks, read the body, and answer."""
        self._check_caller(route, scope)
        if route.file is not None:
            return page.file(route.file)
        method = getattr(self, f"_{route.name}")
        if route.body is None and route.query is None:
            found = method()
        else:
            deadline = asyncio.get_running_loop().time() + self._deadline(scope)
            asked: list[Any] = [] if route.query is None else [http.decoded_query(route.query, scope)]
            if route.body is not None:
                raw = await http.read_body(scope, receive, self.config.max_body, self.config.body_timeout_s)
                asked = [http.decoded(self._decoders[route.name], raw), *asked]
            found = await method(*asked, deadline)
        return found if isinstance(found, Response) else Response(http.encode(found))

    def _check_caller(self, route: Route, scope: Scope) -> None:
        """Raise if the caller may not ask this."""
        if self._keys is not None:
            if route.scope is not None:
                self._keys.holder(presented(scope), route.scope)
        elif not is_local(http.header(scope, b"host")):
            raise HttpError(
                403,
                "a server without API keys answers its own machine only",
                got=f"host {(http.header(scope, b'host') or '')[:200]}",
                fix="ask it as localhost, or start it with --keys",
            )

    def _deadline(self, scope: Scope) -> float:
        """Return the seconds that a request has."""
        text = http.header(scope, b"x-deadline-ms")
        if text is None:
            return self.config.deadline_ms / 1000
        try:
            given = float(text)
        except ValueError:
            given = math.nan
        if not given > 0:
            raise HttpError(400, "X-Deadline-Ms must be a number above 0", got=text[:200], fix="for example 200")
        return min(given, self.config.max_deadline_ms) / 1000

    async def _ask(self, kind: Kind, requests: list[Any], deadline: float, only: Variant | None = None) -> list[Any]:
        """Ask the engines that are served now, or one of them; they stay open until the answer is there."""

        async def ask(variant: Variant, numbers: Sequence[int]) -> list[Any]:
            asked = [requests[number] for number in numbers]
            with self._slots[variant].served.held() as engine:
                batcher = self._aside if kind == "explore" else self._batcher
                return await batcher.ask(engine, kind, asked, deadline, numbers)

        if only is not None and only not in self._slots:
            fix = "leave variant out, or start the server with --compare ARTIFACT"
            raise HttpError(422, "there is no second artifact", got=f"variant {only}", fix=fix)
        if only is not None or self._experiment is None:
            return await ask(only or "A", range(len(requests)))
        return await self._experiment.ask(ask, kind, requests)

    async def _recommend(self, body: wire.RecommendRequest, query: VariantQuery, deadline: float) -> Any:
        return (await self._ask("recommend", [body], deadline, query.variant))[0]

    async def _recommend_batch(self, body: wire.BatchRequest, deadline: float) -> wire.BatchAnswer:
        return wire.BatchAnswer(answers=await self._ask("recommend", body.requests, deadline))

    async def _interests(self, body: wire.InterestsRequest, query: VariantQuery, deadline: float) -> Any:
        return (await self._ask("interests", [body], deadline, query.variant))[0]

    async def _explain(self, body: wire.ExplainRequest, query: VariantQuery, deadline: float) -> Any:
        return (await self._ask("explain", [body], deadline, query.variant))[0]

    async def _similar(self, body: wire.SimilarRequest, query: VariantQuery, deadline: float) -> Any:
        return (await self._ask("similar", [body], deadline, query.variant))[0]

    async def _explore(self, query: Any, deadline: float) -> Any:
        return (await self._ask("explore", [query], deadline, query.variant or "A"))[0]

    _users = _map = _dictionary = _explore

    async def _items(self, body: ItemsRequest, query: VariantQuery, deadline: float) -> Any:
        return (await self._ask("explore", [body], deadline, query.variant or "A"))[0]

    async def _artifacts(self, query: ArtifactsQuery, deadline: float) -> ArtifactsAnswer:
        found = []
        for variant in self._slots:
            (facts,) = await self._ask("explore", [query], deadline, variant)
            found.append(msgspec.structs.replace(facts, variant=variant))
        return ArtifactsAnswer(artifacts=found)

    async def _events(self, body: wire.EventsRequest, deadline: float) -> wire.EventsAnswer:
        with self._metrics.timed("events"):
            stored = await self._writer.store(body.events)
            await self._mark_stale([str(event.user_id) for event in body.events if event.event != NOT_IN_HISTORIES])
        self._metrics.events("stored", stored.stored)
        self._metrics.events("duplicate", stored.duplicates)
        return wire.EventsAnswer(stored=stored.stored, duplicates=stored.duplicates, last=stored.last)

    async def _mark_stale(self, users: list[str]) -> None:
        """Tell the caches that users have new events."""
        with contextlib.ExitStack() as held:
            for slot in self._slots.values():
                engine = held.enter_context(slot.served.held())
                if users and engine.has_cache:
                    await asyncio.to_thread(engine.mark_stale, users)

    async def _reload(self, body: wire.ReloadRequest, deadline: float) -> wire.StateAnswer:
        variant: Variant | None = body.variant if len(self._slots) > 1 or body.variant else "A"
        if variant not in self._slots:
            fix = f"give variant: one of {', '.join(self._slots)}"
            raise HttpError(422, "which artifact is to be loaded again", got=f"variant {variant}", fix=fix)
        path = self._slots[variant].artifact if body.artifact is None else Path(body.artifact)
        await self.reload(path, body.events_after, variant)
        return self._state("reloaded", variant)

    async def reload(self, path: Path, events_after: int | None = None, variant: Variant = "A") -> None:
        """Load an artifact beside the one that is served, then serve it; requests in flight finish with the old one.

        Args:
            path: The artifact.
            events_after: Last event that it was trained on; ``None`` takes what the log has noted.
            variant: Whose place it takes.

        Raises:
            HttpError: A reload is under way (409).
            GemirecError: The artifact cannot be used; the old one is served on.
        """
        if self._reloading:
            raise HttpError(409, "a reload is under way", got="a second one", fix="ask again when it is done")
        self._reloading = True
        try:
            engine = await asyncio.to_thread(self._load, path, events_after)
        except BaseException:
            self._metrics.reload("refused")
            raise
        finally:
            self._reloading = False
        old, self._slots[variant] = self._slots[variant].served, Slot(path, Served(engine))
        old.retired = True
        old.close_if_done()
        self._metrics.reload("done")
        self._metrics.serves(self.versions)
        logger.info("serving %s from %s", engine.version, path)

    def _healthz(self) -> wire.StateAnswer:
        return self._state("alive")

    def _readyz(self) -> wire.StateAnswer:
        self._log.trained_on(self.version)
        return self._state("ready")

    def _state(self, status: wire.Status, variant: Variant = "A") -> wire.StateAnswer:
        versions = msgspec.UNSET if len(self._slots) == 1 else self.versions
        return wire.StateAnswer(status=status, version=self.versions[variant], variants=versions)

    def _prometheus(self) -> Response:
        return Response(self._metrics.text(), content_type="text/plain; version=0.0.4; charset=utf-8")

    def _schema(self) -> Response:
        return Response(self._description)


def is_local(host: str | None) -> bool:
    """Return whether a ``Host`` header names this machine: a web page that was given another name for it cannot ask.

    Example:
        >>> [is_local(host) for host in ("localhost:8000", "127.0.0.1", "[::1]:80", "evil.example", None)]
        [True, True, True, False, False]
    """
    name = (host or "").rpartition("@")[2]
    name = name[1:].partition("]")[0] if name.startswith("[") else name.partition(":")[0]
    if name.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False
