"""Items without interactions in the recommender: held-out ones are found, trained ones stay, files keep them."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from torch.nn import functional as F

from gemirec.config import MergeConfig
from gemirec.data.dataset import Dataset
from gemirec.data.simulator import SimulatorConfig, simulate
from gemirec.errors import ArtifactError, ConfigError, DataError, GemirecError
from gemirec.recommender import Recommender
from gemirec.retrieval.cold_start import ColdItems
from gemirec.retrieval.index import ExactIndex
from support_cli import answer, gemirec

SIMULATED = SimulatorConfig(num_users=1000, num_items=600, num_super_clusters=6, clusters_per_super=4, noise=0.05)
QUICK = ["model.dim=16", "training.steps=100", "training.learning_rate=0.02", "training.eval_every=0"]
QUICK += ["model.loss.num_negatives=100"]
NEW = pl.DataFrame({"item_id": ["new-a", "new-b", "new-c"], "category": ["c1", "c4", "c1"], "colour": ["red"] * 3})


@dataclass(frozen=True)
class Held:
    """A log without a tenth of its items, a model trained on it, and users whose next items are among that tenth."""

    recommender: Recommender
    items: pl.DataFrame
    new: pl.DataFrame
    histories: dict[Any, list[int]]
    targets: dict[Any, list[int]]

    def recall(self, recommender: Recommender, n: int = 20) -> float:
        """Mean share of a user's held-out targets among its n best items, over the whole catalogue."""
        table = recommender.recommend(histories=self.histories, k=n)
        listed = dict(table.group_by("user_id").agg("item_id").iter_rows())
        return float(np.mean([np.isin(items, listed[user]).mean() for user, items in self.targets.items()]))

    def with_vectors(self, vector_CD: torch.Tensor) -> Recommender:
        """A recommender that serves these vectors for the new items."""
        added = self.recommender.with_new_items(self.new)
        assert added.cold is not None
        cold: ColdItems = replace(added.cold, vector_CD=vector_CD)
        return Recommender(added.info, added.model, added.catalog.items, added._histories, cold=cold)


@pytest.fixture(scope="module")
def held(tmp_path_factory: pytest.TempPathFactory) -> Held:
    log = simulate(tmp_path_factory.mktemp("held") / "log", SIMULATED)
    events, items = pl.read_parquet(log.interactions), pl.read_parquet(log.items)
    vectors = pl.read_parquet(log.path / "truth_items.parquet").select("item_id", "vector")
    items = items.join(vectors, on="item_id", maintain_order="left")
    rng = np.random.default_rng(0)
    cold = items["item_id"].sample(60, seed=0)
    is_cold = pl.col("item_id").is_in(cold.implode())
    recommender = Recommender.fit(events.filter(~is_cold), items=items, model="comirec_sa", overrides=QUICK)
    assert recommender.dataset is not None
    untrained = recommender.dataset.users.filter(pl.col("split") != "train")["user_id"]
    events = events.filter(pl.col("user_id").is_in(untrained.implode())).sort("user_id", "timestamp")
    early = pl.int_range(pl.len()).over("user_id") < 0.7 * pl.len().over("user_id")
    histories = dict(events.filter(early & ~is_cold).group_by("user_id").agg("item_id").iter_rows())
    targets = dict(events.filter(~early & is_cold).group_by("user_id").agg(pl.col("item_id").unique()).iter_rows())
    targets = {user: found for user, found in targets.items() if user in histories}
    new = items.filter(is_cold).sample(fraction=1.0, shuffle=True, seed=int(rng.integers(9)))
    return Held(recommender, items, new, {user: histories[user] for user in targets}, targets)


KINDS: dict[str, dict[str, Any]] = {
    "category": {"categories": ["category"], "texts": []},
    "finer category": {"categories": ["subcategory"], "texts": []},
    "text": {"categories": [], "texts": ["title"]},
    "vectors": {"categories": [], "texts": [], "vectors": ["vector"]},
    "all": {"categories": ["category", "subcategory"], "vectors": ["vector"]},
}


