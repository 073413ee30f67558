"""Probes of a trained GemiRec: other interests go through the same retriever, and the numbers are what they say."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gemirec.cli import gemirec_verbs
from gemirec.config import EvaluationConfig
from gemirec.data.batches import evaluation_batches
from gemirec.errors import ConfigError, DataError
from gemirec.evaluation.evaluate import evaluate
from gemirec.experiments.probe import ALONE, SERVED, SOURCE_METRICS, SWEEP_METRICS, probe, probe_model, probe_summary
from gemirec.experiments.probe_sources import Oracle, Probed, generated, history_twin, most_frequent, nothing
from gemirec.models.base import Histories
from gemirec.models.catalog import build_model
from gemirec.models.gemirec import GemiRec
from gemirec.recommender import Recommender
from support_models import held_out, sequences

if TYPE_CHECKING:
    from gemirec.data.dataset import Dataset

TINY: dict[str, Any] = {
    "dim": 16,
    "max_length": 12,
    "num_interests": 3,
    "epsilon": 2,
    "quantizer": {"sizes": [6, 3], "code_dim": 8},
    "decoder": {"layers": 1},
}


def untrained(data: Dataset, **over: Any) -> GemiRec:
    """A GemiRec that has a dictionary and serves generated interests, but has learned nothing."""
    torch.manual_seed(0)
    model = build_model("gemirec", {**TINY, **over}, data.spec())
    assert isinstance(model, GemiRec)
    with torch.no_grad():
        model.start_joint()
    return model.eval()


@pytest.fixture(scope="module")
def artifact(planted: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("trained")
    training = {"steps": 100, "batch_size": 64, "eval_every": 50, "learning_rate": 0.01, "checkpoint_every": 0}
    recommender = Recommender.fit(
        planted, model="gemirec", profile="paper", overrides={"model": TINY, "training": training}, workdir=out
    )
    return recommender.save_pretrained(out / "artifact", histories=False)


@pytest.fixture(scope="module")
def report(artifact: Path, planted: Dataset) -> dict[str, Any]:
    return probe(artifact, planted.path)


def by(rows: list[dict[str, Any]], key: str) -> dict[Any, dict[str, Any]]:
    return {row[key]: row for row in rows}


def test_knowing_the_future_beats_the_generator_and_the_generator_beats_chance(report: dict[str, Any]) -> None:
    rows = by(report["sources"], "interests from")
    oracle, served = rows["oracle, frequent interests of the held-out items"], rows[SERVED]
    assert oracle["recall@50"] > served["recall@50"] > rows["random"]["recall@50"]
    assert oracle["low"] > 0
    assert oracle["recall@50 minus served"] == pytest.approx(oracle["recall@50"] - served["recall@50"])
    assert served["recall@50 minus served"] == 0


def test_served_rows_are_the_evaluation_s(report: dict[str, Any], artifact: Path, planted: Dataset) -> None:
    """Three roads to one number: the evaluation, and both sweeps at the model's own setting."""
    metrics = Recommender.from_pretrained(artifact).evaluate(planted, bootstrap=0).metrics
    assert {name: by(report["sources"], "interests from")[SERVED][name] for name in SOURCE_METRICS} == {
        name: metrics[name] for name in SOURCE_METRICS
    }
    for row in (by(report["sweep_k"], "K")[3], by(report["sweep_epsilon"], "epsilon")[2]):
        assert {name: row[name] for name in SWEEP_METRICS} == {name: metrics[name] for name in SWEEP_METRICS}


def test_what_is_impossible_says_why_and_the_rest_is_measured(report: dict[str, Any]) -> None:
    rows = by(report["sweep_k"], "K")
    assert list(rows) == list(range(1, 11))
    for k, row in rows.items():
        possible = k <= 6  # 3 codes of level 2, each twice
        assert (row["recall@50"] is not None) == possible
        assert ("level 2 has 3 codes" in row["note"]) != possible
    assert rows[1]["amr@50"] is None
    assert rows[1]["recall@50"] != rows[6]["recall@50"]


