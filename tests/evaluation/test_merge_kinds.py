"""Evaluation measures the lists that every merge serves: against a loop over users, ties, and bad requests."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import pytest
import torch

from gemirec.config import EvaluationConfig, MergeConfig
from gemirec.data.batches import evaluation_batches
from gemirec.data.dataset import Dataset
from gemirec.errors import ConfigError
from gemirec.evaluation.evaluate import evaluate
from gemirec.evaluation.metrics import coverage, gini
from gemirec.models.base import Histories, Interests
from gemirec.models.catalog import build_model
from gemirec.retrieval.index import ExactIndex
from gemirec.retrieval.retrieve import retrieve
from support import write_planted_dataset
from support_evaluation import FakeModel, same

if TYPE_CHECKING:
    from pathlib import Path

DIVERSE = MergeConfig(kind="diverse", diversity=1.0, pool=2)
KINDS = (
    DIVERSE,
    MergeConfig(kind="diverse", diversity=0.3),
    MergeConfig(kind="quota"),
    MergeConfig(kind="quota", quota=(3, 1)),
    MergeConfig(kind="quota", quota="weight"),
    MergeConfig(kind="weighted"),
)


class Weighted(FakeModel):
    """Its interests weigh 1, 2, 3, ..."""

    def interests(self, histories: Histories) -> Interests:
        found = super().interests(histories)
        weight_BK = torch.arange(1, found.mask_BK.shape[1] + 1).float().expand(found.mask_BK.shape)
        return Interests(found.vector_BKD, found.mask_BK, weight_BK)


def pairs_apart(items: list[int], category_N: Any) -> float:
    kinds = [category_N[item] for item in items]
    pairs = [(a, b) for i, a in enumerate(kinds) for b in kinds[i + 1 :]]
    return sum(int(a) != int(b) for a, b in pairs) / len(pairs)


@pytest.mark.parametrize("how", KINDS, ids=str)
@pytest.mark.parametrize("exclude_seen", [False, True])
def test_metrics_are_those_of_the_served_lists(planted: Dataset, how: MergeConfig, exclude_seen: bool) -> None:
    """One user and one list length at a time through ``retrieve``; every metric in plain words."""
    model, top_n = Weighted(planted.spec()), (5, 12)
    result = evaluate(model, planted, EvaluationConfig(top_n=top_n, merge=how, exclude_seen=exclude_seen, batch_size=9))
    index, category_N = ExactIndex(model.eval().item_vectors()), planted.spec().category_N
    shown: dict[int, list[list[int]]] = {n: [] for n in top_n}
    for row, window in enumerate(evaluation_batches(planted, "test", batch_size=1, max_length=10)):
        user, targets = result.users.row(row, named=True), set(window.target_E.tolist())
        for n in top_n:
            with torch.no_grad():
                interests = model.interests(Histories(window.item_BL))
                seen = {"seen_E": window.seen_E, "seen_offset_B1": window.seen_offset_B1} if exclude_seen else {}
                asked: dict[str, Any] = {**seen, "merge": how, "category_I": torch.as_tensor(category_N)}
                merged = retrieve(interests, index, n, **asked)
                lists = _lists(interests, index, n, seen)
            items, won = merged.id_BN[0].tolist(), merged.interest_BN[0].tolist()
            shown[n].append(items)
            places = [place for place, item in enumerate(items) if item in targets]
            assert user[f"recall@{n}"] == len(places) / len(targets)
            assert user[f"mrr@{n}"] == (1 / (1 + places[0]) if places else 0)
            assert user[f"diversity@{n}"] == pytest.approx(pairs_apart(items, category_N))
            if sum(map(bool, lists)) > 1:
                alone = [sum(item in one for one in lists) == 1 for item in items]
                assert user[f"exclusive@{n}"] == pytest.approx(np.mean(alone))
                assert user[f"win_share@{n}"] == max(won.count(k) for k in set(won)) / n
        assert user["items"] == [f"item-{item}" for item in items]
        assert user["interests"] == won
    for n in top_n:
        exposure_N = np.bincount(np.concatenate(shown[n]), minlength=planted.num_items + 1)[1:]
        assert result.metrics[f"coverage@{n}"] == coverage(exposure_N)
        assert result.metrics[f"gini@{n}"] == gini(exposure_N)
        for name in ("recall", "ndcg", "diversity", "cur"):
            assert result.metrics[f"{name}@{n}"] == pytest.approx(result.users[f"{name}@{n}"].mean())
    assert result.settings["merge"]["kind"] == how.kind
    assert result.settings["cur_targets"] == evaluate(model, planted).settings["cur_targets"]


def _lists(interests: Interests, index: ExactIndex, n: int, seen: dict[str, Any]) -> list[set[int]]:
    """The items of each interest's own list, none for one that does not exist."""
    out = []
    for k in range(interests.mask_BK.shape[1]):
        one = Interests(interests.vector_BKD[:, k : k + 1], interests.mask_BK[:, k : k + 1])
        out.append({item for item in retrieve(one, index, n, **seen).id_BN[0].tolist() if item > 0})
    return out