@pytest.mark.parametrize("kind", KINDS)
def test_held_out_new_items_are_found_by_their_features(kind: str, held: Held) -> None:
    found = held.recall(held.recommender.with_new_items(held.new, **KINDS[kind]))
    item_ND = held.recommender.model.item_vectors().detach()[1:]
    random_CD = F.normalize(torch.randn(60, 16, generator=torch.Generator().manual_seed(1)), dim=1)
    mean_CD = F.normalize(item_ND.mean(0), dim=0).expand(60, 16)
    by_chance, by_mean = held.recall(held.with_vectors(random_CD)), held.recall(held.with_vectors(mean_CD.contiguous()))
    assert len(held.targets) > 100
    assert found > 1.7 * by_mean > 5 * by_chance
    assert found > 0.25


def test_a_boost_brings_new_items_more_or_less_often(held: Held) -> None:
    def share(boost: float) -> float:
        wider = held.recommender.with_new_items(held.new, boost=boost)
        listed = wider.recommend(histories=held.histories, k=20)["item_id"]
        return float(np.isin(listed, held.new["item_id"]).mean())

    assert share(0.5) < share(1.0) < share(1.5)


def test_trained_items_stay_bit_for_bit(recommender: Recommender) -> None:
    users = [f"user-{number}" for number in range(40)]
    before, interests = recommender.recommend(users=users, k=15), recommender.interests(users=users, items=5)
    wider = recommender.with_new_items(NEW)
    own = recommender.catalog.items["item_id"]
    assert wider.recommend(users=users, k=15, allow=own).equals(before)
    assert wider.interests(users=users, items=5, allow=own).equals(interests)
    together = wider.recommend(users=users, k=18)
    kept = together.filter(~pl.col("item_id").is_in(NEW["item_id"].implode())).group_by("user_id", maintain_order=True)
    listed = kept.agg(pl.col("item_id").head(15), pl.col("score").head(15)).explode("item_id", "score")
    assert listed.equals(before.select("user_id", "item_id", "score"))
    assert recommender.recommend(users=users, k=15).equals(before)
    assert recommender.cold is None
    assert recommender.catalog.items.height == 120


def test_new_items_are_candidates_like_others(recommender: Recommender) -> None:
    wider = recommender.with_new_items(NEW)
    history = ["item-2", "item-8", "item-14", "item-20"]  # category c1
    alone = wider.recommend(histories=[history], k=3, allow=NEW["item_id"])
    assert alone["item_id"].to_list() == ["new-a", "new-c", "new-b"]  # equal features, equal scores: by index
    assert alone["source"].unique().to_list() == ["model"]
    near = wider.similar_items(["new-a", "item-2"], k=12)
    own = near.filter(pl.col("item_id") == "new-a")["similar_item_id"].to_list()
    assert own[0] == "new-c"
    assert all((int(item.removeprefix("item-")) - 1) % 6 == 1 for item in own[1:6])
    row = wider.catalog.items.filter(pl.col("item_id") == "new-b")
    assert row.select("count", "train_count", "category", "category_index").row(0) == (0, 0, "c4", 5)
    merged = wider.recommend(histories=[history], k=5, merge=MergeConfig(kind="diverse", diversity=0.5))
    assert merged["item_id"].n_unique() == 5


def test_a_new_item_in_a_history_is_read_as_its_stand_in_and_not_recommended_again(recommender: Recommender) -> None:
    wider = recommender.with_new_items(NEW)
    assert wider.cold is not None
    near = dict(zip(NEW["item_id"], wider.catalog.ids(wider.cold.stand_in_C.numpy()), strict=True))
    history = ["item-5", "new-a", "item-11", "new-b"]
    read = [near.get(item, item) for item in history]
    table = wider.recommend(histories=[history], k=130)
    assert not set(table["item_id"]) & set(history)
    assert len(table) == 123 - 4
    assert table["skipped"].unique().to_list() == [0]
    as_read = wider.recommend(histories=[read], k=130, exclude_seen=False).filter(~pl.col("item_id").is_in(history))
    assert table["score"].to_list() == as_read["score"].to_list()
    assert table["item_id"].to_list() == as_read["item_id"].to_list()
    only = wider.recommend(histories=[["new-a"]], k=5)
    assert only["source"].unique().to_list() == ["model"]
    formed = wider.explain(histories=[history])["history"].explode().unique()
    assert set(formed) <= set(history)
    assert {"new-a", "new-b"} & set(formed)


