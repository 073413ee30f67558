"""The whole evaluation with models whose answers are known."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import polars as pl
import pytest
import torch

from gemirec.config import EvaluationConfig
from gemirec.data.batches import evaluation_batches
from gemirec.data.dataset import Dataset
from gemirec.errors import ArtifactError, ConfigError, DataError
from gemirec.evaluation.collapse import PER_LIST, PER_USER
from gemirec.evaluation.evaluate import EvaluationResult, compare, evaluate
from gemirec.evaluation.long_tail import popularity_groups
from gemirec.evaluation.metrics import accuracy, category_diversity, rank_targets
from gemirec.evaluation.ranking import TIE_PLACES
from gemirec.models.base import Histories, Interests
from gemirec.retrieval.index import ExactIndex
from gemirec.retrieval.retrieve import retrieve
from support import write_planted_dataset
from support_evaluation import FakeModel, same

if TYPE_CHECKING:
    from pathlib import Path


COLLAPSE = {*PER_LIST, *PER_USER}


class Oracle(FakeModel):
    """Knows every user's targets: items are unit vectors and one interest points at the targets of the history."""

    def __init__(self, dataset: Dataset, split: str = "test") -> None:
        super().__init__(dataset.spec())
        self.item_ND = torch.nn.Parameter(torch.eye(dataset.num_items + 1))
        self.known: dict[tuple[int, ...], torch.Tensor] = {}
        for window in evaluation_batches(dataset, split, batch_size=1, max_length=10):  # type: ignore[arg-type]
            vector_D = torch.zeros(dataset.num_items + 1)
            vector_D[window.target_E] = torch.rand(len(window.target_E)) + 1
            self.known[tuple(window.item_BL[0].tolist())] = vector_D

    def interests(self, histories: Histories) -> Interests:
        vector_BD = torch.stack([self.known[tuple(row)] for row in histories.item_BL.tolist()])
        return Interests(vector_BD[:, None], torch.ones(len(vector_BD), 1, dtype=torch.bool))


def test_a_perfect_model_is_perfect(planted: Dataset) -> None:
    result = evaluate(Oracle(planted), planted)
    for name in ("recall@20", "recall@50", "hr@20", "ndcg@20", "ndcg_hits@50", "ndcg_position@20", "mrr@20"):
        assert result.metrics[name] == pytest.approx(1.0), name
    assert result.metrics["recall_raw@20"] < 1.0  # repeated targets
    assert result.intervals["recall@20"] == pytest.approx((1.0, 1.0))


def test_a_random_model_is_random(tmp_path: Path) -> None:
    dataset = write_planted_dataset(tmp_path / "data", num_users=6000, num_items=200, seed=5)
    found = evaluate(FakeModel(dataset.spec(), count=1, dim=4), dataset, EvaluationConfig(top_n=(20,))).metrics
    assert found["recall@20"] == pytest.approx(20 / 200, abs=0.03)
    assert found["precision@20"] < found["recall@20"]
    assert found["hr@20"] > found["recall@20"]