@pytest.mark.parametrize("how", KINDS, ids=str)
def test_batches_and_chunks_change_nothing(planted: Dataset, how: MergeConfig) -> None:
    model = Weighted(planted.spec(), dim=64)
    plain = evaluate(model, planted, EvaluationConfig(merge=how))
    for batch_size, item_chunk in ((1, 65_536), (13, 50)):
        other = EvaluationConfig(merge=how, batch_size=batch_size, item_chunk=item_chunk)
        assert same(plain, evaluate(model, planted, other))


def test_a_merge_that_changes_nothing_is_the_default_bit_for_bit(planted: Dataset) -> None:
    """A penalty of 0; a quota of the only interest. The popularity model's scores tie, also at the lists' ends."""
    nothing, quota = MergeConfig(kind="diverse"), MergeConfig(kind="quota")
    several, popular = FakeModel(planted.spec()), build_model("popularity", {}, planted.spec())
    cases = ((several, nothing), (popular, nothing), (popular, quota), (FakeModel(planted.spec(), count=1), quota))
    for model, how in cases:
        for top_n in ((20, 50), (7, 23)):
            plain = evaluate(model, planted, EvaluationConfig(top_n=top_n))
            changed = evaluate(model, planted, EvaluationConfig(top_n=top_n, merge=how))
            assert changed.metrics == plain.metrics
            assert changed.intervals == plain.intervals
            assert changed.users.select(plain.users.columns).equals(plain.users)


@pytest.mark.parametrize("how", KINDS, ids=str)
def test_a_collapsed_model_is_not_rewarded(planted: Dataset, how: MergeConfig) -> None:
    model = Weighted(planted.spec())
    with torch.no_grad():
        model.item_ND.zero_()
    result = evaluate(model, planted, EvaluationConfig(merge=how))
    assert result.metrics["recall@50"] == result.metrics["hr@20"] == 0.0


def test_diversity_is_paid_with_the_lists_own_scores(planted: Dataset) -> None:
    """A larger lambda never makes lists less diverse here, and the largest takes one item of each category in turn."""
    model = FakeModel(planted.spec())
    found = [
        evaluate(model, planted, EvaluationConfig(top_n=(6,), merge=MergeConfig(kind="diverse", diversity=d, pool=20)))
        for d in (0.0, 1.0, 4.0, 1e6)
    ]
    values = [result.metrics["diversity@6"] for result in found]
    assert values == sorted(values)
    assert values[0] < values[-1] == 1.0


def test_data_without_categories_are_refused_before_any_search(tmp_path: Path) -> None:
    dataset = write_planted_dataset(tmp_path / "data", num_users=60, num_items=40)
    path = dataset.path / "items.parquet"
    pl.read_parquet(path).drop("category", "category_index").write_parquet(path)
    dataset = Dataset.open(dataset.path)
    calls: list[tuple[int, int]] = []
    with pytest.raises(ConfigError, match="the data have none") as caught:
        evaluate(
            FakeModel(dataset.spec()),
            dataset,
            EvaluationConfig(merge=DIVERSE),
            progress=lambda *done: calls.append(done),
        )
    assert "category column" in caught.value.fix
    assert calls == []
    assert evaluate(FakeModel(dataset.spec()), dataset, EvaluationConfig(merge=KINDS[2])).metrics["recall@50"] > 0


def test_a_merge_that_the_model_cannot_do_is_refused(planted: Dataset) -> None:
    model = FakeModel(planted.spec(), count=2)
    with pytest.raises(ConfigError, match="weighs its interests"):
        evaluate(model, planted, EvaluationConfig(merge=MergeConfig(kind="quota", quota="weight")))
    with pytest.raises(ConfigError, match="weighs its interests"):
        evaluate(model, planted, EvaluationConfig(merge=MergeConfig(kind="weighted")))
    with pytest.raises(ConfigError, match="more interests than the model has"):
        evaluate(model, planted, EvaluationConfig(merge=MergeConfig(kind="quota", quota=(1, 1, 1))))
