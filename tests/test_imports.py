"""Importing the package is cheap and changes nothing; asked in a fresh interpreter each time."""

from __future__ import annotations

import json
import subprocess
import sys

from gemirec.cli import app

HEAVY = ("torch", "polars", "numpy", "pyarrow", "accelerate", "pandas")


def fresh(code: str) -> object:
    """Run ``code`` in a new interpreter; it prints one JSON value."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    return json.loads(done.stdout.splitlines()[-1])


def test_import_gemirec_loads_no_heavy_package() -> None:
    assert fresh(f"import sys, json, gemirec; print(json.dumps([m for m in {HEAVY!r} if m in sys.modules]))") == []


def test_every_help_loads_no_heavy_package() -> None:
    code = f"""
import contextlib, io, json, sys
from gemirec.cli import app
out = {{}}
for verb in ([], *([(c.name or c.callback.__name__).replace("_", "-")] for c in app.registered_commands)):
    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
        app([*verb, "--help"])
    assert "Usage" in text.getvalue(), verb
    out[" ".join(verb)] = [m for m in {HEAVY!r} if m in sys.modules]
print(json.dumps(out))
"""
    commands = [command for command in app.registered_commands if command.callback]
    names = [command.name or getattr(command.callback, "__name__", "") for command in commands]
    verbs = ("", *(name.replace("_", "-") for name in names))
    assert fresh(code) == {verb: [] for verb in verbs}


def test_importing_everything_changes_no_global_of_torch() -> None:
    code = """
import json, random
import numpy as np
import torch

def state():
    return [
        torch.get_num_threads(), torch.get_num_interop_threads(), torch.is_anomaly_enabled(),
        str(torch.get_default_dtype()),
        torch.is_grad_enabled(), torch.are_deterministic_algorithms_enabled(), torch.initial_seed(),
        torch.get_rng_state().sum().item(), torch.get_float32_matmul_precision(), torch.backends.cudnn.benchmark,
        torch.backends.cuda.matmul.allow_tf32, str(torch.get_default_device()), random.getstate()[1][:5],
        int(np.random.get_state()[1].sum()), np.geterr(),
    ]

before = json.dumps(state())
import importlib, pkgutil
import gemirec
names = [m.name for m in pkgutil.walk_packages(gemirec.__path__, "gemirec.")]
for name in names:
    importlib.import_module(name)
print(json.dumps([before == json.dumps(state()), len(names) > 30]))
"""
    assert fresh(code) == [True, True]


def test_public_names_resolve() -> None:
    assert (
        fresh("import json, gemirec; print(json.dumps([hasattr(gemirec, n) for n in gemirec.__all__]))") == [True] * 5
    )
