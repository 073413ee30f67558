"""Comparisons: the table is the runs' own numbers, nothing is done twice, and the report needs nothing but itself."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import polars as pl
import pytest

from gemirec.cli import compare as verb
from gemirec.config import EvaluationConfig, merge
from gemirec.data.batches import evaluation_batches
from gemirec.data.dataset import Dataset
from gemirec.errors import ArtifactError, ConfigError, GemirecError, StorageError
from gemirec.evaluation.result import EvaluationResult
from gemirec.evaluation.significance import paired
from gemirec.experiments.compare import compare
from gemirec.experiments.compare_examples import examples
from gemirec.experiments.compare_plan import CompareConfig, contestants, digest
from gemirec.experiments.compare_plots import trained_with
from gemirec.experiments.watch import Silent
from gemirec.models.catalog import MODELS as CATALOGUE
from gemirec.recommender import Recommender
from support import write_planted_dataset
from support_cli import answer

SMALL: dict[str, Any] = {
    "model": {"dim": 8, "max_length": 12, "loss": {"num_negatives": 20}},
    "training": {"steps": 6, "batch_size": 16, "eval_every": 3, "log_every": 2, "checkpoint_every": 2, "threads": 1},
    "models": {"two": {"base": "comirec_sa", "model": {"num_interests": 2}}},
}
MODELS = ("popularity", "two")
DOCS = Path(__file__).parents[2] / "docs" / "compare.md"


def ask(data: Dataset, out: Path, **over: Any) -> dict[str, Any]:
    given: dict[str, Any] = {"models": MODELS, "seeds": (1, 2), "against": "popularity", "overrides": SMALL, **over}
    return compare(given.pop("datasets", [data.path]), out, **given)


@pytest.fixture(scope="module")
def data(planted: Dataset) -> Dataset:
    return planted


@pytest.fixture(scope="module")
def done(data: Dataset, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A finished comparison of two models, two seeds."""
    out = tmp_path_factory.mktemp("comparison") / "out"
    return out, ask(data, out)


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures take a second: they are not drawn where a test is about something else."""
    monkeypatch.setattr("gemirec.experiments.compare.html", lambda *_: "")


@pytest.fixture
def copy(done: tuple[Path, dict[str, Any]], tmp_path: Path, bare: None) -> Path:
    return Path(shutil.copytree(done[0], tmp_path / "out"))


@pytest.fixture
def fits(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The folders that are trained into, in order."""
    folders: list[str] = []
    fit = Recommender.fit.__func__  # type: ignore[attr-defined]

    def counting(cls: Any, log: Any, /, **given: Any) -> Recommender:
        folders.append("/".join(Path(given["workdir"]).parts[-2:]))
        found: Recommender = fit(cls, log, **given)
        return found

    monkeypatch.setattr(Recommender, "fit", classmethod(counting))
    return folders


