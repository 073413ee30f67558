"""What a run does: determinism, every training field, early stopping, stages, failures, and what it leaves alone."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
import torch
from torch import Tensor

from gemirec.artifacts import load_tensors
from gemirec.config import TrainingConfig
from gemirec.data.dataset import Dataset
from gemirec.errors import ConfigError, TrainingError
from gemirec.models.base import Histories, Interests, LossTerms, Stage, TrainBatch
from gemirec.training.checkpoint import Checkpoints
from gemirec.training.loop import train_model
from gemirec.training.tracking import read_metrics
from gemirec.training.validation import Validator
from support import write_planted_dataset
from support_training import TWO_STAGES, TinyModel, fit_tiny

if TYPE_CHECKING:
    from pathlib import Path

    from gemirec.training.progress import Progress

TIMES = {"examples_per_s", "seconds"}


def last_weights(run: Path) -> dict[str, Tensor]:
    return load_tensors(Checkpoints(run).folder("last") / "model.safetensors")


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def without_times(run: Path) -> list[dict[str, Any]]:
    return [{key: value for key, value in line.items() if key not in TIMES} for line in read_metrics(run)]


def script(monkeypatch: pytest.MonkeyPatch, values: list[float]) -> None:
    """Let validation return ``values`` one after the other."""
    queue = iter(values)
    monkeypatch.setattr(Validator, "check", lambda self: None)
    monkeypatch.setattr(Validator, "metrics", lambda self: {"recall@50": next(queue)})


def test_two_runs_are_bit_equal(planted: Dataset, tmp_path: Path) -> None:
    torch.manual_seed(99)
    fit_tiny(planted, tmp_path / "a")
    torch.rand(7)  # the caller's random state must not matter
    fit_tiny(planted, tmp_path / "b")
    assert same(last_weights(tmp_path / "a"), last_weights(tmp_path / "b"))
    assert without_times(tmp_path / "a") == without_times(tmp_path / "b")


CHANGES_WEIGHTS = {
    "steps": 29,
    "batch_size": 17,
    "learning_rate": 2e-3,
    "item_learning_rate": 5e-3,
    "item_optimizer": "rowwise_adagrad",
    "weight_decay": 0.1,
    "schedule": "linear",
    "clip_norm": 1e-3,
    "sampling": "events",
    "min_history": 7,
    "seed": 2,
    "precision": "bf16",
}
CHANGES_THE_RUN = {
    "eval_every": 7,
    "eval_users": 5,
    "metric": "ndcg@7",
    "log_every": 3,
    "checkpoint_every": 4,
    "patience": 1,
    "threads": 1,
    "compile": True,
}


def test_every_training_field_is_tested_here() -> None:
    assert CHANGES_WEIGHTS.keys() | CHANGES_THE_RUN.keys() == set(TrainingConfig.__struct_fields__)


@pytest.fixture(scope="module")
def base_run(planted: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("base") / "run"
    fit_tiny(planted, run)
    return run


@pytest.mark.parametrize(("field", "value"), CHANGES_WEIGHTS.items())
def test_field_changes_the_weights(field: str, value: Any, planted: Dataset, tmp_path: Path, base_run: Path) -> None:
    fit_tiny(planted, tmp_path / "run", **{field: value})
    before, after = last_weights(base_run), last_weights(tmp_path / "run")
    assert not torch.equal(before["items.weight"], after["items.weight"])
    if field == "item_learning_rate":
        assert read_metrics(tmp_path / "run")[0]["item_lr"] == value


def test_item_optimizer_adam_differs_from_lazy_adam(planted: Dataset, tmp_path: Path, base_run: Path) -> None:
    fit_tiny(planted, tmp_path / "run", item_optimizer="adam")
    assert not same(last_weights(base_run), last_weights(tmp_path / "run"))


def steps_of(run: Path, kind: str) -> list[int]:
    return [line["step"] for line in read_metrics(run) if line["kind"] == kind]


def test_eval_every_and_log_every(planted: Dataset, tmp_path: Path, base_run: Path) -> None:
    assert steps_of(base_run, "valid") == [10, 20, 30]
    assert steps_of(base_run, "train") == [5, 10, 15, 20, 25, 30]
    fit_tiny(planted, tmp_path / "eval", eval_every=7)
    assert steps_of(tmp_path / "eval", "valid") == [7, 14, 21, 28, 30]
    fit_tiny(planted, tmp_path / "log", log_every=3)
    assert set(steps_of(tmp_path / "log", "train")) == {*range(3, 31, 3), 10, 20, 30}
    assert same(last_weights(tmp_path / "log"), last_weights(base_run))


def test_eval_users_and_metric(planted: Dataset, tmp_path: Path, base_run: Path) -> None:
    fit_tiny(planted, tmp_path / "few", eval_users=5)
    few, many = (
        next(line for line in read_metrics(r) if line["kind"] == "valid") for r in (tmp_path / "few", base_run)
    )
    assert few["recall@50"] != many["recall@50"]
    result = fit_tiny(planted, tmp_path / "metric", metric="ndcg@7")
    values = [line["ndcg@7"] for line in read_metrics(tmp_path / "metric") if line["kind"] == "valid"]
    assert result.best_metric == max(values)


def test_checkpoint_every(planted: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script(monkeypatch, [0.5, 0.4, 0.3])
    saved: list[int] = []
    save = Checkpoints.save

    def spy(self: Checkpoints, state: Any, *rest: Any, **options: Any) -> None:
        saved.append(state.step)
        save(self, state, *rest, **options)

    monkeypatch.setattr(Checkpoints, "save", spy)
    fit_tiny(planted, tmp_path / "run", checkpoint_every=4)
    assert saved == [4, 8, 10, 12, 16, 20, 24, 28, 30]  # 10 is the best


def test_patience_and_best_step(planted: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The best of [.1, .4, .3, .4, .2, .9] within patience 3 is step 20: a tie is no improvement."""
    script(monkeypatch, [0.1, 0.4, 0.3, 0.4, 0.2, 0.9])
    result = fit_tiny(planted, tmp_path / "run", steps=100, patience=3)
    assert (result.best_step, result.best_metric, result.steps) == (20, 0.4, 50)
    script(monkeypatch, [0.1, 0.4])
    reference = fit_tiny(planted, tmp_path / "reference", steps=20)
    assert same(dict(result.model.state_dict()), dict(reference.model.state_dict()))
    assert not same(dict(result.model.state_dict()), last_weights(tmp_path / "run"))
    script(monkeypatch, [0.1, 0.4, 0.3])
    assert fit_tiny(planted, tmp_path / "impatient", steps=100, patience=1).steps == 30


