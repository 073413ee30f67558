"""The Dockerfile and the compose file, read as data: no container engine is needed to see what would go wrong."""

from __future__ import annotations

import fnmatch
import http.server
import json
import re
import shlex
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from gemirec.cli import app

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
SECRET = re.compile(r"(pass(word)?|token|secret|api_?keys?)\b", re.IGNORECASE)
VERBS = typer.main.get_command(app)


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile's instructions: name and the rest, continued lines joined, comments dropped."""
    text = "\n".join(
        line for line in (DEPLOY / "Dockerfile").read_text().splitlines() if not line.lstrip().startswith("#")
    )
    lines = [line for line in text.replace("\\\n", " ").splitlines() if line.strip()]
    return [(line.split(maxsplit=1)[0], line.split(maxsplit=1)[1].strip()) for line in lines]


def last_stage() -> list[tuple[str, str]]:
    found = instructions()
    start = max(i for i, (name, _) in enumerate(found) if name == "FROM")
    return found[start:]


def resolved(text: str) -> str:
    """A value with its variables at their defaults."""
    return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text)


def parses(words: list[str]) -> dict[str, Any]:
    """The options of a gemirec command line; fails if the verb does not understand it."""
    command = VERBS.commands[words[0]]  # type: ignore[attr-defined]
    with command.make_context(words[0], list(words[1:])) as context:
        return dict(context.params)


# --- Dockerfile ---------------------------------------------------------------------------------------------------


def test_every_instruction_is_one_and_stages_begin_with_a_pinned_slim_image() -> None:
    known = {"FROM", "ARG", "ENV", "RUN", "WORKDIR", "COPY", "USER", "VOLUME", "EXPOSE", "STOPSIGNAL"}
    found = instructions()
    assert {name for name, _ in found} <= known | {"HEALTHCHECK", "ENTRYPOINT", "CMD"}
    assert found[0][0] == "FROM"
    images = [rest.split()[0] for name, rest in found if name == "FROM"]
    low, high = re.findall(r"3\.(\d+)", PROJECT["requires-python"])
    for image in images:
        version = re.fullmatch(r"python:3\.(\d+)-slim", image)
        assert version is not None
        assert int(low) <= int(version[1]) < int(high)
    assert len(set(images)) == 1  # the environment that is copied needs the interpreter it was made with


def test_the_image_runs_as_nobody_in_particular_and_says_how_it_is() -> None:
    stage = last_stage()
    (user,) = [rest for name, rest in stage if name == "USER"]
    assert user not in ("root", "0")
    made = next(rest for name, rest in stage if name == "RUN")
    assert re.search(rf"useradd --uid \d{{4,}} .*\b{user}\b", made)
    order = [name for name, _ in stage]
    assert order.index("USER") > order.index("COPY")
    for name in ("HEALTHCHECK", "ENTRYPOINT", "CMD", "STOPSIGNAL", "VOLUME"):
        assert order.count(name) == 1
    assert "SIGTERM" in dict(stage)["STOPSIGNAL"]


def test_the_image_s_command_is_one_that_the_server_understands() -> None:
    stage = dict(last_stage())
    assert json.loads(stage["ENTRYPOINT"]) == ["gemirec"]  # no shell between: signals reach the server
    asked = parses(json.loads(stage["CMD"]))
    assert (asked["host"], asked["port"]) == ("0.0.0.0", int(stage["EXPOSE"]))
    assert str(asked["events"]).startswith(f"{json.loads(stage['VOLUME'])[0]}/")


def test_what_is_copied_is_there_and_nothing_else_is_sent() -> None:
    rules = [
        line for line in (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines() if line[:1] not in ("", "#")
    ]
    kept = [rule[1:] for rule in rules if rule.startswith("!")]
    assert rules[0] == "*"
    sources = [
        source
        for name, rest in instructions()
        if name == "COPY" and not rest.startswith("--from")
        for source in rest.split()[:-1]
    ]
    assert sorted(source.removeprefix("./") for source in sources) == sorted(kept)
    assert all((ROOT / source).exists() for source in sources)
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    needed = [*wheel["packages"], PROJECT["readme"], *PROJECT["license-files"], "pyproject.toml"]
    assert all(any(fnmatch.fnmatch(path, rule) or path.startswith(f"{rule}/") for rule in kept) for path in needed)


def test_the_image_is_small_reproducible_and_without_secrets() -> None:
    text = "\n".join(f"{name} {rest}" for name, rest in instructions())
    (extras,) = re.findall(r"\.\[([\w,]+)\]", text)
    assert set(extras.split(",")) <= set(PROJECT["optional-dependencies"])
    assert {"serve", "redis", "qdrant"} <= set(extras.split(","))
    assert "PIP_NO_CACHE_DIR=1" in text
    assert "torch.version.cuda" in text
    assert "apt-get" not in text
    assert "sudo" not in text
    assert not [rest for name, rest in instructions() if name in ("ARG", "ENV") and SECRET.search(rest)]


def probe(command: list[str], port: int) -> int:
    """Run a health check that asks port 8000, on another port."""
    words = [sys.executable if word == "python" else word.replace(":8000", f":{port}") for word in command]
    return subprocess.run(words, capture_output=True, timeout=30, check=False).returncode


@pytest.fixture
def answering() -> Iterator[tuple[dict[str, int], int]]:
    """A server whose answers to paths can be set."""
    status: dict[str, int] = {}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status.get(self.path, 404))
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield status, server.server_address[1]
        server.shutdown()


