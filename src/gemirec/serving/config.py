"""What can be set of a server."""

from __future__ import annotations

from pathlib import Path

from gemirec.config import Config
from gemirec.errors import ConfigError
from gemirec.serving.split import Split


class ServeConfig(Config, frozen=True, kw_only=True):
    """Limits and habits of a server.

    Raises:
        ConfigError: A number is out of range.

    Example:
        >>> ServeConfig(max_batch=0)
        Traceback (most recent call last):
        gemirec.errors.ConfigError: serve.max_batch must be above 0
          got: 0
          fix: leave the default, 32
    """

    max_batch: int = 32
    """Most users worked on at once."""
    batch_wait_ms: float = 0.0
    """How long a request waits for others while the worker is free. 0: not at all; others still gather while it is
    busy."""
    max_queue: int = 256
    """Most users that wait; further requests get 429."""
    deadline_ms: float = 2000.0
    """Time for an answer where the request gives none (header X-Deadline-Ms)."""
    max_deadline_ms: float = 60_000.0
    """The longest deadline that a request may ask for."""
    max_body: int = 1_000_000
    """Most bytes of a request's body."""
    body_timeout_s: float = 10.0
    """Time for a client to send headers and body, each, and to take each part of an answer."""
    max_connections: int = 4000
    """Most open connections; uvicorn answers 503 beyond."""
    drain_s: float = 20.0
    """Time for requests in flight after SIGTERM."""
    events_group: int = 1000
    """Most events written in one transaction."""

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        for name, default in zip(self.__struct_fields__, self.__struct_defaults__, strict=True):
            value = getattr(self, name)
            if not (value > 0 or (name == "batch_wait_ms" and value == 0)):
                raise ConfigError(f"serve.{name} must be above 0", got=value, fix=f"leave the default, {default}")


class ServePlan(Config, frozen=True, kw_only=True):
    """Where a server reads, writes and listens."""

    artifact: Path
    """The trained model."""
    split: Split | None = None
    """Which users get a second model; ``None`` serves one to all."""
    compare: Path | None = None
    """A second model that is only looked at, beside the first; not with ``split``, which has one."""
    index: Path | None = None
    """An index of the artifact's items; ``None`` searches them all. A release has its own."""
    redis_url: str | None = None
    """Where the interest caches of releases in Redis are."""
    events: Path | None = None
    """SQLite file of the events; ``None`` puts ``events.sqlite`` beside the artifact."""
    keys: Path | None = None
    """YAML file of API keys; ``None`` takes the environment variable, if set."""
    host: str = "127.0.0.1"
    """Address to listen on."""
    port: int = 8000
    """Port to listen on; 0 takes a free one."""
    tls_cert: Path | None = None
    """PEM file of the certificate chain."""
    tls_key: Path | None = None
    """PEM file of its private key."""

    def __post_init__(self) -> None:
        """Refuse two second models."""
        if self.split is not None and self.compare is not None:
            raise ConfigError(
                "a server has at most two models",
                got="--split and --compare",
                fix="leave --compare out: the explorer compares the two models of a split",
            )