def rows(report: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {row["model"]: row for row in report["rows"]}


def numbers(report: dict[str, Any]) -> list[tuple[Any, ...]]:
    return [(row["model"], row["seeds"], row["metrics"], row["differences"]) for row in report["rows"]]


def run_of(out: Path, report: dict[str, Any], model: str, seed: int) -> Path:
    return out / str(rows(report)[model]["runs"][str(seed)])


def test_the_table_is_what_evaluate_says_of_the_artifacts(done: tuple[Path, dict[str, Any]], data: Dataset) -> None:
    out, report = done
    found: dict[str, list[EvaluationResult]] = {}
    for model in MODELS:
        artifacts = [Recommender.from_pretrained(run_of(out, report, model, seed) / "artifact") for seed in (1, 2)]
        found[model] = [artifact.evaluate(data, EvaluationConfig()) for artifact in artifacts]
        row = rows(report)[model]
        assert set(row["metrics"]) == set(found[model][0].metrics)
        for metric, value in row["metrics"].items():
            values = [result.metrics[metric] for result in found[model]]
            assert value["mean"] == pytest.approx(mean(values))
            assert value["sd"] == pytest.approx(stdev(values))
            assert value["low"] is None or value["low"] <= value["mean"] + 1e-12
        assert ("int_cos" in row["metrics"]) == (model == "two")
    recall_U = {m: np.mean([r.users["recall@50"].to_numpy() for r in results], axis=0) for m, results in found.items()}
    wanted = paired(recall_U["two"], recall_U["popularity"])
    gain = rows(report)["two"]["differences"]["recall@50"]
    for end in ("difference", "low", "high", "p_value"):
        assert gain[end] == pytest.approx(getattr(wanted, end))
    assert "cur@50" in rows(report)["two"]["differences"]
    assert rows(report)["popularity"]["differences"] == {}


def test_cost_and_parameters(done: tuple[Path, dict[str, Any]], data: Dataset) -> None:
    out, report = done
    cost = rows(report)["two"]["cost"]
    model = Recommender.from_pretrained(run_of(out, report, "two", 1) / "artifact").model
    items = (data.num_items + 1) * 8
    assert cost["parameters"] == sum(p.numel() for p in model.parameters())
    assert cost["parameters_beside_items"] == cost["parameters"] - items > 0
    assert cost["steps"] == 6
    assert cost["train_seconds"] > 0
    assert rows(report)["popularity"]["cost"]["parameters"] == 0


def test_the_files_say_the_same(done: tuple[Path, dict[str, Any]]) -> None:
    out, report = done
    assert json.loads((out / "compare.json").read_text()) == report
    table, text = pl.read_parquet(out / "table.parquet"), (out / "table.md").read_text()
    for row in report["rows"]:
        mine = table.filter(pl.col("model") == row["model"])
        assert mine["metric"].n_unique() == len(mine) == len(row["metrics"]) + len(row["cost"])
        line = mine.row(by_predicate=pl.col("metric") == "recall@50", named=True)
        value, gain = row["metrics"]["recall@50"], row["differences"].get("recall@50")
        assert (line["mean"], line["sd"], line["low"], line["high"]) == tuple(value.values())
        assert line["p_value"] == (gain["p_value"] if gain else None)
        assert f"| {value['mean']:.4f} ± {value['sd']:.4f} [{value['low']:.4f}, {value['high']:.4f}] |" in text
    assert report["missing"] == []
    assert report["datasets"][0]["fingerprint"] in text


def page_text(out: Path) -> str:
    return unescape((out / "report.html").read_text())


class Page(HTMLParser):
    """Everything that a page refers to, and what it can be referred to by."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.refers: list[str] = []
        self.ids: list[str] = []
        self.tags: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            elif name.endswith(("href", "src", "action", "data")):
                self.refers.append(value or "")
            self.refers += re.findall(r"url\(([^)]*)\)", value or "")


def test_the_report_stands_on_its_own(done: tuple[Path, dict[str, Any]]) -> None:
    out, report = done
    text = (out / "report.html").read_text()
    page = Page(text)
    assert not re.search(r"https?:|//[a-z]|@import", text)
    assert not page.tags & {"script", "link", "img", "iframe", "object"}
    refers = {ref for ref in page.refers if not ref.startswith("data:image/png;base64,")}  # heat maps are pixels
    assert refers <= {f"#{name}" for name in page.ids}
    assert text.count("<svg") == 5  # standing, training, first k, diversity, heat map
    assert "served with its first k interests" in text
    assert "not what training with k would give" in text
    for row in report["rows"]:
        assert f"<td>{row['model']}</td>" in text
        assert f"{row['metrics']['ndcg@50']['mean']:.4f}" in text


def test_the_views_agree_with_the_evaluation(done: tuple[Path, dict[str, Any]]) -> None:
    out, report = done
    for model in MODELS:
        scores = run_of(out, report, model, 1) / rows(report)[model]["evaluation"]
        seen, metrics = json.loads((scores / "views.json").read_text()), EvaluationResult.read(scores).metrics
        free, _, *_, bound = seen["trade_off"]
        assert (free["recall@50"], free["diversity@50"]) == (metrics["recall@50"], metrics["diversity@50"])
        assert free["strength"] == free["lambda"] == 0
        assert bound["diversity@50"] > free["diversity@50"]
        assert not (run_of(out, report, model, 2) / rows(report)[model]["evaluation"] / "views.json").exists()
    assert [row["k"] for row in seen["first_k"]] == [1, 2]
    assert seen["first_k"][1]["recall@50"] == metrics["recall@50"]
    assert seen["first_k"][0]["exclusive@50"] is None
    (one, cosine), (same, two) = seen["cosine_KK"]
    assert (one, two) == (pytest.approx(1), pytest.approx(1))
    assert cosine == same == pytest.approx(metrics["int_cos"])


def bare_id(name: str) -> str:
    """The id of an item without a title, as the report calls it."""
    return name.partition(" [")[0].removeprefix("item ")


def test_the_report_shows_what_the_best_model_sees_in_drawn_users(
    done: tuple[Path, dict[str, Any]], data: Dataset
) -> None:
    """Everything of the section anew from the artifact and the histories before the test."""
    out, report = done
    found = examples(report, out, data)
    assert found is not None
    assert found == examples(report, out, data)
    assert found["model"] == "two"  # popularity has one interest
    assert len({user["user"] for user in found["users"]}) == 3
    artifact, text = Recommender.from_pretrained(run_of(out, report, "two", 1) / "artifact"), page_text(out)
    for window in evaluation_batches(data, "test", batch_size=1, max_length=12):
        user = next((u for u in found["users"] if u["user"] == f"user-{int(window.user_B[0])}"), None)
        if user is None:
            continue
        history = [f"item-{item}" for item in window.seen_E.tolist()]
        later = {f"item-{item}" for item in window.target_E.tolist()}
        assert user["events"] == len(history)
        assert {bare_id(name) for name in user["next"]} <= later
        assert sum(one["share"] for one in user["interests"]) == pytest.approx(1)
        assert f"user {user['user']}: a history of {len(history)} events" in text
        why = {row["interest"]: row for row in artifact.explain(histories=[history], items=5).to_dicts()}
        own = artifact.interests(histories=[history], items=5, exclude_seen=False).to_dicts()
        for one in user["interests"]:
            assert one["share"] == why[one["interest"]]["history_share"]
            assert {bare_id(name) for name, _ in one["history"]} <= set(history)
            assert [bare_id(name) for name, _ in one["items"]] == own[one["interest"]]["items"]
            assert [came for _, came in one["items"]] == [item in later for item in own[one["interest"]]["items"]]
            for name, weight in one["history"]:
                assert f"{name} ({weight:.2f})" in text
            for word, lift in one["words"]:
                assert lift == next(w["lift"] for w in why[one["interest"]]["words"] if w["word"] == word)
                assert f"{word} ({lift:.1f}x)" in text
    alone = {**report, "rows": [row for row in report["rows"] if row["model"] == "popularity"]}
    assert examples(alone, out, data) is None


def test_nothing_is_done_twice(
    done: tuple[Path, dict[str, Any]], data: Dataset, copy: Path, fits: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, report = done
    evaluate = Recommender.evaluate
    monkeypatch.setattr(Recommender, "evaluate", lambda *_, **__: pytest.fail("evaluated again"))
    assert numbers(ask(data, copy)) == numbers(report)
    assert numbers(ask(data, copy, minutes=0)) == numbers(report)
    assert [row["seeds"] for row in ask(data, copy, seeds=(2,), minutes=0)["rows"]] == [[2], [2]]
    assert list(rows(ask(data, copy, models=("two",), against=None))) == ["two"]
    monkeypatch.setattr(Recommender, "evaluate", evaluate)
    top = merge(SMALL, {"evaluation": {"top_n": [10]}})
    assert set(rows(ask(data, copy, overrides=top))["two"]["differences"]) >= {"recall@10", "cur@10"}
    assert fits == []


def test_another_configuration_is_another_run(
    done: tuple[Path, dict[str, Any]], data: Dataset, copy: Path, fits: list[str]
) -> None:
    _, report = done
    other = merge(SMALL, {"models": {"two": {"training": {"steps": 4}}}})
    changed = ask(data, copy, overrides=other, seeds=(1,))
    assert [folder.partition("-")[0] for folder in fits] == ["comirec_sa"]
    assert rows(changed)["two"]["cost"]["steps"] == 4
    assert rows(changed)["popularity"]["runs"]["1"] == rows(report)["popularity"]["runs"]["1"]
    assert numbers(ask(data, copy)) == numbers(report)
    assert len(fits) == 1


def test_other_data_are_other_runs(
    done: tuple[Path, dict[str, Any]], data: Dataset, copy: Path, fits: list[str], tmp_path: Path
) -> None:
    second = write_planted_dataset(tmp_path / "second", num_users=60, seed=5)
    report = ask(
        data, copy, datasets=[data.path, second.path, data.path], models=("popularity",), overrides={}, seeds=(1,)
    )
    assert [row["dataset"] for row in report["rows"]] == [f"planted {d.fingerprint[:8]}" for d in (data, second)]
    assert len({row["fingerprint"] for row in report["rows"]}) == 2
    assert len(fits) == 2  # a folder given twice is one data set


def test_a_run_of_other_defaults_is_refused_and_one_from_before_a_setting_is_not(
    done: tuple[Path, dict[str, Any]], data: Dataset, copy: Path, fits: list[str]
) -> None:
    _, report = done
    file = run_of(copy, report, "two", 1) / "run" / "config.json"
    there = json.loads(file.read_text())
    del there["training"]["clip_norm"]  # as if this setting had come later
    file.write_text(json.dumps(there))
    assert numbers(ask(data, copy)) == numbers(report)
    there["training"]["weight_decay"] = 0.5  # as if this had been the default
    file.write_text(json.dumps(there))
    with pytest.raises(ConfigError, match=r"other defaults[\s\S]*weight_decay[\s\S]*delete"):
        ask(data, copy)
    assert fits == []


class Killer(Silent):
    """Ends the process's work in the middle of a training."""

    def training(self, now: Any) -> None:
        if now.step >= 4:
            raise KeyboardInterrupt


def test_a_killed_comparison_goes_on_and_ends_the_same(
    done: tuple[Path, dict[str, Any]], data: Dataset, copy: Path, fits: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, report = done
    folder = run_of(copy, report, "two", 2)
    shutil.rmtree(folder)
    with pytest.raises(KeyboardInterrupt):
        ask(data, copy, watcher=Killer())
    assert not (folder / "artifact").exists()
    assert (folder / "run" / "checkpoints" / "index.json").is_file()
    kept = ask(data, copy, minutes=0)
    assert [row["seeds"] for row in kept["rows"]] == [[1, 2], [1]]
    assert [(gap["model"], gap["seed"]) for gap in kept["missing"]] == [("two", 2)]
    with monkeypatch.context() as patch:  # the next time it ends between training and evaluation

        def stop(*_: Any, **__: Any) -> None:
            raise KeyboardInterrupt

        patch.setattr(Recommender, "evaluate", stop)
        with pytest.raises(KeyboardInterrupt):
            ask(data, copy)
    trained = list(fits)
    assert numbers(ask(data, copy)) == numbers(report)
    assert fits == trained == [f"{folder.parent.name}/seed2"] * 2
    assert not (folder / "run" / "checkpoints").exists()
    scores = run_of(copy, report, "two", 1) / rows(report)["two"]["evaluation"]
    (scores / "views.json").unlink()
    ask(data, copy)
    assert (scores / "views.json").is_file()
    assert fits == trained


def test_no_minutes_train_nothing_and_say_what_is_missing(data: Dataset, tmp_path: Path, fits: list[str]) -> None:
    report = ask(data, tmp_path / "out", minutes=0)
    assert [(gap["model"], gap["seed"]) for gap in report["missing"]] == [(m, s) for s in (1, 2) for m in MODELS]
    assert {gap["why"] for gap in report["missing"]} == {"not run: the budget of minutes"}
    assert (report["rows"], fits) == ([], [])
    assert "Missing: two on planted, seed 2: not run" in (tmp_path / "out" / "table.md").read_text()
    assert "two on planted, seed 2" in (tmp_path / "out" / "report.html").read_text()
    assert pl.read_parquet(tmp_path / "out" / "table.parquet").height == 0


def test_the_budget_keeps_out_what_would_take_too_long(
    done: tuple[Path, dict[str, Any]], data: Dataset, copy: Path, fits: list[str]
) -> None:
    """Of the second seed the cheap model still fits, and the third seed is not begun; less work left fits again."""
    _, report = done
    for model in MODELS:
        shutil.rmtree(run_of(copy, report, model, 2))
        seconds = {"train": 1000.0 if model == "two" else 0.1, "evaluate": 0.1}
        (run_of(copy, report, model, 1) / "cost.json").write_text(json.dumps(seconds))
    short = ask(data, copy, seeds=(1, 2, 3), minutes=10)
    assert [folder.partition("-")[0] for folder in fits] == ["popularity"]
    assert [(gap["model"], gap["seed"]) for gap in short["missing"]] == [("two", 2), ("popularity", 3), ("two", 3)]
    assert {gap["why"] for gap in short["missing"]} == {"not run: the budget of minutes"}
    unfinished = run_of(copy, report, "two", 2)
    unfinished.mkdir(parents=True)
    (unfinished / "cost.json").write_text(json.dumps({"train": 900.0}))  # an earlier call spent most of it
    assert ask(data, copy, minutes=10)["missing"] == []
    assert rows(ask(data, copy, minutes=0))["two"]["cost"]["train_seconds"] > 900 + 40  # the mean of 1000 and 900 more


def test_a_model_that_cannot_be_trained_is_named_and_the_others_go_on(
    data: Dataset, copy: Path, tmp_path: Path, fits: list[str]
) -> None:
    many = {"dictionary": "categories", "num_interests": 9, "epsilon": 0}  # there are six categories
    none = merge(SMALL, {"models": {"none": {"base": "gemirec", "profile": "paper", "model": many}}})
    report = ask(data, copy, models=("none", *MODELS), overrides=none)
    assert [(gap["model"], gap["seed"]) for gap in report["missing"]] == [("none", 1), ("none", 2)]
    assert "fewer interests than are asked for" in report["missing"][0]["why"]
    assert set(rows(report)) == set(MODELS)
    assert len(fits) == 1  # the second seed is not tried
    with pytest.raises(ConfigError, match="fewer interests"):
        ask(
            data,
            tmp_path / "new",
            models=("none",),
            overrides={"models": {"none": none["models"]["none"]}},
            against=None,
        )


BAD: tuple[tuple[dict[str, Any], type[GemirecError], str], ...] = (
    ({"models": ("comirec_as",), "overrides": {}}, ConfigError, "did you mean 'comirec_sa'"),
    ({"models": ()}, ConfigError, "no model to compare"),
    ({"overrides": merge(SMALL, {"models": {"remy": {"model": {}}}})}, ConfigError, "did you mean 'remi'"),
    ({"against": "gemirec"}, ConfigError, "test against does not take part"),
    ({"datasets": [Path("nowhere")]}, ArtifactError, "nowhere"),
    ({"datasets": []}, ConfigError, "no data set"),
    ({"seeds": ()}, ConfigError, "seeds"),
    ({"minutes": -1}, ConfigError, "0 minutes or more"),
    ({"minutes": float("nan")}, ConfigError, "0 minutes or more"),
    ({"split": "exam"}, ConfigError, "exam"),
    ({"profile": "best"}, ConfigError, "choose one of"),
    ({"overrides": {"trainig": {}}}, ConfigError, "did you mean 'training'"),
    ({"overrides": merge(SMALL, {"training": {"step": 3}})}, ConfigError, "did you mean 'training.steps'"),
    ({"overrides": merge(SMALL, {"model": {"dimm": 3}})}, ConfigError, "dimm"),
    ({"overrides": merge(SMALL, {"models": {"two": {"bas": "x"}}})}, ConfigError, "did you mean 'base'"),
    ({"overrides": merge(SMALL, {"evaluation": {"bootstrap": 0}})}, ConfigError, "needs intervals"),
)


@pytest.mark.parametrize(("wrong", "error", "says"), BAD)
def test_wrong_input_is_refused_before_anything_is_written(
    data: Dataset, tmp_path: Path, fits: list[str], wrong: dict[str, Any], error: type[GemirecError], says: str
) -> None:
    with pytest.raises(error, match=re.escape(says)):
        ask(data, tmp_path / "out", **wrong)
    assert fits == []
    assert not (tmp_path / "out").exists()


def test_a_folder_of_something_else_is_left_alone(data: Dataset, tmp_path: Path) -> None:
    (tmp_path / "letters.txt").write_text("dear")
    with pytest.raises(StorageError, match="something else"):
        ask(data, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["letters.txt"]


def test_shared_settings_reach_the_models_that_have_them() -> None:
    wanted = CompareConfig(model={"num_interests": 3}, training={"steps": 9}, models={"sa": {"base": "comirec_sa"}})
    found = {player.name: player for player in contestants(["all", "sa"], "paper", wanted)}
    assert found["comirec_sa"].config["model"]["num_interests"] == 3
    assert "num_interests" not in found["sasrec"].config["model"]
    assert {player.config["training"]["steps"] for player in found.values()} == {9}
    assert found["sa"].key == found["comirec_sa"].key  # the same configuration is the same run
    assert "seed" not in found["sa"].config["training"]
    keys = [player.base + player.key for player in found.values()]
    assert len(set(keys)) == len(keys) - 1
    assert digest({"a": (1, 2)}) == digest({"a": [1, 2]})


def test_models_trained_with_k_are_those_that_differ_in_k_alone() -> None:
    def row(base: str, k: int, dim: int, value: float) -> dict[str, Any]:
        config = {"model": {"num_interests": k, "dim": dim}, "training": {"steps": 1}}
        return {"base": base, "config": config, "metrics": {"recall@50": {"mean": value}}}

    found = trained_with(
        [row("a", 4, 8, 0.4), row("a", 1, 8, 0.1), row("a", 2, 16, 0.9), row("b", 4, 8, 0.5)], "recall@50"
    )
    assert found == {"a": [(1, 0.1), (4, 0.4)], "b": [(4, 0.5)]}


def test_the_verb_prints_the_table(
    done: tuple[Path, dict[str, Any]], data: Dataset, copy: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    _, report = done
    file = tmp_path / "small.yaml"
    file.write_text(json.dumps(SMALL))  # JSON is YAML
    given: dict[str, Any] = {"models": "popularity, two", "seeds": "1,2", "against": "popularity", "config": file}
    verb.compare([data.path], copy, as_json=True, quiet=True, **given)
    assert numbers(json.loads(capsys.readouterr().out)) == numbers(report)
    verb.compare([data.path], copy, minutes=0, **given)
    shown = capsys.readouterr().out
    gain = rows(report)["two"]["differences"]["recall@50"]
    assert f"{gain['difference']:+.4f} [{gain['low']:+.4f}, {gain['high']:+.4f}] {gain['p_value']:.3f}" in shown
    assert re.search(r"missing +nothing", shown)


def test_the_documentation_s_commands_run_with_its_configuration(data: Dataset, tmp_path: Path) -> None:
    """As they are written, but for the minutes: here none of them trains."""
    text = DOCS.read_text()
    (block,) = re.findall(r"```yaml\n(.*?)```", text, flags=re.DOTALL)
    (tmp_path / "variants.yaml").write_text(block)
    (tmp_path / "data").symlink_to(data.path)
    commands = [
        shlex.split(line)
        for part in re.findall(r"```sh\n(.*?)```", text, flags=re.DOTALL)
        for line in part.splitlines()
    ]
    reports = [answer(*words[1:], "--minutes", "0", cwd=tmp_path) for words in commands]
    assert [len(report["missing"]) % 3 for report in reports] == [0] * 4
    assert reports[-1]["models"] == ["comirec_sa", "k1", "k2", "k8", "comirec_sa paper", "sasrec"]
    assert {gap["seed"] for gap in reports[-1]["missing"]} == {1, 2, 3}
    assert len(reports[1]["models"]) == len(CATALOGUE)
