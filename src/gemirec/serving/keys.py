"""API keys: who may ask what, until when.

A key file is YAML, and so may be the environment variable :data:`VARIABLE`::

    keys:
      - name: shop
        sha256: 5e884898da28047151d0e56f8dc6292773603d0d6aabbdd62a11ef721d1542d8
        scopes: [read, events]
        expires: 2030-01-01
      - name: operator
        key: a-long-random-text
        scopes: [read, admin]

Keys are random texts of at least 16 characters, so one SHA-256 is as good as a slow hash: nobody can try them all. The
hash of what a client sends is held against every known hash in constant time, so that an answer's delay tells nothing.
"""

from __future__ import annotations

import datetime
import hashlib
import hmac
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

import msgspec
import yaml

from gemirec.config import Config, from_dict, load_yaml
from gemirec.errors import ConfigError
from gemirec.serving.http import HttpError, header

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gemirec.serving.http import Scope

Permission = Literal["read", "events", "admin"]
"""``read``: ask for recommendations and metrics. ``events``: send events. ``admin``: reload."""
VARIABLE = "GEMIREC_API_KEYS"
"""Environment variable that holds the text of a key file."""
LEAST_LENGTH = 16


class KeyEntry(Config, frozen=True, kw_only=True):
    """One key of a file: either ``key`` or ``sha256``."""

    name: Annotated[str, msgspec.Meta(min_length=1)]
    """For the log; never secret."""
    scopes: Annotated[list[Permission], msgspec.Meta(min_length=1)]
    """What it may do."""
    key: str | None = None
    """The key itself."""
    sha256: str | None = None
    """Its SHA-256 in hex, so that the file holds no secret."""
    expires: Any = None
    """A date or a time, in UTC unless it says otherwise; from then on it is refused."""


class KeyFile(Config, frozen=True, kw_only=True):
    """A key file."""

    keys: Annotated[list[KeyEntry], msgspec.Meta(min_length=1)]
    """All keys."""


class Key(msgspec.Struct, frozen=True):
    """A key as it is held in memory: only its hash."""

    name: str
    digest: bytes
    scopes: frozenset[str]
    expires: datetime.datetime | None


class Keyring:
    """The keys of a server.

    Example:
        >>> ring = Keyring([Key("shop", digest("0123456789abcdef"), frozenset({"read"}), None)])
        >>> ring.holder("0123456789abcdef", "read").name
        'shop'
        >>> ring.holder("0123456789abcdef", "admin")
        Traceback (most recent call last):
        gemirec.serving.http.HttpError: this key may not do that
          got: key shop with the scopes read
          fix: use a key with the scope admin
    """

    def __init__(self, keys: Sequence[Key]) -> None:
        self.keys = list(keys)

    def holder(self, presented: str | None, scope: Permission) -> Key:
        """Return the key that was presented, if it is valid and has the scope.

        Raises:
            HttpError: 401 for no, a wrong or an expired key; 403 for one without the scope.
        """
        if presented is None:
            raise _unauthorized("no API key", "none", "send the header Authorization: Bearer KEY")
        asked, found = digest(presented), None
        for key in self.keys:  # all of them, whichever fits
            if hmac.compare_digest(key.digest, asked):
                found = key
        if found is None:
            raise _unauthorized("no such API key", "a key that is not in the list", "check the key")
        if found.expires is not None and datetime.datetime.now(datetime.UTC) >= found.expires:
            raise _unauthorized("this API key has expired", f"key {found.name}, until {found.expires}", "use a new key")
        if scope not in found.scopes:
            raise HttpError(
                403,
                "this key may not do that",
                got=f"key {found.name} with the scopes {', '.join(sorted(found.scopes))}",
                fix=f"use a key with the scope {scope}",
            )
        return found


def digest(key: str) -> bytes:
    """Return the hash of a key."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def presented(scope: Scope) -> str | None:
    """Return the key that a request carries: ``Authorization: Bearer KEY`` or ``X-API-Key: KEY``."""
    kind, _, key = (header(scope, b"authorization") or "").partition(" ")
    return key.strip() if kind.lower() == "bearer" and key.strip() else header(scope, b"x-api-key")


def read_keys(path: Path | None) -> Keyring | None:
    """Return the keys of a file, or of the environment variable if there is no file; ``None`` without either.

    Raises:
        ConfigError: They cannot be read, or a key is short, doubled or incomplete.
    """
    if path is not None:
        raw, where = load_yaml(path), str(path)
    elif text := os.environ.get(VARIABLE):
        where = f"the environment variable {VARIABLE}"
        try:
            raw = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ConfigError("the API keys are not YAML", got=where, fix="write them as in a key file") from error
    else:
        return None
    if not isinstance(raw, dict):
        raise ConfigError("API keys must be a mapping", got=where, fix="write keys: and a list below it")
    keys = [_key(entry, where) for entry in from_dict(KeyFile, raw, where=where).keys]
    if len({key.digest for key in keys}) < len(keys):
        raise ConfigError("an API key is in the list twice", got=where, fix="give every holder a key of its own")
    return Keyring(keys)


def _key(entry: KeyEntry, where: str) -> Key:
    """Return an entry of a file as it is held in memory."""
    got = f"{where}: key {entry.name}"
    if (entry.key is None) == (entry.sha256 is None):
        raise ConfigError("an API key needs either key or sha256", got=got, fix="give one of the two")
    if entry.key is not None:
        if len(entry.key) < LEAST_LENGTH:
            fix = f"at least {LEAST_LENGTH} characters: python -c 'import secrets; print(secrets.token_urlsafe(24))'"
            raise ConfigError("an API key is too short", got=got, fix=fix)
        hashed = digest(entry.key)
    else:
        try:
            hashed = bytes.fromhex(entry.sha256 or "")
        except ValueError:
            hashed = b""
        if len(hashed) != hashlib.sha256().digest_size:
            fix = "give the 64 hex digits of: printf %s KEY | sha256sum"
            raise ConfigError("sha256 of an API key is not a SHA-256", got=got, fix=fix)
    return Key(entry.name, hashed, frozenset(entry.scopes), _moment(entry.expires, got))


def _moment(value: object, got: str) -> datetime.datetime | None:
    """Return the time that YAML's value of ``expires`` means."""
    if value is None:
        return None
    try:
        moment = datetime.datetime.fromisoformat(str(value))
    except ValueError:
        fix = "write a date, 2030-01-31, or a time, 2030-01-31T12:00:00Z"
        raise ConfigError("expires of an API key is no date", got=f"{got}: {value}", fix=fix) from None
    return moment if moment.tzinfo else moment.replace(tzinfo=datetime.UTC)


PERMISSIONS: tuple[str, ...] = get_args(Permission)


def _unauthorized(what: str, got: str, fix: str) -> HttpError:
    return HttpError(401, what, got=got, fix=fix, headers={"www-authenticate": "Bearer"})
