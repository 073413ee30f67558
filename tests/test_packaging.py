"""What is shipped: the wheel's files, the extras, the entry point."""

from __future__ import annotations

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
    assert extras == {
        *[
            "faiss",
            "serve",
            "spark",
            "distributed",
            "redis",
            "qdrant",
            "tracking",
            "plots",
            "tune",
            "all",
            "dev",
            "docs",
        ]
    }
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