def test_threads_act_inside_and_nothing_global_changes(
    planted: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside: list[int] = []
    losses = TinyModel.losses

    def spy(self: TinyModel, batch: TrainBatch, stage: str) -> LossTerms:
        inside.append(torch.get_num_threads())
        return losses(self, batch, stage)

    monkeypatch.setattr(TinyModel, "losses", spy)
    threads = torch.get_num_threads()
    torch.manual_seed(5)
    model = TinyModel(planted.spec())
    before = torch.get_rng_state()
    train_model(
        model, planted, name="tiny", training=TrainingConfig(steps=2, batch_size=4, threads=threads + 1), out=tmp_path
    )
    assert set(inside) == {threads + 1}
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), before)


def test_compile_compiles_the_loss(planted: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[object] = []

    def spy(module: object) -> object:
        compiled.append(module)
        return module

    monkeypatch.setattr(torch, "compile", spy)
    fit_tiny(planted, tmp_path / "run", steps=2, compile=True)
    assert len(compiled) == 1
    fit_tiny(planted, tmp_path / "plain", steps=2)
    assert len(compiled) == 1


def test_stages_have_their_lengths_freeze_and_start_once(planted: Dataset, tmp_path: Path) -> None:
    seen: list[str] = []

    def progress(now: Progress) -> None:
        seen.append(now.stage)

    torch.manual_seed(1)
    start = TinyModel(planted.spec()).state_dict()
    result = fit_tiny(planted, tmp_path / "first", stages=(TWO_STAGES[0],), progress=progress)
    assert torch.equal(result.model.state_dict()["layer.weight"], start["layer.weight"])
    assert not torch.equal(result.model.state_dict()["items.weight"], start["items.weight"])
    seen.clear()
    both = fit_tiny(planted, tmp_path / "both", stages=TWO_STAGES, log_every=1, progress=progress)
    assert seen == ["first"] * 10 + ["second"] * 20
    assert both.model.started == ["second"]
    assert not torch.equal(both.model.state_dict()["layer.weight"], start["layer.weight"])
    assert all(parameter.requires_grad for parameter in both.model.parameters())
    assert both.best_step > 10  # the first stage has no best


def test_a_frozen_item_table_does_not_move(planted: Dataset, tmp_path: Path) -> None:
    torch.manual_seed(1)
    start = TinyModel(planted.spec()).state_dict()
    result = fit_tiny(planted, tmp_path, stages=(Stage("head", frozen=("items",)),), weight_decay=0.1)
    assert torch.equal(result.model.state_dict()["items.weight"], start["items.weight"])
    assert not torch.equal(result.model.state_dict()["layer.weight"], start["layer.weight"])


def test_freezing_what_does_not_exist_is_an_error(planted: Dataset, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="freezes a parameter that does not exist"):
        fit_tiny(planted, tmp_path, stages=(Stage("head", frozen=("itemz",)),))


def test_a_loss_that_is_not_finite_names_its_term_and_step(
    planted: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses, calls = TinyModel.losses, iter(range(1000))

    def exploding(self: TinyModel, batch: TrainBatch, stage: str) -> LossTerms:
        terms = losses(self, batch, stage)
        if next(calls) == 22:
            terms.terms["norm"] = terms.terms["norm"] * torch.inf
        return terms

    monkeypatch.setattr(TinyModel, "losses", exploding)
    with pytest.raises(TrainingError, match="'norm' is not finite") as caught:
        fit_tiny(planted, tmp_path / "run", eval_every=10)
    assert "step 23" in caught.value.got
    best = load_tensors(Checkpoints(tmp_path / "run").folder("best") / "model.safetensors")
    assert all(bool(torch.isfinite(tensor).all()) for tensor in best.values())


def test_weights_that_are_not_finite_are_never_saved(
    planted: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script(monkeypatch, [0.1])
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda self: self.param_groups[0]["params"][0].data.fill_(torch.nan))
    with pytest.raises(TrainingError, match=r"the parameter 'layer.weight' is not finite"):
        fit_tiny(planted, tmp_path / "run", steps=1)
    assert Checkpoints(tmp_path / "run").index() == {}


def test_training_weights_scale_the_loss(tmp_path: Path) -> None:
    weighted = write_planted_dataset(tmp_path / "weighted", weights=True)
    plain_path, ones_path = tmp_path / "plain", tmp_path / "ones"
    for path in (plain_path, ones_path):
        shutil.copytree(weighted.path, path)
    import numpy as np

    for shard in plain_path.glob("shards/*"):
        (shard / "weights.npy").unlink()
    for shard in ones_path.glob("shards/*"):
        np.save(shard / "weights.npy", np.ones_like(np.load(shard / "weights.npy")))
    for path in (weighted.path, plain_path, ones_path):
        fit_tiny(Dataset.open(path), tmp_path / f"run-{path.name}", steps=5)
    plain, ones, other = (last_weights(tmp_path / f"run-{name}") for name in ("plain", "ones", "weighted"))
    assert same(plain, ones)
    assert not same(plain, other)


class Counts(TinyModel):
    """Nothing to train."""

    trainable = False

    def interests(self, histories: Histories) -> Interests:
        one_BKD = torch.ones(len(histories.item_BL), 1, 8)
        return Interests(one_BKD, torch.ones(len(one_BKD), 1, dtype=torch.bool))


def test_a_model_without_training_passes_through(planted: Dataset, tmp_path: Path) -> None:
    config = TrainingConfig()
    result = train_model(Counts(planted.spec()), planted, name="counts", training=config, out=tmp_path / "run")
    assert (result.steps, result.best_step, result.examples_per_s) == (0, 0, 0.0)
    (line,) = read_metrics(tmp_path / "run")
    assert line["recall@50"] == result.best_metric
    again = train_model(
        Counts(planted.spec()), planted, name="counts", training=config, out=tmp_path / "run", resume=True
    )
    assert again.best_metric == result.best_metric
    assert len(read_metrics(tmp_path / "run")) == 1


def test_without_validation_users_the_last_weights_are_the_best(planted: Dataset, tmp_path: Path) -> None:
    import numpy as np

    shutil.copytree(planted.path, tmp_path / "data")
    for shard in (tmp_path / "data").glob("shards/*"):
        bounds = np.load(shard / "bounds.npy")
        bounds[:, 1:3] = 0
        np.save(shard / "bounds.npy", bounds)
    result = fit_tiny(Dataset.open(tmp_path / "data"), tmp_path / "run")
    assert result.best_metric is None
    assert result.best_step == 30
    assert same(dict(result.model.state_dict()), last_weights(tmp_path / "run"))


def test_tensorboard_and_jsonl_agree(base_run: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    board = accumulator.EventAccumulator(str(base_run / "tensorboard"))
    board.Reload()
    lines = read_metrics(base_run)
    for kind, key in (("train", "loss"), ("train", "loss/norm"), ("train", "examples_per_s"), ("valid", "recall@50")):
        ours = [(line["step"], line[key]) for line in lines if line["kind"] == kind]
        theirs = [(event.step, event.value) for event in board.Scalars(f"{kind}/{key}")]
        assert [step for step, _ in ours] == [step for step, _ in theirs]
        assert [value for _, value in theirs] == pytest.approx([value for _, value in ours], rel=1e-6)


def test_log_lines_hold_every_term_and_the_weighted_total(base_run: Path) -> None:
    for line in read_metrics(base_run):
        if line["kind"] == "train":
            assert line["loss"] == pytest.approx(line["loss/retrieval"] + 0.1 * line["loss/norm"], rel=1e-5)
            assert (line["lr"], line["item_lr"]) == (1e-3, 1e-3)
            assert line["examples_per_s"] > 0


def test_config_json_says_what_was_run(base_run: Path, planted: Dataset) -> None:
    config = json.loads((base_run / "config.json").read_text())
    assert config["model_name"] == "tiny"
    assert config["model"] == {"dim": 8, "max_length": 10}
    assert msgspec.convert(config["training"], TrainingConfig).steps == 30
    assert config["dataset"]["fingerprint"] == planted.fingerprint
    assert {"torch", "gemirec", "python"} <= config["versions"].keys()


def test_progress_reports_every_log_line(planted: Dataset, tmp_path: Path) -> None:
    reports: list[Progress] = []
    fit_tiny(planted, tmp_path, progress=reports.append)
    assert [report.step for report in reports] == [5, 10, 15, 20, 25, 30]
    assert {report.steps for report in reports} == {30}
    assert reports[0].value is None
    assert reports[2].value is not None
    assert all(report.examples_per_s > 0 for report in reports)


@pytest.mark.parametrize(
    ("field", "value"),
    [("steps", 0), ("batch_size", 0), ("learning_rate", -1.0), ("clip_norm", float("nan")), ("metric", "recall")],
)
def test_values_that_cannot_be_used_are_refused(field: str, value: Any, planted: Dataset, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"training.{field}"):
        fit_tiny(planted, tmp_path / "run", **{field: value})
    assert not (tmp_path / "run").exists()


def test_an_unknown_metric_shows_before_the_first_step(planted: Dataset, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not among the metrics") as caught:
        fit_tiny(planted, tmp_path / "run", metric="recal@50")
    assert "recall@50" in caught.value.fix
    assert steps_of(tmp_path / "run", "train") == []


def test_a_linear_schedule_falls_to_nothing_behind_the_last_step(planted: Dataset, tmp_path: Path) -> None:
    """Step s of S is taken with ``lr (1 - s / S)``, the item table's own rate alike."""
    training: dict[str, Any] = {
        "steps": 8,
        "log_every": 2,
        "learning_rate": 0.4,
        "item_learning_rate": 0.8,
        "schedule": "linear",
    }
    fit_tiny(planted, tmp_path / "run", **training)
    lines = [line for line in read_metrics(tmp_path / "run") if line["kind"] == "train"]
    for line in lines:
        left = 1 - (line["step"] - 1) / 8  # the rate of the step that the line ends with
        assert (line["lr"], line["item_lr"]) == pytest.approx((0.4 * left, 0.8 * left))
    assert len(lines) == 4
