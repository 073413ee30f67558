"""GemiRec in the training loop: resume in every stage, stages without length, and what a run says of its dictionary."""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING, Any

import pytest
import torch

from gemirec.artifacts import load_tensors
from gemirec.config import TrainingConfig, merge
from gemirec.models.gemirec import GemiRec
from gemirec.models.gemirec.dictionary import LearnedDictionary
from gemirec.training import loop, session
from gemirec.training.checkpoint import Checkpoints
from gemirec.training.loop import TrainResult, train
from gemirec.training.tracking import read_metrics
from support_models import TINY

if TYPE_CHECKING:
    from pathlib import Path

    from gemirec.data.dataset import Dataset

SPANS = {"retrieval": (0, 6), "dictionary": (6, 11), "joint": (11, 18)}
LENGTHS: dict[str, Any] = {"retrieval_share": 6.0, "dictionary_share": 5.0, "joint_share": 7.0}
RESUMED: dict[str, Any] = {**LENGTHS, "refresh_every": 3, "quantizer": {"sizes": [12, 6], "dead_after": 2}}
"""Every state of its own that GemiRec has: assignments that lag, their clock, how long each code has been idle."""


def run(dataset: Dataset, out: Path, *, resume: bool = False, every: int = 1, **over: Any) -> TrainResult:
    training = TrainingConfig(
        steps=18, batch_size=8, eval_every=9, checkpoint_every=every, log_every=1, learning_rate=0.01
    )
    return train(
        "gemirec", dataset, model_config=merge(TINY["gemirec"], over), training=training, out=out, resume=resume
    )


def assert_equal_runs(one: Path, other: Path) -> None:
    """Weights, buffers and optimiser states of last and best, and metrics.jsonl, times left out."""
    for which in ("last", "best"):
        left, right = Checkpoints(one).folder(which), Checkpoints(other).folder(which)
        assert left.name == right.name
        for file in ("model.safetensors", "optimizer.safetensors"):
            first, second = load_tensors(left / file), load_tensors(right / file)
            assert first.keys() == second.keys()
            assert [name for name in first if not torch.equal(first[name], second[name])] == [], (which, file)
    times = {"examples_per_s", "seconds"}
    lines = [[{k: v for k, v in line.items() if k not in times} for line in read_metrics(r)] for r in (one, other)]
    assert lines[0] == lines[1]


@pytest.fixture
def starts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the stage starts that have run."""
    ran: list[str] = []

    def watch(name: str) -> None:
        start = getattr(GemiRec, name)

        def spy(self: GemiRec) -> None:
            ran.append(name)
            start(self)

        monkeypatch.setattr(GemiRec, name, spy)

    watch("start_dictionary")
    watch("start_joint")
    return ran


@pytest.fixture(scope="module")
def whole(planted: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The uninterrupted run."""
    out = tmp_path_factory.mktemp("gemirec") / "run"
    revived: dict[str, int] = {}
    after_step = LearnedDictionary.after_step

    def spy(self: LearnedDictionary, quantized: Any, generator: Any) -> None:
        before = [codebook.clone() for codebook in self.quantizer.codebooks]
        after_step(self, quantized, generator)
        moved = any(not torch.equal(a, b) for a, b in zip(before, self.quantizer.codebooks, strict=True))
        revived["moved"] = revived.get("moved", 0) + moved

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LearnedDictionary, "after_step", spy)
        result = run(planted, out, **RESUMED)
    assert revived["moved"] > 4
    assert isinstance(result.model, GemiRec)
    last = load_tensors(Checkpoints(out).folder("last") / "model.safetensors")
    assert int(last["joint_steps"]) == 7
    assert bool(last["dictionary.quantizer.idle_M"].any())
    return out


ALL_STARTS = ["start_dictionary", "start_joint"]