def test_one_interest_served_is_one_interest_swept(planted: Dataset) -> None:
    model = untrained(planted, num_interests=1)
    served = evaluate(model, planted, EvaluationConfig(bootstrap=0)).metrics
    found = probe_model(model, planted)
    assert by(found["sweep_k"], "K")[1]["recall@50"] == served["recall@50"]


def test_a_model_with_the_user_s_vector_is_probed_with_and_without_it(planted: Dataset) -> None:
    model = untrained(planted, keep_user_vector=True, fusion={"kind": "residual"})
    found = probe_model(model, planted)
    rows = by(found["sources"], "interests from")
    assert rows[ALONE]["K"] == 1
    assert rows["oracle, interest of the next item"]["K"] == 2
    assert rows["oracle, interest of the next item, without the user vector"]["K"] == 1
    assert by(found["sweep_k"], "K")[1]["recall@50"] == rows[ALONE]["recall@50"]
    bins = found["history_length"]
    users = sum(row["users"] for row in bins)
    assert users == found["about"]["users"] == 40
    mean = sum(row["users"] * row["difference"] for row in bins) / users
    assert mean == pytest.approx(rows[SERVED]["recall@50"] - rows[ALONE]["recall@50"])
    assert found["notes"] == []


def test_the_source_is_all_that_changes(planted: Dataset) -> None:
    model = untrained(planted, keep_user_vector=True)
    histories = held_out(planted, model.max_length)
    with torch.no_grad():
        served = model.interests(histories)
        same = Probed(model, generated(model, 2, model.epsilon)).interests(histories)
        without = Probed(model, generated(model, 2, model.epsilon), user_vector=False).interests(histories)
        alone = Probed(model, nothing).interests(histories)
    assert torch.equal(same.vector_BKD, served.vector_BKD)
    assert torch.equal(without.vector_BKD, served.vector_BKD[:, 1:])
    assert torch.equal(alone.vector_BKD, served.vector_BKD[:, :1])


def test_the_twin_counts_the_history(planted: Dataset) -> None:
    """``(n_m + p_m) / (n + 1)``, counted by hand; the retriever is the model's own, bit for bit."""
    model = untrained(planted)
    twin, rows = history_twin(model), sequences(planted)
    interest_N = model.item_interests().numpy()
    share_N = np.asarray(planted.spec().train_count_N) / np.asarray(planted.spec().train_count_N).sum()
    prior_M = np.bincount(interest_N, share_N, model.num_interests)
    block = next(evaluation_batches(planted, "test", batch_size=9, max_length=12))
    logp_BM = twin.log_probs(twin.state(Histories(block.item_BL, block.user_categorical_BF, block.user_numeric_BG)))
    for b, user in enumerate(block.user_B.tolist()):
        read = rows[user][: int(0.8 * len(rows[user]))][-12:]
        count_M = np.bincount(interest_N[read], minlength=model.num_interests)
        np.testing.assert_allclose(logp_BM[b].exp(), (count_M + prior_M) / (len(read) + 1), rtol=1e-5, atol=1e-8)
    assert twin.item_table.weight.data_ptr() == model.item_table.weight.data_ptr()


@given(st.lists(st.lists(st.integers(0, 4), min_size=1, max_size=8), min_size=1, max_size=4), st.integers(1, 4))
@settings(max_examples=60, deadline=None)
def test_most_frequent_is_a_counter_s(rows: list[list[int]], k: int) -> None:
    offset = torch.tensor([0, *np.cumsum([len(row) for row in rows])])
    found = most_frequent(torch.tensor([m for row in rows for m in row]), offset, k)
    for b, row in enumerate(rows):
        best = Counter(row).most_common(k)  # equal ones as they came first
        assert [m for m in found.index_Bk[b].tolist() if m >= 0] == [m for m, _ in best]
        share = found.logp_Bk[b].exp()[: len(best)].tolist()
        assert share == pytest.approx([count / len(row) for _, count in best])


