"""From a plan to a listening server: keys, event log, model, limits of connections, signals."""

from __future__ import annotations

import ipaddress
import signal
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from gemirec.errors import ConfigError, MissingExtraError
from gemirec.serving.app import App
from gemirec.serving.config import ServeConfig, ServePlan
from gemirec.serving.events import EventLog
from gemirec.serving.impressions import ImpressionLog, ImpressionWriter, impressions_path
from gemirec.serving.keys import VARIABLE, Keyring, read_keys
from gemirec.serving.metrics import Metrics
from gemirec.serving.patience import patient
from gemirec.serving.split import Experiment

if TYPE_CHECKING:
    from collections.abc import Callable

    from gemirec.serving.engine import Engine

BACKLOG = 2048
"""Connections that may wait to be accepted."""
SWITCH_S = 0.0005
"""How long the worker may keep the interpreter from the event loop (Python's default, 5 ms, is a request's time)."""


def serve(plan: ServePlan, config: ServeConfig, *, say: Callable[[dict[str, object]], None]) -> None:
    """Serve until SIGTERM or SIGINT, then finish the requests in flight.

    Args:
        plan: What is served, and where.
        config: Limits.
        say: Gets facts for the operator just before the first request: ``version``, ``url``, ``events``, ``access``.

    Raises:
        ConfigError: Address, keys or TLS files cannot be used.
        ArtifactError: The artifact or the event log cannot be used.
        MissingExtraError: The extra ``serve`` is not installed.
    """
    try:
        import uvicorn
        from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
    except ImportError as error:
        raise MissingExtraError("serve", "uvicorn") from error
    keys = read_keys(plan.keys)
    check_address(plan.host, keys)
    _check_tls(plan)
    listener = bind(plan.host, plan.port)
    own_process()
    app = build_app(plan, config, keys)
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            http=patient(HttpToolsProtocol, config.body_timeout_s),
            ws="none",
            lifespan="on",
            log_level="warning",
            access_log=False,
            proxy_headers=False,
            server_header=False,
            limit_concurrency=config.max_connections,
            backlog=BACKLOG,
            timeout_keep_alive=75,
            timeout_graceful_shutdown=int(config.drain_s) or 1,
            ssl_certfile=plan.tls_cert,
            ssl_keyfile=plan.tls_key,
        )
    )
    listener.listen(BACKLOG)  # whoever reads the line can connect
    host, port = listener.getsockname()[:2]
    url = f"{'https' if plan.tls_cert else 'http'}://{f'[{host}]' if ':' in host else host}:{port}"
    access = f"no API keys (--keys, {VARIABLE}): only this machine can ask, and it may do everything"
    if keys is not None:
        access = f"{len(keys.keys)} API keys: {', '.join(key.name for key in keys.keys)}"
    versions = {"version": app.version}
    if len(app.versions) > 1:
        versions |= {f"version_{variant}": version for variant, version in app.versions.items()}
    say({**versions, "url": url, "events": str(app.events_path), "access": access})
    for number in (signal.SIGTERM, signal.SIGINT):  # uvicorn raises them again when it is done: then they mean nothing
        signal.signal(number, lambda *_: None)
    server.run([listener])


def build_app(plan: ServePlan, config: ServeConfig, keys: Keyring | None) -> App:
    """Return the application of a plan, its model loaded.

    Raises:
        ArtifactError: The artifact or the event log cannot be used.
    """
    from gemirec.serving.recommender_engine import RecommenderEngine

    metrics = Metrics()
    events = EventLog(plan.events or plan.artifact.parent / "events.sqlite")

    def load(path: Path, after: int | None) -> Engine:
        index = plan.index if path == plan.artifact else None  # it is an index of that artifact's items
        return RecommenderEngine.load(
            path, events=events, metrics=metrics, after=after, index=index, redis_url=plan.redis_url
        )

    experiment = None
    if plan.split is not None:
        log = ImpressionLog(impressions_path(events.path))
        experiment = Experiment(plan.split, ImpressionWriter(log, plan.split, metrics), metrics)
    return App(plan.artifact, load, events, metrics, config, keys, experiment, plan.compare)


def bind(host: str, port: int) -> socket.socket:
    """Return a socket that is bound but does not listen yet: clients are refused until the model is loaded.

    Raises:
        ConfigError: The address cannot be had.
    """
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise ConfigError(
            "the server cannot listen there",
            got=f"{host}, port {port}: {error.strerror or error}",
            fix="choose another --host or --port; port 0 takes a free one",
        ) from error
    return listener


def own_process() -> None:
    """Set what belongs to the process: one thread for torch, and a worker that lets the event loop in soon."""
    import torch

    torch.set_num_threads(1)
    sys.setswitchinterval(SWITCH_S)


def check_address(host: str, keys: Keyring | None) -> None:
    """Raise if a server without keys would listen to other machines.

    Raises:
        ConfigError: It would.

    Example:
        >>> check_address("127.0.0.1", None)
        >>> check_address("0.0.0.0", None)
        Traceback (most recent call last):
        gemirec.errors.ConfigError: without API keys the server listens to its own machine only
          got: host 0.0.0.0
          fix: give --keys FILE (or GEMIREC_API_KEYS), or leave --host at 127.0.0.1
    """
    try:
        local = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        local = False
    if keys is None and not local:
        raise ConfigError(
            "without API keys the server listens to its own machine only",
            got=f"host {host}",
            fix=f"give --keys FILE (or {VARIABLE}), or leave --host at 127.0.0.1",
        )


def _check_tls(plan: ServePlan) -> None:
    """Raise if only one of the TLS files is given, or they do not fit."""
    import ssl

    if (plan.tls_cert is None) != (plan.tls_key is None):
        raise ConfigError("TLS needs a certificate and its key", got="one of them", fix="give --tls-cert and --tls-key")
    if plan.tls_cert is not None:
        try:
            ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(plan.tls_cert, plan.tls_key)
        except (OSError, ssl.SSLError) as error:
            got = f"{plan.tls_cert}, {plan.tls_key}: {error}"
            raise ConfigError(
                "the TLS files cannot be used", got=got, fix="give PEM files that fit together"
            ) from error
