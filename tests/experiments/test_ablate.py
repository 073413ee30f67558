"""Ablations: every variant trains what it says, nothing is trained twice, and the table is the runs' own numbers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import polars as pl
import pytest

from gemirec.cli import gemirec_verbs
from gemirec.config import merge
from gemirec.data.dataset import Dataset
from gemirec.errors import ConfigError, StorageError
from gemirec.experiments.ablate import FULL, PAPER, VARIANTS, ablate
from gemirec.experiments.ablate_table import METRICS
from gemirec.models.catalog import load_profile
from gemirec.recommender import Recommender
from gemirec.recommender.settings import resolve
from support import write_planted_dataset

SMALL: dict[str, Any] = {
    "model": {
        "dim": 8,
        "num_interests": 3,
        "epsilon": 2,
        "quantizer": {"sizes": [6, 3], "code_dim": 4},
        "decoder": {"layers": 1, "heads": 1, "hidden": 8},
    },
    "training": {"steps": 8, "batch_size": 16, "eval_every": 8, "eval_users": 10},
}
ASKED = (FULL, "-M")


@pytest.fixture(scope="module")
def done(planted: Dataset, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A finished ablation of the paper profile, two seeds."""
    out = tmp_path_factory.mktemp("ablation") / "out"
    return out, ablate(planted.path, out, profile="paper", variants=ASKED, seeds=(1, 2), overrides=SMALL)