def test_the_health_checks_ask_whether_the_server_is_ready(answering: tuple[dict[str, int], int]) -> None:
    from gemirec.serving.routes import ROUTES

    status, port = answering
    in_image = json.loads(dict(last_stage())["HEALTHCHECK"].partition("CMD ")[2])
    in_compose = SERVICES["gemirec"]["healthcheck"]["test"]
    assert in_compose == ["CMD", *in_image]
    (path,) = re.findall(r"8000(/\w+)", in_image[-1])
    assert next(route.scope for route in ROUTES if route.path == path) is None  # it needs no key
    status[path] = 200
    assert probe(in_image, port) == 0
    status[path] = 503
    assert probe(in_image, port) != 0
    assert shlex.split(SERVICES["redis"]["healthcheck"]["test"][1]) == ["redis-cli"]


def test_qdrant_s_health_check_reads_the_answer(answering: tuple[dict[str, int], int]) -> None:
    status, port = answering
    _, *command = SERVICES["qdrant"]["healthcheck"]["test"]
    command[-1] = command[-1].replace("/6333", f"/{port}")
    for code in (200, 503):
        status["/readyz"] = code
        done = subprocess.run(command, capture_output=True, timeout=30, check=False)
        assert (done.returncode == 0) == (code == 200)
    command[-1] = command[-1].replace(f"/{port}", "/1")
    assert subprocess.run(command, capture_output=True, timeout=30, check=False).returncode != 0


# --- compose ------------------------------------------------------------------------------------------------------


def test_the_server_of_the_compose_file_is_one_that_serve_understands() -> None:
    service = SERVICES["gemirec"]
    asked = parses([resolved(word) for word in service["command"]])
    assert (asked["host"], asked["port"]) == ("0.0.0.0", 8000)
    assert str(asked["keys"]) == f"/run/secrets/{service['secrets'][0]}"
    mounts = [resolved(volume).split(":")[1] for volume in service["volumes"]]
    assert str(asked["artifact"]).startswith(tuple(mounts))
    assert str(asked["events"]).startswith(tuple(mounts))
    known = {p.envvar for p in VERBS.commands["serve"].params if p.envvar}  # type: ignore[attr-defined]
    assert set(service["environment"]) <= known
    assert service["environment"]["GEMIREC_REDIS_URL"].startswith("redis://redis:")
    assert (DEPLOY / service["build"]["context"] / service["build"]["dockerfile"]).exists()
    args = {rest.partition("=")[0] for name, rest in instructions() if name == "ARG"}
    assert set(service["build"]["args"]) <= args


def test_the_examples_of_the_compose_file_parse() -> None:
    lines = re.findall(r"# docker compose run --rm tools (.*)", (DEPLOY / "compose.yaml").read_text())
    assert lines
    for line in lines:
        parses(shlex.split(line))
    assert f"{SERVICES['qdrant']['networks'][0]}" == "back"
    assert all("http://qdrant:6333" in line for line in lines)


def test_services_wait_for_each_other_and_know_their_health() -> None:
    assert set(SERVICES["gemirec"]["depends_on"]) == {"redis", "qdrant"}
    for name in SERVICES["gemirec"]["depends_on"]:
        assert SERVICES["gemirec"]["depends_on"][name] == {"condition": "service_healthy"}
        assert SERVICES[name]["healthcheck"]["test"][0] == "CMD"
    running = [service for service in SERVICES.values() if "profiles" not in service]
    assert all(service["restart"] == "unless-stopped" for service in running)
    assert all(":" in resolved(service["image"]) for name, service in SERVICES.items() if name in ("redis", "qdrant"))


def test_names_of_volumes_networks_and_secrets_are_declared() -> None:
    for service in SERVICES.values():
        volumes = [resolved(volume).split(":")[0] for volume in service.get("volumes", [])]
        assert [v for v in volumes if not v.startswith((".", "/")) and v not in COMPOSE["volumes"]] == []
        assert set(service.get("networks", [])) <= set(COMPOSE["networks"])
        assert set(service.get("secrets", [])) <= set(COMPOSE["secrets"])


def test_only_the_server_can_be_reached_and_no_secret_is_baked_in() -> None:
    published = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}
    assert set(published) == {"gemirec"}
    assert all(port.startswith("127.0.0.1:") for port in published["gemirec"])
    assert COMPOSE["networks"]["back"]["internal"]
    assert [name for name in ("redis", "qdrant") if SERVICES[name]["networks"] != ["back"]] == []
    for service in SERVICES.values():
        assert service["cap_drop"] == ["ALL"]
        assert "privileged" not in service
        assert not [name for name in service.get("environment", {}) if SECRET.search(name)]
        assert not [value for value in service.get("environment", {}).values() if "@" in str(value)]
    assert all(set(secret) == {"file"} for secret in COMPOSE["secrets"].values())
    user = re.search(r"--uid (\d+)", next(rest for name, rest in last_stage() if name == "RUN"))
    assert user is not None
    assert SERVICES["gemirec"]["user"].split(":")[0] == user[1]


def test_a_stop_leaves_time_for_the_requests_in_flight() -> None:
    from gemirec.serving.config import ServeConfig

    assert int(SERVICES["gemirec"]["stop_grace_period"].removesuffix("s")) > ServeConfig().drain_s
    assert SERVICES["gemirec"]["ulimits"]["nofile"] > ServeConfig().max_connections
