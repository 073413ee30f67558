"""Whole user stories through the command line, in a folder of their own."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

from gemirec.data.simulator import SimulatorConfig, simulate
from support_cli import answer, gemirec

SMALL = ["--set", "training.steps=20", "--set", "model.dim=8", "--set", "training.eval_every=10"]
README = Path(__file__).parents[2] / "README.md"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small simulated log."""
    home = tmp_path_factory.mktemp("home")
    simulate(home / "log", SimulatorConfig(num_users=250, num_items=400))
    return home


def test_the_readme_s_commands_run_as_they_are_written(tmp_path: Path) -> None:
    """Every command of the section, in order; only the sizes are small."""
    section = README.read_text().partition("## Command line")[2].partition("```sh\n")[2].partition("```")[0]
    small = {
        "simulate": ["--set", "num_users=250", "--set", "num_items=400"],
        "train": SMALL,
        "doctor": ["--no-self-test"],
    }
    lines = [shlex.split(line) for line in section.splitlines() if line]
    assert [words[1] for words in lines] == ["simulate", "prepare", "train", "evaluate", "recommend", "doctor"]
    printed = {words[1]: gemirec(*words[1:], *small.get(words[1], []), cwd=tmp_path).stdout for words in lines}
    assert re.search(r"^ *fingerprint +[0-9a-f]{64}$", printed["prepare"], flags=re.MULTILINE)
    assert "recall@50" in printed["evaluate"]
    assert printed["recommend"].count("model") + printed["recommend"].count("popularity") >= 5
    assert pl.read_parquet(tmp_path / "scores" / "users.parquet").height == 25
    assert json.loads((tmp_path / "scores" / "evaluation.json").read_text())["metrics"]["recall@50"] > 0


def test_a_program_drives_the_road_by_json(home: Path, tmp_path: Path) -> None:
    data = answer(
        "prepare", home / "log/interactions.parquet", "--items", home / "log/items.parquet", "-o", "data", cwd=tmp_path
    )
    assert data["users"] == 250
    assert sum(data["split"].values()) == 250
    run = answer("train", "data", "--out", "run", *SMALL, cwd=tmp_path)
    assert run["steps"] == 20
    assert run["fingerprint"] == data["fingerprint"]
    scores = answer("evaluate", run["artifact"], "data", "--set", "split=valid", "--set", "top_n=[5,10]", cwd=tmp_path)
    assert scores["settings"]["split"] == "valid"
    assert scores["settings"]["dataset_fingerprint"] == data["fingerprint"]
    assert set(scores["intervals"]["recall@10"]) != {scores["metrics"]["recall@10"]}
    known = answer("recommend", run["artifact"], "--user", "3", "--user", "200", "-k", "4", cwd=tmp_path)[
        "recommendations"
    ]
    assert [(row["user_id"], row["rank"]) for row in known] == [(u, r) for u in (3, 200) for r in (1, 2, 3, 4)]
    log = pl.read_parquet(home / "log/interactions.parquet").filter(pl.col("user_id").is_in([3, 200]))
    log.write_parquet(tmp_path / "new.parquet")
    raw = answer(
        "recommend", run["artifact"], "--histories", "new.parquet", "-k", "4", "-o", "out.parquet", cwd=tmp_path
    )["recommendations"]
    lists = [{(row["user_id"], row["rank"], row["item_id"], row["score"]) for row in rows} for rows in (known, raw)]
    assert lists[0] == lists[1]  # items that the filter took out are counted as skipped, and change nothing else
    assert pl.read_parquet(tmp_path / "out.parquet").to_dicts() == raw
    (tmp_path / "shelf.txt").write_text("\n".join(map(str, log["item_id"].unique().to_list())))
    shelf = answer(
        "recommend", run["artifact"], "--history", "no-such-item", "--allow", "shelf.txt", "-k", "3", cwd=tmp_path
    )["recommendations"]
    assert {row["source"] for row in shelf} == {"popularity"}
    assert {row["item_id"] for row in shelf} <= set(log["item_id"])


