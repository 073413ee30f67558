"""The story of the interest cache: train, fill it, serve from it, roll the dictionary."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from gemirec.components.codes import unflatten
from gemirec.data.batches import evaluation_batches
from gemirec.data.dataset import Dataset
from gemirec.data.simulator import SimulatorConfig, simulate
from gemirec.errors import ArtifactError
from gemirec.models.base import Histories
from gemirec.models.gemirec import GemiRec
from gemirec.recommender import Recommender
from gemirec.retrieval.index import ExactIndex
from gemirec.retrieval.interest_cache import InterestCache, cached_interests
from gemirec.retrieval.retrieve import retrieve
from gemirec.retrieval.versions import dictionary_version
from support_cli import answer, gemirec
from support_models import right_padded, sequences

TINY = [
    "training.steps=15",
    "training.batch_size=32",
    "training.eval_every=0",
    "model.dim=8",
    "model.num_interests=5",
    "model.epsilon=3",
    "model.keep_user_vector=false",
    "model.quantizer={sizes: [8, 3], code_dim: 8}",
    "model.decoder={layers: 1}",
]
SET = [word for pair in TINY for word in ("--set", pair)]
GEMIREC = ["--model", "gemirec", *SET]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A simulated log, prepared, and GemiRec trained on it."""
    home = tmp_path_factory.mktemp("home")
    log = simulate(home / "log", SimulatorConfig(num_users=250, num_items=400))
    gemirec("prepare", log.interactions, "--items", log.items, "--users", log.users, "--out", "data", cwd=home)
    gemirec("train", "data", "--out", "run", *GEMIREC, cwd=home)
    return home


def model_of(artifact: Path) -> GemiRec:
    model = Recommender.from_pretrained(artifact).model
    assert isinstance(model, GemiRec)
    return model


def test_fill_the_cache_and_serve_from_it(home: Path, tmp_path: Path) -> None:
    """The cached road retrieves what the model's own road retrieves, for users of the log and for a new one."""
    facts = answer("cache", home / "run/artifact", home / "data", "--out", "cache.parquet", cwd=tmp_path)
    data, model = Dataset.open(home / "data"), model_of(home / "run/artifact")
    assert (facts["users"], facts["without_history"], facts["k"], facts["epsilon"]) == (data.num_users, 0, 5, 3)
    assert facts["fingerprint"] == data.fingerprint
    table = pl.read_parquet(tmp_path / "cache.parquet")
    assert table["user_id"].to_list() == data.users["user_id"].to_list()
    code_XC = unflatten(torch.from_numpy(table["interest"].explode().to_numpy().copy()).view(-1, 5), (8, 3))
    for level in range(2):
        used = torch.nn.functional.one_hot(code_XC[:, :, level]).sum(dim=1)
        assert int(used.max()) <= 3
    cache = InterestCache.open(tmp_path / "cache.parquet")
    cache.check(model, whole=True)
    ids = [*data.users["user_id"].head(20).to_list(), -1]
    assert facts["interests_per_user"] == 5
    recent = [*sequences(data)[:20], np.array([7, 9])]
    categorical, numeric = (np.asarray(part)[:21].copy() for part in data.user_features() if part is not None)
    histories = Histories(
        right_padded(recent, model.max_length), torch.from_numpy(categorical).long(), torch.from_numpy(numeric)
    )
    with torch.no_grad():
        index = ExactIndex(model.item_vectors())
        own = retrieve(model.interests(histories), index, 10)
        served = retrieve(cached_interests(model, cache, histories, ids), index, 10)
    assert cache.get_many(ids).found_B.tolist() == [True] * 20 + [False]
    assert torch.equal(served.id_BN, own.id_BN)
    assert torch.equal(served.interest_BN, own.interest_BN)


def test_the_artifact_s_own_histories_give_the_same_file(home: Path, tmp_path: Path) -> None:
    answer("cache", home / "run/artifact", home / "data", "--out", "a.parquet", cwd=tmp_path)
    answer("cache", home / "run/artifact", "--out", "b.parquet", cwd=tmp_path)
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()


def test_a_split_s_cache_has_read_nothing_held_out(home: Path, tmp_path: Path) -> None:
    words = ("--split", "test", "--set", "k=3", "--set", "epsilon=1")
    facts = answer("cache", home / "run/artifact", home / "data", "--out", "c", *words, cwd=tmp_path)
    data, model = Dataset.open(home / "data"), model_of(home / "run/artifact")
    cache = InterestCache.open(tmp_path / "c")
    assert (cache.info.history, cache.info.k, cache.info.epsilon) == ("test", 3, 1)
    assert facts["users"] == len(cache) == len(data.users_in("test"))
    for batch in evaluation_batches(data, "test", batch_size=64, max_length=model.max_length):
        histories = Histories(batch.item_BL, batch.user_categorical_BF, batch.user_numeric_BG)
        expected = model.select(model.state(histories), 3, 1).index_Bk
        found = cache.get_many(data.users["user_id"].gather(batch.user_B.numpy()))
        assert torch.equal(found.index_BK, expected)


def test_a_retrained_dictionary_does_not_serve_the_old_cache(home: Path, tmp_path: Path) -> None:
    answer("cache", home / "run/artifact", "--out", "cache.parquet", cwd=tmp_path)
    gemirec("train", home / "data", "--out", "next", *GEMIREC, "--set", "training.seed=2", cwd=tmp_path)
    retrained = model_of(tmp_path / "next/artifact")
    cache = InterestCache.open(tmp_path / "cache.parquet")
    with pytest.raises(ArtifactError, match="from another dictionary version") as refused:
        cache.check(retrained)
    assert cache.info.dictionary_version in refused.value.got
    assert dictionary_version(retrained) in refused.value.got
    answer("cache", "next/artifact", "--out", "cache.parquet", cwd=tmp_path)
    InterestCache.open(tmp_path / "cache.parquet").check(retrained)


def test_wrong_input_is_refused_by_what_is_wrong(home: Path, tmp_path: Path) -> None:
    def refused(*words: str | Path) -> str:
        said = gemirec("cache", *words, "--out", "cache.parquet", cwd=tmp_path, code=2).stderr
        assert not (tmp_path / "cache.parquet").exists()
        return said

    artifact = home / "run/artifact"
    gemirec("train", home / "data", "--out", "mean", "--model", "item_mean", "--set", "training.steps=2", cwd=tmp_path)
    said = refused("mean/artifact", home / "data")
    assert "no dictionary" in said
    assert "one: gemirec" in said
    assert "level 2 has 3 codes" in refused(artifact, "--set", "k=4", "--set", "epsilon=1")
    assert "did you mean 'epsilon'" in refused(artifact, "--set", "epsilom=1")
    assert "choose valid or test" in refused(artifact, home / "data", "--split", "train")
    assert "give the prepared dataset too" in refused(artifact, "--split", "test")
    shutil.copytree(artifact, tmp_path / "bare")
    Recommender.from_pretrained(artifact).save_pretrained(tmp_path / "bare", histories=False, overwrite=True)
    assert "keeps no histories" in refused("bare")
    gemirec(
        "prepare", home / "log/interactions.parquet", "--out", "other", "--set", "split=leave_one_out", cwd=tmp_path
    )
    assert "trained on other data" in refused(artifact, "other")
