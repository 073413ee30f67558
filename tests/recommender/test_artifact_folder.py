from __future__ import annotations

import json
import resource
import shutil
from pathlib import Path

import polars as pl
import pytest
import torch

from gemirec.data.dataset import Dataset
from gemirec.errors import ArtifactError, ConfigError, DataError, StorageError
from gemirec.models.catalog import MODELS
from gemirec.recommender import Recommender
from support import write_planted_dataset

RAW = [["item-1", "item-8", "item-20"], ["?"], []]


@pytest.fixture(scope="module")
def saved(recommender: Recommender, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return recommender.save_pretrained(tmp_path_factory.mktemp("saved") / "artifact")


@pytest.fixture
def copied(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "artifact"))


def test_a_loaded_recommender_answers_as_the_saved_one(recommender: Recommender, saved: Path) -> None:
    loaded = Recommender.from_pretrained(saved)
    users = ["user-3", "user-399", "user-0"]
    assert loaded.recommend(histories=RAW, k=9).equals(recommender.recommend(histories=RAW, k=9))
    assert loaded.recommend(users=users, k=9).equals(recommender.recommend(users=users, k=9))
    assert loaded.known_histories(users) == recommender.known_histories(users)
    assert loaded.interests(users=users).equals(recommender.interests(users=users))


@pytest.mark.parametrize("model", sorted(MODELS))
def test_every_model_of_the_catalogue_goes_through_files(model: str, planted: Dataset, tmp_path: Path) -> None:
    small = [] if model == "popularity" else ["model.dim=8", "training.steps=3", "training.eval_every=0"]
    fitted = Recommender.fit(planted, model=model, overrides=small)
    loaded = Recommender.from_pretrained(fitted.save_pretrained(tmp_path / model))
    assert loaded.recommend(histories=RAW, k=5).equals(fitted.recommend(histories=RAW, k=5))
    assert loaded.recommend(users=["user-7"], k=5).equals(fitted.recommend(users=["user-7"], k=5))


def test_only_formats_that_cannot_run_code(saved: Path) -> None:
    assert {file.suffix for file in saved.iterdir()} == {".json", ".safetensors", ".parquet", ".md"}


def test_the_artifact_records_where_it_comes_from(saved: Path, planted: Dataset) -> None:
    facts = json.loads((saved / "artifact.json").read_text())
    assert facts["dataset"]["fingerprint"] == planted.fingerprint
    assert facts["fallback"] == "popularity"
    assert facts["config"]["dim"] == 16
    assert facts["training"]["config"]["steps"] == 80
    assert facts["versions"]["torch"] == torch.__version__
    assert planted.fingerprint in (saved / "README.md").read_text()


def test_loading_leaves_the_random_state_alone(saved: Path) -> None:
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    Recommender.from_pretrained(saved)
    assert torch.equal(torch.rand(4), expected)


def test_kept_histories_can_be_few_or_none(recommender: Recommender, tmp_path: Path) -> None:
    few = Recommender.from_pretrained(recommender.save_pretrained(tmp_path / "few", histories=3))
    assert few.known_histories(["user-5"]) == [recommender.known_histories(["user-5"])[0][-3:]]
    none = Recommender.from_pretrained(recommender.save_pretrained(tmp_path / "none", histories=False))
    with pytest.raises(ArtifactError, match="knows no users by id"):
        none.recommend(users=["user-5"])
    with pytest.raises(ConfigError, match="has no dataset to take histories from"):
        few.save_pretrained(tmp_path / "again")
    again = few.save_pretrained(tmp_path / "again", histories=False)
    assert Recommender.from_pretrained(again).recommend(histories=RAW).equals(few.recommend(histories=RAW))


