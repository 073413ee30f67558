"""What the documentation says holds: generated tables are up to date, examples are right, links lead somewhere."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import numpy as np
import pytest
import yaml

from gemirec.evaluation import metrics
from gemirec.models.catalog import MODELS

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_the_worked_example_of_the_metrics() -> None:
    listed, score = np.array([[1, 2, 3, 4]]), np.array([[4.0, 3.0, 2.0, 1.0]])
    targets = np.array([3, 9, 3, 1])  # c x c a
    ranks = metrics.rank_targets(listed, score, targets, np.array([0, 4]))
    found = {name: float(values[0]) for name, values in metrics.accuracy(ranks, [4]).items()}
    found["diversity@4"] = float(metrics.category_diversity(listed, np.array([0, 1, 1, 2, 0]))[0])
    exposure = np.array([1, 1, 1, 1, 0, 0, 0, 0, 0, 0])
    found |= {"coverage@4": metrics.coverage(exposure), "gini@4": metrics.gini(exposure)}
    text = (ROOT / "docs" / "metrics.md").read_text()
    said = dict(re.findall(r"^\| `(\w+)@n` .*\| ([\d.]+) \|$", text, flags=re.MULTILINE))
    assert {f"{name}@4": value for name, value in said.items()} == {
        name: f"{value:.4f}" for name, value in found.items()
    }


def test_generated_tables_are_up_to_date() -> None:
    stale = runpy.run_path(str(ROOT / "tools" / "generate_docs.py"))["stale"]
    assert stale(ROOT) == [], "run: python tools/generate_docs.py"


def test_the_readme_lists_every_model() -> None:
    text = (ROOT / "README.md").read_text()
    assert [name for name in MODELS if f"| `{name}` |" not in text] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.name))
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text())
    missing = [target for target in targets if not (page.parent / target).exists()]
    assert missing == []


def test_every_page_is_in_the_site_s_menu() -> None:
    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]
    listed = {entry if isinstance(entry, str) else next(iter(entry.values())) for entry in nav}
    docs = ROOT / "docs"
    assert {str(page.relative_to(docs)) for page in docs.rglob("*.md")} == listed