def test_a_csv_log_with_its_own_column_names_and_string_ids(home: Path, tmp_path: Path) -> None:
    log = pl.read_parquet(home / "log/interactions.parquet")
    odd = log.select(
        visitor=pl.lit("v") + pl.col("user_id").cast(pl.String),
        sku=pl.lit("s") + pl.col("item_id").cast(pl.String),
        at=pl.col("timestamp"),
        kind=pl.when(pl.int_range(pl.len()) % 10 == 0).then(pl.lit("view")).otherwise(pl.lit("buy")),
    )
    odd.write_csv(tmp_path / "clicks.csv")
    (tmp_path / "prepare.yaml").write_text(
        "columns: {user: visitor, item: sku, timestamp: at, event: kind}\nevents: [buy]\n"
    )
    data = answer("prepare", "clicks.csv", "--out", "data", "--config", "prepare.yaml", cwd=tmp_path)
    assert data["steps"][0]["events"] == log.height
    assert data["events"] <= log.height * 0.91
    run = answer("train", "data", "--out", "run", "--model", "item_mean", *SMALL, cwd=tmp_path)
    items = answer("recommend", run["artifact"], "--user", "v7", "--user", "v9", "-k", "2", cwd=tmp_path)[
        "recommendations"
    ]
    assert [row["user_id"] for row in items] == ["v7", "v7", "v9", "v9"]
    assert all(re.fullmatch(r"s\d+", row["item_id"]) for row in items)


def test_training_goes_on_after_an_interruption(home: Path, tmp_path: Path) -> None:
    gemirec("prepare", home / "log/interactions.parquet", "--out", "data", cwd=tmp_path)
    settings = [*SMALL, "--set", "training.checkpoint_every=5", "--set", "training.log_every=5"]
    whole = answer("train", "data", "--out", "whole", *settings, cwd=tmp_path)
    stop = (
        "import os, gemirec.training.tracking as t; log = t.Tracker.log\n"
        "def die(self, kind, step, *rest):\n"
        "    log(self, kind, step, *rest)\n"
        "    if step >= 15: os.kill(os.getpid(), 9)\n"
        "t.Tracker.log = die\n"
        "from gemirec.cli import main; main()"
    )
    command = [sys.executable, "-c", stop, "train", "data", "--out", "cut", *settings]
    assert subprocess.run(command, cwd=tmp_path, capture_output=True, timeout=300).returncode == -9
    assert not (tmp_path / "cut/artifact").exists()
    refused = gemirec("train", "data", "--out", "cut", *settings, cwd=tmp_path, code=2)
    assert "--resume" in refused.stderr
    resumed = answer("train", "data", "--out", "cut", *settings, "--resume", cwd=tmp_path)
    assert resumed["steps"] == whole["steps"] == 20
    weights = [(tmp_path / run / "artifact/model.safetensors").read_bytes() for run in ("whole", "cut")]
    assert weights[0] == weights[1]


def test_the_demo_on_a_log_and_again(home: Path, tmp_path: Path) -> None:
    """Items and users beside the log are found; a second run replaces the first; strangers' folders are left alone."""
    words: list[str | Path] = [
        "demo",
        "--log",
        home / "log/interactions.parquet",
        "--out",
        "demo",
        "--set",
        "training.steps=15",
    ]
    words += ["--set", "training.eval_every=0", "--set", "model.dim=8", "--set", "users=2"]
    report = answer(*words, cwd=tmp_path)
    assert [row["model"] for row in report["metrics"]] == [
        "popularity", "item_mean", "single_vector", "comirec_sa K=1", "comirec_sa",
    ]  # fmt: skip
    for row in report["metrics"]:
        for metric in ("recall@20", "recall@50", "hr@50", "ndcg@50"):
            low, high = row[f"{metric} interval"]
            assert low <= row[metric] <= high
    assert len(report["users"]) == 2
    assert "[" in report["users"][0]["history"][0]  # the category came along
    assert json.loads((tmp_path / "demo/demo.json").read_text()) == report
    text = gemirec(*words, "--quiet", cwd=tmp_path).stdout
    for part in (
        "fingerprint",
        report["data"]["fingerprint"],
        "comirec_sa K=1",
        "interest 0",
        "merged",
        "demo/artifact",
    ):
        assert part in text
    command = next(line for line in text.splitlines() if "gemirec recommend" in line)
    assert gemirec(*shlex.split(command)[1:], cwd=tmp_path).stdout
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("years of work")
    refused = gemirec("demo", "--out", "mine", cwd=tmp_path, code=2)
    assert "not a demo" in refused.stderr
    assert (tmp_path / "mine/thesis.txt").read_text() == "years of work"


def test_the_doctor_trains_and_recommends(tmp_path: Path) -> None:
    result = answer("doctor", cwd=tmp_path)
    assert result["ok"]
    assert result["self_test"]["recall_at_50"] > result["self_test"]["recall_at_50_of_popularity"]
    assert result["packages"]["polars"] == pl.__version__
    assert set(result["extras"]) >= {
        "faiss",
        "serve",
        "spark",
        "distributed",
        "redis",
        "qdrant",
        "tracking",
        "plots",
        "tune",
    }
    assert list(tmp_path.iterdir()) == []