class Fits:
    """Counts the trainings, and stops the process's work when it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folders: list[str] = []
        self.dies = False
        fit = Recommender.fit.__func__  # type: ignore[attr-defined]

        def counting(cls: Any, log: Any, /, **given: Any) -> Recommender:
            if self.dies:
                raise KeyboardInterrupt
            self.folders.append("/".join(Path(given["workdir"]).parts[-2:]))
            found: Recommender = fit(cls, log, **given)
            return found

        monkeypatch.setattr(Recommender, "fit", classmethod(counting))


@pytest.fixture
def fits(monkeypatch: pytest.MonkeyPatch) -> Fits:
    return Fits(monkeypatch)


def rows(report: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {row["variant"]: row for row in report["rows"]}


def test_every_variant_is_a_configuration_of_the_model() -> None:
    for name, variant in VARIANTS.items():
        full = resolve("gemirec", "paper", {"model": variant.model}).model  # every key and value is known
        assert merge(full, variant.model) == full, name
    assert set(PAPER) <= set(VARIANTS)


def test_each_run_trained_what_its_variant_says(done: tuple[Path, dict[str, Any]]) -> None:
    out, _ = done
    for seed in (1, 2):
        for name in ASKED:
            config = json.loads((out / f"seed{seed}" / name / "run" / "config.json").read_text())
            wanted = merge(load_profile("gemirec", "paper")["model"], merge(SMALL["model"], VARIANTS[name].model))
            assert merge(config["model"], wanted) == config["model"]
            assert config["training"]["seed"] == seed
            assert not (out / f"seed{seed}" / name / "run" / "checkpoints").exists()
            assert Recommender.from_pretrained(out / f"seed{seed}" / name / "artifact").info.model == "gemirec"


def test_the_table_is_the_runs_own_numbers(done: tuple[Path, dict[str, Any]]) -> None:
    out, report = done
    found: dict[str, list[pl.DataFrame]] = {}
    for name in ASKED:
        folders = [out / f"seed{seed}" / name / "evaluation" for seed in (1, 2)]
        found[name] = [pl.read_parquet(folder / "users.parquet") for folder in folders]
        values = [json.loads((folder / "evaluation.json").read_text())["metrics"] for folder in folders]
        for metric in METRICS:
            assert rows(report)[name][metric] == pytest.approx(mean(value[metric] for value in values))
            assert rows(report)[name][f"{metric} sd"] == pytest.approx(stdev(value[metric] for value in values))
    gain = rows(report)["-M"]["difference to full"]["recall@50"]
    recall = {name: np.mean([table["recall@50"].to_numpy() for table in found[name]], axis=0) for name in ASKED}
    assert gain["difference"] == pytest.approx((recall["-M"] - recall[FULL]).mean())
    assert gain["interval"][0] <= gain["difference"] <= gain["interval"][1]
    assert gain["interval"][0] < gain["interval"][1]
    assert set(rows(report)["-M"]["difference to full"]) <= set(METRICS)
    assert rows(report)[FULL]["difference to full"] == {}
    assert json.loads((out / "ablate.json").read_text()) == report


def test_a_stopped_ablation_goes_on_and_trains_nothing_twice(
    done: tuple[Path, dict[str, Any]], planted: Dataset, tmp_path: Path, fits: Fits
) -> None:
    out, report = done
    out = Path(shutil.copytree(out, tmp_path / "out"))

    def again(**over: Any) -> dict[str, Any]:
        given = {"profile": "paper", "variants": ASKED, "seeds": (1, 2), "overrides": SMALL, **over}
        return ablate(planted.path, out, **given)

    assert again() == report
    assert again(seeds=(2,))["rows"][1]["seeds"] == [2]
    shutil.rmtree(out / "seed2" / "-M")
    fits.dies = True
    with pytest.raises(KeyboardInterrupt):
        again()
    kept = rows(json.loads((out / "ablate.json").read_text()))
    assert (kept[FULL]["seeds"], kept["-M"]["seeds"]) == ([1, 2], [1])
    assert kept["-M"]["recall@50 sd"] is None
    assert fits.folders == []
    fits.dies = False
    assert again() == report  # the same seed, the same numbers
    assert fits.folders == ["seed2/-M"]


def bare(path: Path) -> Dataset:
    """Planted interests without categories and without user features."""
    data = write_planted_dataset(path, num_users=60)
    items = data.items.drop("category", "category_index")
    items.write_parquet(path / "items.parquet")
    return Dataset.open(path)


def refused(data: Dataset, out: Path, fits: Fits, **given: Any) -> dict[str, str]:
    """What an ablation calls not applicable before it trains anything."""
    fits.dies = True
    with pytest.raises(KeyboardInterrupt):
        ablate(data.path, out, seeds=(1,), **given)
    found: dict[str, str] = json.loads((out / "ablate.json").read_text())["not_applicable"]
    return found


def test_variants_without_meaning_are_named_with_the_reason(planted: Dataset, tmp_path: Path, fits: Fits) -> None:
    so, categories = "the full model is so already", "the data have no item categories"
    found = refused(bare(tmp_path / "bare"), tmp_path / "a", fits, profile="paper", overrides=SMALL, variants=VARIANTS)
    users = "the data have no user features"
    same = dict.fromkeys(("+J", "no-cells", "no-user-vector", "no-item-categories"), so)
    assert found == {"-I": categories, "-U": users, **same}
    found = refused(planted, tmp_path / "b", fits, profile="tuned", overrides={"model": {"item_categories": True}})
    assert found == {"-J": so}
    preset = {"model": {"dictionary": "categories", "generator": "history"}}
    found = refused(planted, tmp_path / "c", fits, profile="paper", overrides=preset)
    given = "the interests are the preset categories already"
    assert found == {"-I": so, "-J": given, "-U": "there is no generator", "-M": so, "random": given}


def test_a_variant_that_cannot_be_built_says_what_the_model_says(planted: Dataset, tmp_path: Path, fits: Fits) -> None:
    """Six categories and "unknown" make seven interests; nine are asked for."""
    overrides = merge(SMALL, {"model": {"num_interests": 9, "epsilon": 0}})
    found = refused(planted, tmp_path / "out", fits, profile="paper", variants=("-I",), overrides=overrides)
    assert "fewer interests than are asked for (k = 9, 7 interests" in found["-I"]


def test_folders_names_and_seeds_are_checked_before_anything_is_trained(
    done: tuple[Path, dict[str, Any]], planted: Dataset, tmp_path: Path, fits: Fits
) -> None:
    out, _ = done
    with pytest.raises(ConfigError, match="another configuration"):
        ablate(planted.path, out, profile="paper", overrides=merge(SMALL, {"model": {"dim": 12}}))
    with pytest.raises(ConfigError, match="another configuration"):
        ablate(planted.path, out, profile="paper", overrides=SMALL, split="valid")
    with pytest.raises(ConfigError, match="no such variant"):
        ablate(planted.path, tmp_path / "new", variants=("-X",))
    with pytest.raises(ConfigError, match="seeds"):
        ablate(planted.path, tmp_path / "new", seeds=())
    with pytest.raises(ConfigError, match="unknown key"):
        ablate(planted.path, tmp_path / "new", overrides={"model": {"dimm": 8}})
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letters.txt").write_text("dear")
    with pytest.raises(StorageError, match="something else"):
        ablate(planted.path, tmp_path / "mine")
    assert fits.folders == []
    assert not (tmp_path / "new").exists()


def test_the_verb_reads_lists_and_prints_the_table(
    done: tuple[Path, dict[str, Any]], planted: Dataset, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    out, report = done
    file = tmp_path / "small.yaml"
    file.write_text(json.dumps(SMALL))  # JSON is YAML
    given: dict[str, Any] = {"profile": "paper", "variants": "full, -M", "config": file, "quiet": True}
    gemirec_verbs.ablate(planted.path, out, seeds="1,2", as_json=True, **given)
    assert json.loads(capsys.readouterr().out) == report
    gemirec_verbs.ablate(planted.path, out, seeds="1,2", **given)
    text = capsys.readouterr().out
    row = rows(report)["-M"]
    assert f"{row['recall@50']:.4f} ± {row['recall@50 sd']:.4f}" in text
    assert f"{row['difference to full']['recall@50']['difference']:+.4f} [" in text
    with pytest.raises(ConfigError, match="whole numbers"):
        gemirec_verbs.ablate(planted.path, out, seeds="one", **given)
