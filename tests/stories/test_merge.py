"""What ``evaluate`` measures under a merge is what ``recommend`` serves with it: the whole road by the command line."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from gemirec.data.batches import evaluation_batches
from gemirec.data.dataset import Dataset
from gemirec.data.simulator import SimulatorConfig, simulate
from support_cli import answer, gemirec

KINDS: list[tuple[list[str], dict[str, object]]] = [
    (["--merge", "diverse", "--diversity", "0.5"], {"kind": "diverse", "diversity": 0.5}),
    (["--merge", "diverse", "--diversity", "2", "--pool", "2"], {"kind": "diverse", "diversity": 2, "pool": 2}),
    (["--merge", "quota"], {"kind": "quota"}),
    (["--merge", "quota", "--quota", "3,1"], {"kind": "quota", "quota": [3, 1]}),
]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained model, and the test users' histories as a file."""
    home = tmp_path_factory.mktemp("home")
    log = simulate(home / "log", SimulatorConfig(num_users=250, num_items=400))
    gemirec("prepare", log.interactions, "--items", "log/items.parquet", "-o", "data", cwd=home)
    small = ["--set", "training.steps=20", "--set", "model.dim=8", "--set", "training.eval_every=0"]
    gemirec("train", "data", "--out", "run", *small, cwd=home)
    rows = [(user, item) for user, (history, _) in held_out(home).items() for item in history]
    pl.DataFrame(rows, schema=["user_id", "item_id"], orient="row").write_parquet(home / "held.parquet")
    return home


def held_out(home: Path) -> dict[Any, tuple[list[Any], set[Any]]]:
    """History and targets of every test user, in the log's ids."""
    data, out = Dataset.open(home / "data"), {}
    for window in evaluation_batches(data, "test", batch_size=1, max_length=1):
        user = data.users["user_id"][int(window.user_B[0])]
        history, targets = (
            data.items["item_id"].gather(part.numpy() - 1).to_list() for part in (window.seen_E, window.target_E)
        )
        out[user] = (history, set(targets))
    return out


@pytest.mark.parametrize(("words", "fields"), KINDS, ids=[" ".join(words) for words, _ in KINDS])
def test_evaluate_measures_what_recommend_serves(home: Path, words: list[str], fields: dict[str, object]) -> None:
    users = held_out(home)
    category = dict(pl.read_parquet(home / "data/items.parquet").select("item_id", "category_index").iter_rows())
    asked = [word for key, value in fields.items() for word in ("--set", f"merge.{key}={value}".replace(" ", ""))]
    asked += ["--set", "top_n=[5,10]", "--set", "exclude_seen=true", "--out", "scores"]
    scores = answer("evaluate", "run/artifact", "data", *asked, cwd=home)
    assert scores["settings"]["merge"] == {"diversity": 0.0, "pool": 4, "quota": "equal"} | fields
    default = answer("evaluate", "run/artifact", "data", *asked[-6:], cwd=home)["metrics"]
    assert scores["metrics"]["diversity@10"] != default["diversity@10"]
    table = pl.read_parquet(home / "scores/users.parquet")  # of the default
    for n in (5, 10):
        rows = answer("recommend", "run/artifact", "--histories", "held.parquet", "-k", str(n), *words, cwd=home)
        lists: dict[Any, list[Any]] = {}
        for row in rows["recommendations"]:
            assert row["source"] == "model"
            lists.setdefault(row["user_id"], []).append(row["item_id"])
        assert {len(items) for items in lists.values()} == {n}
        recall = [len(set(lists[user]) & targets) / len(targets) for user, (_, targets) in users.items()]
        apart = [np.mean([category[a] != category[b] for a, b in combinations(lists[user], 2)]) for user in users]
        shown = {item for items in lists.values() for item in items}
        metrics = scores["metrics"]
        assert metrics[f"recall@{n}"] == pytest.approx(np.mean(recall), abs=1e-12)
        assert metrics[f"diversity@{n}"] == pytest.approx(np.mean(apart), abs=1e-12)
        assert metrics[f"coverage@{n}"] == pytest.approx(len(shown) / len(category))
    assert table["user_id"].to_list() == list(users)
    served = answer("recommend", "run/artifact", "--histories", "held.parquet", "-k", "10", cwd=home)["recommendations"]
    assert [item for items in table["items"].to_list() for item in items] == [row["item_id"] for row in served]


def test_the_terminal_says_how_lists_were_merged(home: Path) -> None:
    asked = ["--set", "merge.kind=quota", "--set", "bootstrap=0"]
    assert "merge.kind" in gemirec("evaluate", "run/artifact", "data", *asked, cwd=home).stdout
    assert "merge" not in gemirec("evaluate", "run/artifact", "data", *asked[2:], cwd=home).stdout