def test_user_features_are_kept(recommender: Recommender, saved: Path) -> None:
    known = recommender._histories.lookup(pl.Series(["user-9", "user-2"]))
    loaded = Recommender.from_pretrained(saved)._histories.lookup(pl.Series(["user-9", "user-2"]))
    assert known.categorical_BF is not None
    assert known.numeric_BG is not None
    assert loaded.categorical_BF is not None
    assert loaded.numeric_BG is not None
    assert loaded.categorical_BF.tolist() == known.categorical_BF.tolist()
    assert loaded.numeric_BG.tolist() == known.numeric_BG.tolist()


@pytest.mark.parametrize("name", ["model.safetensors", "items.parquet", "histories.parquet"])
@pytest.mark.parametrize("damage", ["cut", "missing"])
def test_cut_and_missing_files_are_found_on_opening(copied: Path, name: str, damage: str) -> None:
    file = copied / name
    if damage == "cut":
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    else:
        file.unlink()
    with pytest.raises(ArtifactError, match="missing or cut") as caught:
        Recommender.from_pretrained(copied)
    assert name in caught.value.got


@pytest.mark.parametrize("name", ["model.safetensors", "items.parquet"])
def test_overwritten_bytes_are_an_error_too(copied: Path, name: str) -> None:
    file = copied / name
    size = file.stat().st_size
    file.write_bytes(b"\xff" * size)
    with pytest.raises(ArtifactError, match="damaged"):
        Recommender.from_pretrained(copied)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("{", "damaged"),
        ("[]", "another format version"),
        ('{"format_version": 1, "model": 3}', "artifact.json is damaged"),
    ],
)
def test_a_damaged_description_is_an_error(copied: Path, text: str, what: str) -> None:
    (copied / "artifact.json").write_text(text)
    with pytest.raises(ArtifactError, match=what):
        Recommender.from_pretrained(copied)


def test_another_format_version_is_refused_by_name(copied: Path) -> None:
    facts = json.loads((copied / "artifact.json").read_text())
    (copied / "artifact.json").write_text(json.dumps({**facts, "format_version": 99}))
    with pytest.raises(ArtifactError, match="another format version") as caught:
        Recommender.from_pretrained(copied)
    assert "99" in caught.value.got


def test_parameters_of_another_size_are_refused(copied: Path) -> None:
    facts = json.loads((copied / "artifact.json").read_text())
    facts["config"]["dim"] = 32
    (copied / "artifact.json").write_text(json.dumps(facts))
    with pytest.raises(ArtifactError, match="do not fit the model"):
        Recommender.from_pretrained(copied)


def test_a_folder_that_is_no_artifact(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="a file is missing"):
        Recommender.from_pretrained(tmp_path)


def test_saving_over_a_folder_must_be_asked_for(recommender: Recommender, copied: Path) -> None:
    before = (copied / "model.safetensors").read_bytes()
    with pytest.raises(StorageError, match="exists already"):
        recommender.save_pretrained(copied)
    recommender.save_pretrained(copied, overwrite=True)
    assert (copied / "model.safetensors").read_bytes() == before
    assert [path.name for path in copied.parent.iterdir()] == ["artifact"]


@pytest.mark.parametrize("limit", [1_000, 2_500, 4_000, 10_000])  # a smaller one for each file in turn
def test_a_disk_without_space_leaves_nothing_behind(planted: Dataset, tmp_path: Path, limit: int) -> None:
    fitted = Recommender.fit(planted, model="popularity")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        with pytest.raises(StorageError) as caught:
            fitted.save_pretrained(tmp_path / "artifact")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert str(tmp_path) in caught.value.got
    assert list(tmp_path.iterdir()) == []


def test_evaluating_on_other_data_is_refused(saved: Path, planted: Dataset, tmp_path: Path) -> None:
    loaded = Recommender.from_pretrained(saved)
    other = write_planted_dataset(tmp_path / "other", seed=9)
    with pytest.raises(DataError, match="trained on other data"):
        loaded.evaluate(other)
    with pytest.raises(ConfigError, match="no dataset to evaluate on"):
        loaded.evaluate()
    assert loaded.evaluate(planted, bootstrap=0).metrics