@pytest.mark.parametrize("exclude_seen", [False, True])
def test_equals_a_loop_over_users(planted: Dataset, exclude_seen: bool) -> None:
    """Everything from one user at a time through ``retrieve``: same lists, same means, same exposure."""
    model, config = FakeModel(planted.spec()), EvaluationConfig(top_n=(5, 12), exclude_seen=exclude_seen, batch_size=7)
    result = evaluate(model, planted, config)
    index, model = ExactIndex(model.item_vectors()), model.eval()
    category_N, group_N = planted.spec().category_N, popularity_groups(planted.spec().train_count_N)
    rows, exposure_N, new_targets = [], np.zeros(planted.num_items + 1), 0
    for window in evaluation_batches(planted, "test", batch_size=1, max_length=10):
        with torch.no_grad():
            merged = retrieve(
                model.interests(Histories(window.item_BL)),
                index,
                12 + TIE_PLACES,
                seen_E=window.seen_E if exclude_seen else None,
                seen_offset_B1=window.seen_offset_B1 if exclude_seen else None,
            )
        listed = merged.id_BN.numpy()
        ranks = rank_targets(listed, merged.score_BN.numpy(), window.target_E.numpy(), window.target_offset_B1.numpy())
        row: dict[str, Any] = {name: float(value[0]) for name, value in accuracy(ranks, (5, 12)).items()}
        row |= {f"diversity@{n}": float(category_diversity(listed[:, :n], category_N)[0]) for n in (5, 12)}
        exposure_N[listed[0, :12]] += 1
        met = set(category_N[window.seen_E.numpy()].tolist())
        fresh = {item for item in window.target_E.tolist() if category_N[item] not in met}
        row |= {f"cur@{n}": len(fresh & set(listed[0, :n].tolist())) / len(fresh) if fresh else None for n in (5, 12)}
        new_targets += len(fresh)
        for number, name in enumerate(("head", "middle", "tail")):
            mine = {item for item in window.target_E.tolist() if group_N[item] == number}
            for n in (5, 12):
                row[f"recall_{name}@{n}"] = len(mine & set(listed[0, :n].tolist())) / len(mine) if mine else None
        row["history_length"], row["num_targets"] = len(window.seen_E), len(window.target_E)
        user, items = int(window.user_B[0]), [f"item-{i}" for i in listed[0, :12]]
        rows.append({"user_id": f"user-{user}", "items": items, "interests": merged.interest_BN[0, :12].tolist()} | row)
        if exclude_seen:
            assert not set(window.seen_E.tolist()) & set(listed[0].tolist())
    expected = pl.DataFrame(rows, schema_overrides={"interests": pl.List(pl.Int16)})
    shown = [name for name in result.users.columns if name.partition("@")[0] not in COLLAPSE]
    assert result.users.select(shown).equals(expected.select(shown))
    assert len(result.users.columns) == len(shown) + 2 * len(PER_LIST) + len(PER_USER)
    assert result.settings["cur_users"] == len(expected["cur@5"].drop_nulls()) > 0
    assert result.settings["cur_targets"] == new_targets
    for name in ("recall@5", "ndcg@12", "diversity@12", "mrr@5", "cur@12"):
        assert result.metrics[name] == pytest.approx(expected[name].mean())
    assert result.metrics["coverage@12"] == np.count_nonzero(exposure_N) / planted.num_items
    assert result.settings["exclude_seen"] is exclude_seen


def test_batches_and_chunks_change_nothing(planted: Dataset) -> None:
    model = FakeModel(planted.spec(), dim=64)
    plain = evaluate(model, planted, EvaluationConfig())
    for batch_size, item_chunk in ((1, 65_536), (13, 50), (512, 1)):
        assert same(plain, evaluate(model, planted, EvaluationConfig(batch_size=batch_size, item_chunk=item_chunk)))
    assert evaluate(model, planted).intervals == plain.intervals


def test_collapse_has_no_value_for_one_interest(planted: Dataset) -> None:
    class Some(FakeModel):
        """Its second interest exists for some users only."""

        def interests(self, histories: Histories) -> Interests:
            found = super().interests(histories)
            found.mask_BK[:, 1] &= histories.item_BL[:, 0] % 2 == 0
            return found

    single = evaluate(FakeModel(planted.spec(), count=1), planted)
    assert not {name.partition("@")[0] for name in [*single.metrics, *single.intervals]} & COLLAPSE
    assert single.users["amr@20"].null_count() == single.users["int_cos"].null_count() == len(single.users)
    model = Some(planted.spec(), count=2)
    some = evaluate(model, planted, EvaluationConfig(top_n=(20,)))
    known = some.users["amr@20"].is_not_null()
    assert 0 < known.sum() < len(known)
    for name in [f"{name}@20" for name in PER_LIST] + [*PER_USER]:
        assert (some.users[name].is_not_null() == known).all()
        assert some.metrics[name] == pytest.approx(some.users[name].mean())
        assert some.intervals[name][0] <= some.metrics[name] <= some.intervals[name][1]
    for batch_size in (1, 7):
        assert same(some, evaluate(model, planted, EvaluationConfig(top_n=(20,), batch_size=batch_size)))