@pytest.mark.parametrize(
    ("step", "every", "again"),
    [
        (3, 1, ALL_STARTS),  # inside stage 1
        (6, 1, ALL_STARTS),  # at the boundary: stage 2 had started, its first step had not been done
        (8, 1, ALL_STARTS[1:]),  # inside stage 2: its k-means must not run again
        (11, 1, ALL_STARTS[1:]),
        (12, 1, []),  # joint step 1 of a refresh every 3
        (13, 1, []),
        (14, 1, []),  # where a refresh is due
        (10, 4, ALL_STARTS[1:]),  # done again from step 8
        (7, 4, ALL_STARTS),  # from the boundary's own checkpoint
    ],
)
def test_resume_in_every_stage_is_bit_equal(
    step: int,
    every: int,
    again: list[str],
    planted: Dataset,
    tmp_path: Path,
    whole: Path,
    starts: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    apply_gradients, calls = session.apply_gradients, iter(range(100))

    def interrupted(*arguments: Any) -> None:
        if next(calls) == step:
            raise KeyboardInterrupt
        apply_gradients(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "apply_gradients", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(planted, tmp_path / "cut", every=every, **RESUMED)
    starts.clear()
    if every == 1:
        run(planted, tmp_path / "cut", resume=True, **RESUMED)
        assert_equal_runs(tmp_path / "cut", whole)
    else:
        run(planted, tmp_path / "cut", resume=True, every=every, **RESUMED)
        same = load_tensors(Checkpoints(whole).folder("last") / "model.safetensors")
        last = load_tensors(Checkpoints(tmp_path / "cut").folder("last") / "model.safetensors")
        assert [name for name in same if not torch.equal(same[name], last[name])] == []
    assert starts == again


@pytest.mark.parametrize(
    ("stage", "ran"), [("dictionary_share", ["start_joint", "start_dictionary"]), ("retrieval_share", ALL_STARTS)]
)
def test_a_stage_of_no_length_is_left_out(
    stage: str, ran: list[str], planted: Dataset, tmp_path: Path, starts: list[str]
) -> None:
    """Without its own stage the dictionary is set when the joint one starts."""
    result = run(planted, tmp_path / "run", **{**LENGTHS, stage: 0.0})
    assert starts == ran
    left = [name for name in ("retrieval", "dictionary", "joint") if name != stage.removesuffix("_share")]
    stages = [line["stage"] for line in read_metrics(tmp_path / "run") if line["kind"] == "train"]
    assert list(dict.fromkeys(stages)) == left
    assert len(stages) == 18
    assert isinstance(result.model, GemiRec)
    assert int(result.model.phase) == 2
    assert result.model.diagnostics()["utilisation"] > 0.5
    assert result.best_metric is not None


def health(out: Path) -> list[dict[str, Any]]:
    return [line for line in read_metrics(out) if line["kind"] == "health"]


def test_a_run_says_how_its_dictionary_is(planted: Dataset, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """At every validation and at every stage's end, once there is a dictionary; a healthy one raises no alarm."""
    with caplog.at_level(logging.WARNING, logger="gemirec"):
        result = run(planted, tmp_path, **LENGTHS)
    lines = health(tmp_path)
    assert [(line["step"], line["stage"]) for line in lines] == [(9, "dictionary"), (11, "dictionary"), (18, "joint")]
    assert isinstance(result.model, GemiRec)
    assert result.best_step == 18
    assert {key: lines[-1][key] for key in result.model.diagnostics()} == result.model.diagnostics()
    assert {line["alarm"] for line in lines} == {0.0}
    assert caplog.messages == []


def test_a_collapsed_dictionary_raises_the_alarm_once_per_stage(
    planted: Dataset, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """From random codes nearly all items share a few interests, as the paper found (21.6 % of its codes in use)."""
    with caplog.at_level(logging.WARNING, logger="gemirec"):
        run(planted, tmp_path, **LENGTHS, quantizer={"sizes": [64, 32], "init": "random"})
    lines = health(tmp_path)
    assert [line["alarm"] for line in lines] == [1.0, 1.0, 1.0]
    assert max(line["utilisation"] for line in lines) < 0.25
    assert len(caplog.messages) == 2
    for message, stage in zip(caplog.messages, ("dictionary", "joint"), strict=True):
        assert message.startswith(f"stage {stage}, step ")
        assert "the interest dictionary has collapsed: its levels use" in message


def test_one_level_of_one_code_trains_and_its_log_is_json(planted: Dataset, tmp_path: Path) -> None:
    """Its codes have no distance between them: infinity is left out of the line, for JSON has none."""
    over: dict[str, Any] = {"quantizer": {"sizes": [1]}, "num_interests": 1}
    result = run(planted, tmp_path, **LENGTHS, **over)
    assert isinstance(result.model, GemiRec)
    assert result.model.diagnostics()["min_distance_level_1"] == float("inf")

    def refuse(text: str) -> None:
        raise AssertionError(text)

    for line in (tmp_path / "metrics.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=refuse)
    last = health(tmp_path)[-1]
    assert "min_distance_level_1" not in last
    assert (last["utilisation"], last["entropy_level_1"], last["alarm"]) == (1.0, 1.0, 0.0)


def test_models_without_an_inner_state_write_no_health(planted: Dataset, tmp_path: Path) -> None:
    training = TrainingConfig(steps=2, batch_size=8, eval_every=1)
    train("comirec_sa", planted, model_config=TINY["comirec_sa"], training=training, out=tmp_path)
    assert health(tmp_path) == []