def test_an_untrained_item_of_the_log_counts_as_new(planted: Dataset, recommender: Recommender) -> None:
    items = planted.items.with_columns(
        train_count=pl.when(pl.col("item_id") == "item-9").then(0).otherwise("train_count")
    )
    part = Recommender(recommender.info, recommender.model, items, recommender._histories)
    table = pl.DataFrame({"item_id": ["item-9", "new-a"], "category": ["c2", "c2"]})
    wider = part.with_new_items(table)
    assert wider.cold is not None
    assert wider.cold.index_C.tolist() == [9, 121]
    assert torch.equal(wider.cold.vector_CD[0], wider.cold.vector_CD[1])
    index = wider._search.index
    assert isinstance(index, ExactIndex)
    assert torch.equal(index._vector_ND[8], wider.cold.vector_CD[0])
    again = wider.with_new_items(pl.DataFrame({"item_id": ["new-z", "new-a"], "category": ["c0", "c3"]}))
    assert again.cold is not None
    assert again.cold.index_C.tolist() == [9, 121, 122]
    assert torch.equal(again.cold.vector_CD[0], wider.cold.vector_CD[0])
    assert not torch.equal(again.cold.vector_CD[1], wider.cold.vector_CD[1])
    assert [call["items"] for call in again.info.new_items] == [2, 2]


def test_features_of_known_items_may_come_with_the_call(recommender: Recommender) -> None:
    own = recommender.catalog.items.select("item_id", tag="category")
    new = NEW.select("item_id", tag="category")
    with pytest.raises(ConfigError, match="known items has no column 'tag'"):
        recommender.with_new_items(new, categories=["tag"])
    given = recommender.with_new_items(
        pl.concat([new, own]), categories=["tag"], existing="skip", known=own.sample(fraction=1.0, shuffle=True)
    )
    expected = recommender.with_new_items(NEW)
    assert given.cold is not None
    assert expected.cold is not None
    assert torch.equal(given.cold.vector_CD, expected.cold.vector_CD)


WRONG: list[tuple[dict[str, Any], str, str, str]] = [
    ({"item_id": ["item-3", "x"], "category": ["c1", "c1"]}, "trained on 1 of 2", "item-3", "existing=skip"),
    ({"item_id": ["x", "x"], "category": ["c1", "c2"]}, "occurs more than once", "x", "one row per item"),
    ({"item_id": ["x", None], "category": ["c1", "c2"]}, "cannot be read", "None", "id of that type"),
    ({"id": ["x"], "category": ["c1"]}, "no column 'item_id'", "id, category", "rename"),
    ({"item_id": ["x"], "category": ["?"]}, "nothing that is said", "?", "other columns"),
    ({"item_id": ["x"], "colour": ["red"]}, "no side feature is named", "colour", "texts="),
    ({"item_id": [], "category": []}, "table of new items is empty", "0 rows", "rows"),
]


@pytest.mark.parametrize(("table", "what", "got", "fix"), WRONG)
def test_tables_that_cannot_be_added(
    table: dict[str, Any], what: str, got: str, fix: str, recommender: Recommender
) -> None:
    with pytest.raises(GemirecError, match=what) as caught:
        recommender.with_new_items(pl.DataFrame(table, strict=False))
    assert got in caught.value.got
    assert fix in caught.value.fix


def test_calls_that_cannot_be_met(held: Held, planted: Dataset, recommender: Recommender) -> None:
    with pytest.raises(DataError, match="cannot be read") as caught:
        held.recommender.with_new_items(NEW)  # its ids are whole numbers
    assert "new-a" in caught.value.got
    with pytest.raises(DataError, match="no item is new"):
        recommender.with_new_items(planted.items, existing="skip")
    with pytest.raises(ConfigError, match="unknown key") as unknown:
        recommender.with_new_items(NEW, strenght=3.0)
    assert "strength" in unknown.value.fix
    with pytest.raises(ConfigError, match="learns no item vectors"):
        Recommender.fit(planted, model="popularity").with_new_items(NEW)


@pytest.fixture
def saved(recommender: Recommender, tmp_path: Path) -> Path:
    return recommender.with_new_items(NEW).save_pretrained(tmp_path / "artifact")


