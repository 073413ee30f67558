"""What is shipped: the wheel's files, the extras, the entry point."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

from gemirec.models.catalog import MODELS, PROFILES

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_the_extras_are_the_documented_ones() -> None:
    extras = set(PROJECT["optional-dependencies"])
    engines = {"faiss", "serve", "spark", "distributed", "redis", "qdrant", "export"}
    documented = engines | {"tracking", "plots", "tune", "all"}
    assert extras == documented | {"dev", "docs"}
    listed = (ROOT / "README.md").read_text().partition("Extras:")[2].partition("\n\n")[0]
    assert [extra for extra in extras if f"`{extra}`" not in listed] == []


def test_a_plain_install_pins_no_torch_build() -> None:
    torch = next(line for line in PROJECT["dependencies"] if line.startswith("torch"))
    assert "==" not in torch
    assert "<" not in torch


def test_the_entry_point_resolves() -> None:
    found = next(e for e in metadata.entry_points(group="console_scripts") if e.name == "gemirec")
    assert callable(found.load())


@pytest.mark.slow
def test_the_wheel_holds_everything_it_needs(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "build", "--wheel", "--outdir", str(tmp_path), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True, timeout=600)
    (wheel,) = tmp_path.glob("gemirec-*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    sources = {str(path.relative_to(ROOT / "src")) for path in (ROOT / "src").rglob("*.py")}
    assert sources <= names
    assert "gemirec/py.typed" in names
    assert {f"gemirec/profiles/{name}.{profile}.yaml" for name in MODELS for profile in PROFILES} <= names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert not [name for name in names if name.startswith(("tests", "docs", "benchmarks"))]


def make(*words: str) -> str:
    """What make says it would do."""
    command = ["make", "-n", "--no-print-directory", "-C", str(ROOT), *words]
    env = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60, env=env).stdout


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not here")
def test_make_demo_hands_its_variables_to_the_verb() -> None:
    script = make("demo", "LOG=my log.parquet", "ITEMS=i.parquet", "USERS=u.parquet", "MODEL=mind", "OUT=there")
    words = shlex.split(script.replace("\\\n", " ").splitlines()[-1])
    expected = shlex.split("demo --log 'my log.parquet' --items i.parquet --users u.parquet --model mind --out there")
    assert words[1:] == expected
    plain = shlex.split(make("demo").replace("\\\n", " ").splitlines()[-1])
    assert plain[1:] == ["demo", "--out", "demo"]


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not here")
@pytest.mark.parametrize("target", ["demo", "test", "lint", "wheel"])
def test_each_target_sets_up_what_it_needs_and_only_once(target: str, tmp_path: Path) -> None:
    assert "tools/setup.sh" in make(target, f"VENV={tmp_path}")
    (tmp_path / ".gemirec-ready").touch()
    assert "tools/setup.sh" not in make(target, f"VENV={tmp_path}")


def test_the_repository_names_no_registry() -> None:
    files = [ROOT / "Makefile", ROOT / "pyproject.toml", *(ROOT / "tools").glob("*"), ROOT / ".ci" / "run"]
    assert [file.name for file in files if file.is_file() and "://" in file.read_text()] == []