def test_new_categories_are_pooled_and_averaged(tmp_path: Path) -> None:
    """Users with many clusters have targets in new ones; ``cur_micro`` weighs users by their new targets."""
    dataset = write_planted_dataset(
        tmp_path / "data", num_users=400, num_clusters=30, interests_per_user=12, length=(10, 20)
    )
    result = evaluate(FakeModel(dataset.spec()), dataset, EvaluationConfig(top_n=(40,)))
    hits = new = 0
    for row, window in enumerate(evaluation_batches(dataset, "test", batch_size=1, max_length=10)):
        category_N = dataset.spec().category_N
        met = set(category_N[window.seen_E.numpy()].tolist())
        fresh = {f"item-{item}" for item in window.target_E.tolist() if category_N[item] not in met}
        new, hits = new + len(fresh), hits + len(fresh & set(result.users["items"][row].to_list()))
    assert result.settings["cur_targets"] == new
    assert result.metrics["cur_micro@40"] == hits / new > 0
    assert "cur_micro@40" not in result.intervals
    assert result.metrics["cur@40"] == pytest.approx(result.users["cur@40"].mean())


def test_lists_are_those_of_retrieve(planted: Dataset) -> None:
    """Evaluation fetches a few places more to see ties; what it lists is what is served."""
    model, config = FakeModel(planted.spec()), EvaluationConfig(top_n=(10,))
    listed = evaluate(model, planted, config).users["items"]
    index = ExactIndex(model.eval().item_vectors())
    window = next(evaluation_batches(planted, "test", batch_size=100, max_length=10))
    with torch.no_grad():
        served = retrieve(model.interests(Histories(window.item_BL)), index, 10)
    assert listed.to_list() == [[f"item-{i}" for i in row] for row in served.id_BN.tolist()]


def test_every_model_has_the_same_budget(planted: Dataset) -> None:
    for count in (1, 2, 5):
        result = evaluate(FakeModel(planted.spec(), count=count), planted, EvaluationConfig(top_n=(7, 30)))
        assert result.users["items"].list.len().unique().to_list() == [30]
        assert all(len(set(items)) == 30 for items in result.users["items"])


def test_lists_longer_than_the_catalogue(planted: Dataset) -> None:
    result = evaluate(FakeModel(planted.spec()), planted, EvaluationConfig(top_n=(20, 500)))
    assert result.users["items"].list.len().unique().to_list() == [120]
    assert result.metrics["recall@500"] == 1.0
    assert result.metrics["precision@500"] < 0.02
    assert result.metrics["coverage@500"] == 1.0


def test_a_collapsed_model_is_not_rewarded(planted: Dataset) -> None:
    model = FakeModel(planted.spec())
    with torch.no_grad():
        model.item_ND.zero_()
    result = evaluate(model, planted)
    assert result.metrics["recall@50"] == 0.0
    assert result.metrics["hr@50"] == 0.0


