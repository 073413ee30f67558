"""The command line inside the test's process: a process of its own would import torch anew for each verb."""

from __future__ import annotations

import contextlib
import io
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gemirec.cli import app


@dataclass(frozen=True)
class Done:
    """What a verb printed."""

    stdout: str
    stderr: str


def gemirec(*words: str | Path, cwd: Path, code: int = 0) -> Done:
    """Run a verb in ``cwd`` and hold its exit code against ``code``."""
    out, err, before = io.StringIO(), io.StringIO(), dict(os.environ)
    try:
        with contextlib.chdir(cwd), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            app([str(word) for word in words])
    except SystemExit as left:
        found = left.code or 0
    finally:
        os.environ.clear()
        os.environ.update(before)
    assert found == code, f"exit code {found}\n{out.getvalue()}\n{err.getvalue()}"
    return Done(out.getvalue(), err.getvalue())


def answer(*words: str | Path, cwd: Path) -> Any:
    """Run a verb with ``--json`` and read what it prints; nothing but one JSON value may be on stdout."""
    return json.loads(gemirec(*words, "--json", cwd=cwd).stdout)