def test_the_oracle_knows_its_users_and_no_others(planted: Dataset) -> None:
    model = untrained(planted)
    interest_N, rows = model.item_interests(), sequences(planted)

    def oracle(**over: Any) -> Oracle:
        return Oracle(model, evaluation_batches(planted, "test", batch_size=16, max_length=12), **{"k": 2, **over})

    blocks = list(evaluation_batches(planted, "test", batch_size=16, max_length=12))
    knows_next, knows_all = oracle(k=1, next_only=True), oracle()
    for block in blocks:
        next_B = knows_next(Histories(block.item_BL)).index_Bk[:, 0]
        all_Bk = knows_all(Histories(block.item_BL)).index_Bk
        for b, user in enumerate(block.user_B.tolist()):
            coming = interest_N[torch.from_numpy(rows[user][int(0.8 * len(rows[user])) :].astype(np.int64))].tolist()
            assert next_B[b] == coming[0]
            assert [m for m in all_Bk[b].tolist() if m >= 0] == [m for m, _ in Counter(coming).most_common(2)]
    with pytest.raises(DataError, match="other users"):
        knows_all(Histories(blocks[0].item_BL))  # no user is left
    with pytest.raises(DataError, match="other users"):
        oracle()(Histories(blocks[1].item_BL))


def test_the_generator_s_rows_are_those_of_a_loop(report: dict[str, Any], artifact: Path, planted: Dataset) -> None:
    model = Recommender.from_pretrained(artifact).model
    assert isinstance(model, GemiRec)
    interest_N, rows = model.item_interests().tolist(), sequences(planted)
    (block,) = evaluation_batches(planted, "test", batch_size=400, max_length=12)
    with torch.no_grad():
        state = model.state(Histories(block.item_BL, block.user_categorical_BF, block.user_numeric_BG))
        logp_BM = model.log_probs(state).numpy()
    hits: dict[bool, list[bool]] = {True: [], False: []}
    for b, user in enumerate(block.user_B.tolist()):
        cut = int(0.8 * len(rows[user]))
        true, seen = interest_N[rows[user][cut]], {interest_N[item] for item in rows[user][:cut]}
        hits[true in seen].append(true in np.argsort(-logp_BM[b], kind="stable")[:5])
    mine = {row["next interest"]: row for row in report["generator"] if row["predictor"] == "generator"}
    assert (mine["seen"]["users"], mine["new"]["users"]) == (len(hits[True]), len(hits[False]))
    assert mine["seen"]["hit@5"] == pytest.approx(np.mean(hits[True]))
    assert mine["new"]["hit@5"] == pytest.approx(np.mean(hits[False]))
    assert {row["predictor"] for row in report["calibration"]} == {"generator", "history frequency"}


def test_a_single_level_has_no_sweep_of_epsilon_and_says_so(planted: Dataset) -> None:
    found = probe_model(untrained(planted, quantizer={"sizes": [8], "code_dim": 8}), planted)
    assert found["sweep_epsilon"] == []
    assert "no sweep of epsilon" in found["notes"][0]


def test_the_verb_prints_tables_and_json(
    report: dict[str, Any], artifact: Path, planted: Dataset, capsys: pytest.CaptureFixture[str]
) -> None:
    gemirec_verbs.probe(artifact, planted.path, users=0, as_json=True, quiet=True)
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(report, allow_nan=False))
    gemirec_verbs.probe(artifact, planted.path, users=5, quiet=True)
    text = capsys.readouterr().out
    for section in probe_summary(report):
        assert f"\n{section}" in f"\n{text}"
    assert "reliability" not in text


def test_other_models_other_data_and_unfinished_models_are_refused(
    artifact: Path, planted: Dataset, tmp_path: Path
) -> None:
    other = Recommender.fit(planted, model="popularity", workdir=tmp_path / "run")
    other.save_pretrained(tmp_path / "popularity")
    with pytest.raises(ConfigError, match="only a gemirec model") as error:
        probe(tmp_path / "popularity", planted.path)
    assert "popularity" in error.value.got
    model = untrained(planted)
    model.phase.fill_(0)
    with pytest.raises(ConfigError, match="no generated interests yet"):
        probe_model(model, planted)