def test_a_tie_at_the_end_of_the_list_is_seen(planted: Dataset) -> None:
    """Items 2 and 3, 4 and 5, ... share their scores; lists of even length end inside a pair."""

    class Pairs(FakeModel):
        def item_vectors(self, item_ids: torch.Tensor | None = None) -> torch.Tensor:
            return -(torch.arange(self.spec.num_items + 1) // 2).float()[:, None]

        def interests(self, histories: Histories) -> Interests:
            return Interests(torch.ones(len(histories.item_BL), 1, 1), torch.ones(len(histories.item_BL), 1).bool())

    for n in range(4, 44, 4):
        users = evaluate(Pairs(planted.spec()), planted, EvaluationConfig(top_n=(n,), bootstrap=0)).users
        assert users["items"][0].to_list() == [f"item-{i}" for i in range(1, n + 1)]
        expected = []
        for window in evaluation_batches(planted, "test", batch_size=1, max_length=10):
            targets = set(window.target_E.tolist())
            expected.append((len(targets & set(range(1, n))) + ({n, n + 1} <= targets)) / len(targets))
        assert users[f"recall@{n}"].to_list() == expected


def test_the_model_is_left_as_it_was(planted: Dataset) -> None:
    model = FakeModel(planted.spec()).train()
    model.add_module("frozen", torch.nn.Linear(2, 2).eval())
    state = torch.random.get_rng_state()
    evaluate(model, planted)
    assert model.training
    assert not model.frozen.training  # type: ignore[union-attr]
    assert torch.is_grad_enabled()
    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_sample_of_users_is_fixed_by_its_seed(planted: Dataset) -> None:
    model = FakeModel(planted.spec())
    first = evaluate(model, planted, EvaluationConfig(users=15, seed=3))
    assert first.settings["users"] == len(first.users) == 15
    assert first.settings["users_in_split"] == len(planted.users_in("test"))
    assert same(first, evaluate(model, planted, EvaluationConfig(users=15, seed=3)))
    other = evaluate(model, planted, EvaluationConfig(users=15, seed=4))
    assert first.users["user_id"].to_list() != other.users["user_id"].to_list()
    assert evaluate(model, planted, EvaluationConfig(users=10_000)).settings["users"] == len(planted.users_in("test"))


def test_split_progress_and_settings(planted: Dataset) -> None:
    done: list[tuple[int, int]] = []
    result = evaluate(
        FakeModel(planted.spec()),
        planted,
        EvaluationConfig(split="valid", batch_size=30, bootstrap=0, top_n=(5, 3, 5)),
        progress=lambda users, total: done.append((users, total)),
    )
    assert done == [(30, 40), (40, 40)]
    assert result.intervals == {}
    settings = result.settings
    assert (settings["split"], settings["top_n"], settings["candidates"]) == ("valid", [3, 5], 5)
    assert settings["dataset_fingerprint"] == planted.fingerprint
    assert settings["versions"]["torch"] == torch.__version__
    assert settings["hardware"]["device"] == "cpu"
    assert settings["seed"] == 1
    assert 0 < settings["seen_target_share"] < 1
    json.dumps(result.to_dict(), allow_nan=False)


def test_intervals_hold_the_mean(planted: Dataset) -> None:
    result = evaluate(FakeModel(planted.spec()), planted)
    assert set(result.intervals) == {
        name for name in result.metrics if name.partition("@")[0] not in ("coverage", "gini", "cur_micro")
    }
    for name, (low, high) in result.intervals.items():
        assert low <= result.metrics[name] <= high, name
    narrow = evaluate(FakeModel(planted.spec()), planted, EvaluationConfig(confidence=0.5)).intervals["recall@20"]
    wide = result.intervals["recall@20"]
    assert wide[0] < narrow[0] < narrow[1] < wide[1]


def emptied(dataset: Dataset, split: str, keep: int) -> Dataset:
    """The same dataset, whose users of ``split`` beyond the first ``keep`` lost their history or all."""
    start, end = (1, 2) if split == "valid" else (3, 4)
    for shard in dataset.shards:
        bounds = np.array(shard.bounds)
        rows = np.flatnonzero(bounds[:, end] > 0)[keep:]
        bounds[rows, start] = 0 if keep else bounds[rows, end]
        shard.bounds = bounds
    return dataset


def test_a_user_without_history_is_counted(planted: Dataset) -> None:
    dataset = emptied(Dataset.open(planted.path), "test", keep=5)

    class Broken(FakeModel):
        def interests(self, histories: Histories) -> Interests:
            found = super().interests(histories)
            empty_B = histories.length_B == 0
            return replace(found, vector_BKD=found.vector_BKD.masked_fill(empty_B[:, None, None], float("nan")))

    plain, broken = evaluate(FakeModel(dataset.spec()), dataset), evaluate(Broken(dataset.spec()), dataset)
    assert plain.settings["users_without_history"] == broken.settings["users_without_history"] == 30
    assert plain.users["items"].null_count() == 0
    empty = broken.users.filter(pl.col("history_length") == 0)
    assert empty["items"].null_count() == 30
    assert empty["recall@50"].sum() == 0
    assert empty["diversity@50"].null_count() == 30
    known = pl.col("history_length") > 0
    assert broken.users.filter(known).equals(plain.users.filter(known))


def test_a_diverged_model_is_an_error(planted: Dataset) -> None:
    model = FakeModel(planted.spec())
    with torch.no_grad():
        model.query_ND[:] = float("nan")
    with pytest.raises(DataError, match="interest vectors must be finite"):
        evaluate(model, planted)
    with torch.no_grad():
        model.item_ND[17] = float("inf")
    with pytest.raises(DataError, match="item vectors must be finite"):
        evaluate(model, planted)
    assert model.training


def test_an_empty_split_is_an_error(planted: Dataset) -> None:
    dataset = emptied(Dataset.open(planted.path), "test", keep=0)
    with pytest.raises(DataError, match="the test split is empty"):
        evaluate(FakeModel(dataset.spec()), dataset)


def test_another_catalogue_is_an_error(planted: Dataset) -> None:
    spec = msgspec.structs.replace(planted.spec(), num_items=80)
    with pytest.raises(DataError, match="different catalogues") as caught:
        evaluate(FakeModel(spec), planted)
    assert "80 items in the model, 120" in caught.value.got


@pytest.mark.parametrize(
    "change",
    [
        {"top_n": ()},
        {"top_n": (0, 5)},
        {"batch_size": 0},
        {"item_chunk": 0},
        {"users": -1},
        {"confidence": 2.0},
        {"bootstrap": -1},
        {"seed": -1},
    ],
)
def test_settings_out_of_range_are_refused(planted: Dataset, change: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(change))):
        evaluate(FakeModel(planted.spec()), planted, EvaluationConfig(**change))


