"""The README's Python, executed as it is written on a small log."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from gemirec.data.simulator import SimulatorConfig, simulate

README = Path(__file__).parents[1] / "README.md"


def test_ten_lines_from_parquet_to_an_unseen_history(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)
    assert len(blocks) == 1
    code = blocks[0]
    assert len([line for line in code.splitlines() if line.strip()]) <= 10
    log = simulate(tmp_path / "log", SimulatorConfig(num_users=250, num_items=400))
    log.interactions.rename(tmp_path / "events.parquet")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(compile(code.replace("training.steps=300", "training.steps=30"), str(README), "exec"), names)
    printed = capsys.readouterr().out
    assert 0 < float(printed.splitlines()[0]) < 1
    table = names["recommender"].recommend(histories=[names["history"]], k=10)
    assert table.height == 10
    assert str(table) in printed
    assert not set(table["item_id"]) & set(names["history"])
    assert (tmp_path / "artifact" / "model.safetensors").exists()
    assert isinstance(names["log"], pl.DataFrame)