def test_files_keep_new_items(recommender: Recommender, saved: Path) -> None:
    wider, loaded = recommender.with_new_items(NEW), Recommender.from_pretrained(saved)
    histories = [["item-5", "new-a", "item-11"], ["item-3"], ["?"]]
    assert loaded.recommend(histories=histories, k=30).equals(wider.recommend(histories=histories, k=30))
    assert loaded.recommend(users=["user-3"], k=30).equals(wider.recommend(users=["user-3"], k=30))
    assert loaded.catalog.items.equals(wider.catalog.items)
    assert loaded.info.new_items[0]["fingerprint"] == wider.info.new_items[0]["fingerprint"]
    assert {file.suffix for file in saved.iterdir()} == {".json", ".safetensors", ".parquet", ".md"}
    facts = json.loads((saved / "artifact.json").read_text())
    assert facts["num_items"] == 120
    assert facts["new_items"][0]["items"] == 3
    assert facts["new_items"][0]["config"]["strength"] == 3.0
    assert "items without interactions, by their side features: 3" in (saved / "README.md").read_text()


@pytest.mark.parametrize("name", ["new_items.parquet", "new_items.safetensors"])
def test_damaged_files_of_new_items_are_found(name: str, saved: Path) -> None:
    file = saved / name
    whole = file.read_bytes()
    file.write_bytes(b"\xff" * len(whole))
    with pytest.raises(ArtifactError, match="damaged"):
        Recommender.from_pretrained(saved)
    file.unlink()
    with pytest.raises(ArtifactError, match="missing or cut") as caught:
        Recommender.from_pretrained(saved)
    assert name in caught.value.got


def test_cells_of_a_model_hold_new_items_too(planted: Dataset) -> None:
    small = ["model.dim=8", "training.steps=12", "training.eval_every=0", "model.search=category"]
    parted = Recommender.fit(planted, model="ulim", overrides=small)
    wider = parted.with_new_items(NEW)
    assert wider.cold is not None
    cells_CM = wider.cold.vector_CD[:, 8:]
    assert torch.equal(cells_CM, parted.model.item_vectors(wider.cold.stand_in_C)[:, 8:].detach())
    assert ((cells_CM > 0).sum(dim=1) == 1).all()


def test_the_verb_writes_an_artifact_of_its_own(recommender: Recommender, tmp_path: Path) -> None:
    recommender.save_pretrained(tmp_path / "artifact")
    NEW.write_parquet(tmp_path / "new.parquet")
    before = {file.name: file.read_bytes() for file in (tmp_path / "artifact").iterdir()}
    facts = answer("extend", "artifact", "new.parquet", "--out", "wider", "--set", "strength=2", cwd=tmp_path)
    assert (facts["new_items"], facts["items"]) == (3, 123)
    assert [row["item_id"] for row in facts["examples"]] == ["new-a", "new-b", "new-c"]
    assert {file.name: file.read_bytes() for file in (tmp_path / "artifact").iterdir()} == before
    for name in ("model.safetensors", "items.parquet", "histories.parquet"):
        assert (tmp_path / "wider" / name).read_bytes() == before[name]
    wider = recommender.with_new_items(NEW, strength=2.0)
    loaded = Recommender.from_pretrained(tmp_path / "wider")
    assert loaded.recommend(users=["user-3"], k=30).equals(wider.recommend(users=["user-3"], k=30))
    listed = answer("recommend", "wider", "--history", "item-2,new-a", "-k", "121", cwd=tmp_path)["recommendations"]
    assert {"new-b", "new-c"} < {row["item_id"] for row in listed}
    assert (
        "exists already" in gemirec("extend", "artifact", "new.parquet", "--out", "wider", cwd=tmp_path, code=2).stderr
    )
    said = gemirec(
        "extend", "wider", "new.parquet", "--out", "more", "--set", "lenght=mean", cwd=tmp_path, code=2
    ).stderr
    assert "did you mean 'length'" in said
    gemirec("extend", "wider", "new.parquet", "--out", "wider", "--overwrite", cwd=tmp_path)
    assert len(Recommender.from_pretrained(tmp_path / "wider").info.new_items) == 2