def test_without_categories_there_is_no_diversity(tmp_path: Path) -> None:
    dataset = write_planted_dataset(tmp_path / "data", num_users=60, num_items=40)
    path = dataset.path / "items.parquet"
    pl.read_parquet(path).drop("category", "category_index").write_parquet(path)
    dataset = Dataset.open(dataset.path)
    found = evaluate(FakeModel(dataset.spec()), dataset)
    assert not any(name.startswith(("diversity", "cur")) for name in found.metrics)
    assert (found.settings["item_categories"], found.settings["cur_users"]) == (False, 0)
    pl.read_parquet(path).with_columns(category_index=pl.lit(0, dtype=pl.Int32)).write_parquet(path)
    unknown = evaluate(FakeModel(dataset.spec()), Dataset.open(dataset.path))
    assert not any(name.startswith(("diversity", "cur")) for name in unknown.metrics)
    assert (unknown.settings["item_categories"], unknown.settings["cur_users"]) == (True, 0)
    assert unknown.users["diversity@20"].null_count() == len(unknown.users)


def test_result_is_written_and_read(planted: Dataset, tmp_path: Path) -> None:
    result = evaluate(FakeModel(planted.spec()), planted, EvaluationConfig(exclude_seen=True))
    result.write(tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["evaluation.json", "users.parquet"]
    back = EvaluationResult.read(tmp_path / "out")
    assert same(result, back)
    assert back.intervals == result.intervals
    assert back.settings == result.settings
    (tmp_path / "out" / "users.parquet").write_bytes(b"PAR1")
    with pytest.raises(ArtifactError, match="table of users"):
        _ = EvaluationResult.read(tmp_path / "out").users
    (tmp_path / "out" / "evaluation.json").write_text('{"format_version": 1, "metrics": {}}')
    with pytest.raises(ArtifactError, match="damaged"):
        EvaluationResult.read(tmp_path / "out")
    (tmp_path / "out" / "evaluation.json").write_text('{"format_version": 99}')
    with pytest.raises(ArtifactError, match="another format version"):
        EvaluationResult.read(tmp_path / "out")


def test_comparison_is_paired_by_user(planted: Dataset) -> None:
    oracle = evaluate(Oracle(planted), planted)
    random = evaluate(FakeModel(planted.spec()), planted)
    found = compare(oracle, random)["recall@20"]
    assert found.first == pytest.approx(oracle.metrics["recall@20"])
    assert found.second == pytest.approx(random.metrics["recall@20"])
    assert found.low > 0.5
    assert found.p_value < 0.01
    assert compare(random, oracle)["recall@20"].difference == pytest.approx(-found.difference)
    assert "amr@20" not in compare(oracle, random)  # one has a single interest
    twins = compare(random, evaluate(FakeModel(planted.spec(), seed=1), planted))
    assert {*twins} == {*random.intervals}
    assert twins["int_cos"].first == pytest.approx(random.metrics["int_cos"])
    for other in (EvaluationConfig(users=20), EvaluationConfig(split="valid"), EvaluationConfig(exclude_seen=True)):
        with pytest.raises(ConfigError, match="cannot be compared"):
            compare(oracle, evaluate(FakeModel(planted.spec()), planted, other))
