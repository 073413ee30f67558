"""Who may ask what: keys, scopes, expiry, and a server without keys."""

from __future__ import annotations

import datetime
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gemirec.errors import ConfigError
from gemirec.serving.keys import VARIABLE, Key, Keyring, digest, read_keys
from gemirec.serving.run import check_address
from support_serving import Client

SHOP, OPERATOR, OLD = "shop-key-0123456789", "operator-key-012345", "expired-key-0123456"
SOON = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=1)
PAST = datetime.datetime.now(datetime.UTC) - datetime.timedelta(seconds=1)
RING = Keyring(
    [
        Key("shop", digest(SHOP), frozenset({"read"}), SOON),
        Key("operator", digest(OPERATOR), frozenset({"read", "events", "admin"}), None),
        Key("old", digest(OLD), frozenset({"read", "admin"}), PAST),
    ]
)
EVENT = {"events": [{"user_id": 1, "item_id": "item-1"}]}


def test_each_key_opens_its_own_doors(make_client: Callable[..., Client]) -> None:
    client = make_client(keys=RING)
    doors: tuple[tuple[str, Any], ...] = (("/recommend", {}), ("/events", EVENT), ("/reload", {"artifact": "/nowhere"}))
    expected = {
        None: [401, 401, 401],
        "wrong-key-0123456789": [401, 401, 401],
        OLD: [401, 401, 401],
        SHOP: [200, 403, 403],
        OPERATOR: [200, 200, 422],
    }
    for key, codes in expected.items():
        headers: dict[str, Any] = {} if key is None else {"authorization": f"Bearer {key}"}
        assert [client.post(path, body, **headers).status_code for path, body in doors] == codes, key
    assert client.post("/recommend", {}, x_api_key=SHOP).status_code == 200
    assert client.get("/metrics").status_code == 401
    assert client.get("/metrics", x_api_key=SHOP).status_code == 200
    assert [client.get(path).status_code for path in ("/healthz", "/readyz", "/openapi.json")] == [200] * 3


def test_a_wrong_key_is_refused_before_the_body_is_read(make_client: Callable[..., Client]) -> None:
    client = make_client(keys=RING)
    assert client.post("/recommend", content=b"not json").status_code == 401
    assert client.post("/recommend", content=b"not json", x_api_key=SHOP).status_code == 400
    for odd in ("Bearer", "Bearer ", "Basic " + SHOP, "Bearer \xe9\xff", SHOP):
        assert client.post("/recommend", {}, authorization=odd).status_code == 401


def test_without_keys_only_this_machine_is_answered(client: Client) -> None:
    for host, code in (("localhost:8000", 200), ("127.0.0.1", 200), ("[::1]:9", 200), ("shop.example", 403)):
        assert client.post("/recommend", {}, host=host).status_code == code
    # A web page can send a form without asking first, but not with this content type.
    assert client.post("/events", EVENT, content_type="text/plain").status_code == 415
    for host in ("0.0.0.0", "192.168.0.1", "::", "shop.example"):
        with pytest.raises(ConfigError, match="without API keys"):
            check_address(host, None)
        check_address(host, RING)
    for host in ("127.0.0.1", "::1", "localhost"):
        check_address(host, None)


def test_keys_of_a_file_and_of_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed = hashlib.sha256(SHOP.encode()).hexdigest()
    text = f"""
keys:
  - {{name: shop, sha256: {hashed}, scopes: [read], expires: {SOON:%Y-%m-%d %H:%M:%S}}}
  - {{name: old, key: {OLD}, scopes: [read], expires: 2020-01-01}}
"""
    file = tmp_path / "keys.yaml"
    file.write_text(text)
    monkeypatch.delenv(VARIABLE, raising=False)
    assert read_keys(None) is None
    monkeypatch.setenv(VARIABLE, text)
    for ring in (read_keys(file), read_keys(None)):
        assert ring is not None
        assert ring.holder(SHOP, "read").name == "shop"
        with pytest.raises(Exception, match="expired"):
            ring.holder(OLD, "read")
        assert OLD.encode() not in b"".join(key.digest for key in ring.keys)


@pytest.mark.parametrize(
    ("keys", "names"),
    [
        ("[]", "keys"),
        ("[{name: a, key: short, scopes: [read]}]", "too short"),
        ("[{name: a, scopes: [read]}]", "either key or sha256"),
        ("[{name: a, sha256: beef, scopes: [read]}]", "not a SHA-256"),
        ("[{name: a, key: 0123456789abcdef0, scopes: [write]}]", "scopes"),
        ("[{name: a, key: x123456789abcdef0, scopes: []}]", "scopes"),
        ("[{name: a, key: x123456789abcdef0, scope: [read]}]", "unknown field `scope`"),
        ("[{name: a, key: &k x123456789abcdef0, scopes: [read]}, {name: b, key: *k, scopes: [read]}]", "twice"),
        ("[{name: a, key: x123456789abcdef0, scopes: [read], expires: soon}]", "no date"),
        ("{", "YAML"),
    ],
)
def test_wrong_key_files_are_refused_by_name(tmp_path: Path, keys: str, names: str) -> None:
    file = tmp_path / "keys.yaml"
    file.write_text(f"keys: {keys}")
    with pytest.raises(ConfigError, match=names):
        read_keys(file)
