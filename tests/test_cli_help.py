"""The help teaches: every verb has examples, and every example is a command that the verb understands."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer

import gemirec
from gemirec.cli import app

VERBS = (
    "prepare",
    "simulate",
    "train",
    "evaluate",
    "recommend",
    "extend",
    "compare",
    "cache",
    "index",
    "export",
    "probe",
    "ablate",
    "picture",
    "serve",
    "ab-report",
    "bench",
    "demo",
    "doctor",
)
ROOT = typer.main.get_command(app)


def examples(verb: str) -> list[list[str]]:
    """The commands of a verb's help, as words; continued lines are joined, remarks dropped."""
    command = ROOT.commands[verb]  # type: ignore[attr-defined]
    text = (command.callback.__wrapped__ if hasattr(command.callback, "__wrapped__") else command.callback).__doc__
    joined = text.replace("\\\n", " ")
    lines = [line.strip() for line in joined.splitlines() if line.strip().startswith("gemirec ")]
    return [shlex.split(line.partition(" > ")[0], comments=True)[1:] for line in lines]


def test_the_installed_script_answers() -> None:
    script = Path(sys.executable).with_name("gemirec")
    done = subprocess.run([script, "--version"], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == gemirec.__version__


def test_the_verbs_are_these() -> None:
    assert sorted(ROOT.commands) == sorted(VERBS)  # type: ignore[attr-defined]


@pytest.mark.parametrize("verb", VERBS)
def test_examples_of_the_help_parse(verb: str) -> None:
    found = examples(verb)
    assert found
    command = ROOT.commands[verb]  # type: ignore[attr-defined]
    for words in found:
        assert words[0] == verb
        with command.make_context(verb, words[1:], resilient_parsing=False):
            pass


@pytest.mark.parametrize("verb", VERBS)
def test_every_option_has_help_and_every_verb_has_json(verb: str) -> None:
    command = ROOT.commands[verb]  # type: ignore[attr-defined]
    options = {name: parameter for parameter in command.params for name in getattr(parameter, "opts", [])}
    assert "--json" in options
    assert [name for name, parameter in options.items() if not parameter.help] == []


def test_the_makefile_knows_the_demo_s_options() -> None:
    text = Path(__file__).parents[1].joinpath("Makefile").read_text()
    demo = ROOT.commands["demo"]  # type: ignore[attr-defined]
    options = {name for parameter in demo.params for name in parameter.opts}
    for option in ("--log", "--items", "--users", "--model", "--out"):
        assert option in text
        assert option in options
