"""``evaluate --truth``: a model against what was planted, of a log with aspects and of one without."""

from __future__ import annotations

from pathlib import Path

import pytest

from gemirec import Recommender
from gemirec.data.dataset import Dataset
from gemirec.data.simulator import SimulatedLog
from gemirec.evaluation.planted import planted_scores
from gemirec.evaluation.planted_noise import planted_noise
from support_cli import answer, gemirec


@pytest.mark.parametrize("aspects", [0, 2])
def test_a_model_is_scored_against_the_planted_truth(aspects: int, tmp_path: Path) -> None:
    size = ["--set", "num_users=200", "--set", "num_items=400", "--set", f"aspects={aspects}"]
    gemirec("simulate", "--out", "log", *size, cwd=tmp_path)
    gemirec("prepare", "log/interactions.parquet", "--items", "log/items.parquet", "--out", "data", cwd=tmp_path)
    small = ["--set", "training.steps=20", "--set", "model.dim=8", "--set", "training.eval_every=0"]
    gemirec("train", "data", "--out", "run", *small, cwd=tmp_path)
    found = answer("evaluate", "run/artifact", "data", "--truth", "log", cwd=tmp_path)["planted"]
    model = Recommender.from_pretrained(tmp_path / "run/artifact").model
    log, data = SimulatedLog.open(tmp_path / "log"), Dataset.open(tmp_path / "data")
    wanted = planted_scores(model, data, log, "test") | (planted_noise(model, data, log) if aspects else {})
    assert found == pytest.approx(wanted, nan_ok=True)
    assert ("interest_noise" in found) == bool(aspects)
