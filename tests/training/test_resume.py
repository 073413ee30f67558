"""Resume after ``kill -9`` gives the bits of the uninterrupted run; anything else is refused clearly."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

import support_training
from gemirec.artifacts import load_tensors, save_tensors
from gemirec.config import TrainingConfig
from gemirec.errors import ArtifactError, StorageError, TrainingError
from gemirec.models.catalog import MODELS
from gemirec.training import checkpoint, loop, session
from gemirec.training.checkpoint import Checkpoints, Which
from gemirec.training.loop import train
from gemirec.training.tracking import Tracker, read_metrics
from support_training import TWO_STAGES, fit_tiny, train_and_die

if TYPE_CHECKING:
    from gemirec.data.dataset import Dataset

TRAINING: dict[str, Any] = {
    "steps": 60,
    "eval_every": 20,
    "checkpoint_every": 7,
    "log_every": 4,
    "batch_size": 8,
    "schedule": "linear",
}
"""Two stages, 20 and 40 steps; checkpoints at steps that are no log steps; a step size of its own at every step."""


@pytest.fixture(scope="module")
def whole(planted: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The uninterrupted run."""
    run = tmp_path_factory.mktemp("whole") / "run"
    fit_tiny(planted, run, stages=TWO_STAGES, **TRAINING)
    return run


@pytest.fixture(scope="module")
def context() -> Any:
    """A clean server process that has imported torch already: each child costs a fork, not an import."""
    patch = pytest.MonkeyPatch()
    patch.setenv("PYTHONPATH", str(Path(support_training.__file__).parent), prepend=":")
    forkserver = multiprocessing.get_context("forkserver")
    preload = ["support_training", "accelerate", "gemirec.evaluation.evaluate", "polars", "torch.utils.tensorboard"]
    preload.append("torch._dynamo")  # torch imports it at the first optimiser, seconds each time
    forkserver.set_forkserver_preload(preload)
    yield forkserver
    patch.undo()


def assert_equal_runs(one: Path, other: Path) -> None:
    """Weights of last and best, optimiser state, and metrics.jsonl, times left out."""
    which: Which
    for which in ("last", "best"):
        left, right = Checkpoints(one).folder(which), Checkpoints(other).folder(which)
        assert left.name == right.name
        for file in ("model.safetensors", "optimizer.safetensors"):
            first, second = load_tensors(left / file), load_tensors(right / file)
            assert first.keys() == second.keys()
            assert all(torch.equal(first[name], second[name]) for name in first), (which, file)
    times = {"examples_per_s", "seconds"}
    lines = [[{k: v for k, v in line.items() if k not in times} for line in read_metrics(r)] for r in (one, other)]
    assert lines[0] == lines[1]


def spawn(context: Any, planted: Dataset, out: Path, kill_at: tuple[str, int] | None, training: dict[str, Any]) -> Any:
    process = context.Process(target=train_and_die, args=(str(planted.path), str(out), training, kill_at))
    process.start()
    return process


def last_of(run: Path) -> object:
    """Read the index without its checks: the other process may be between replacing it and deleting a folder."""
    file = run / "checkpoints" / "index.json"
    return json.loads(file.read_text())["last"] if file.exists() else None


MOMENTS = [("step", 33), ("files", 14), ("folder", 20), ("index", 20), ("index", 42)]


@pytest.mark.parametrize(("moment", "step"), MOMENTS)
def test_killed_at_a_chosen_moment(
    moment: str, step: int, planted: Dataset, tmp_path: Path, whole: Path, context: Any
) -> None:
    child = spawn(context, planted, tmp_path / "run", (moment, step), TRAINING)
    child.join(120)
    assert child.exitcode == -signal.SIGKILL
    fit_tiny(planted, tmp_path / "run", stages=TWO_STAGES, resume=True, **TRAINING)
    assert_equal_runs(tmp_path / "run", whole)
    entries = {entry.name for entry in (tmp_path / "run" / "checkpoints").iterdir()}
    assert entries == {"index.json", *Checkpoints(tmp_path / "run").index().values()}


def test_killed_again_and_again_at_random_moments(planted: Dataset, tmp_path: Path, context: Any) -> None:
    """A checkpoint at every step, so that most moments fall into the writing of one."""
    training = {**TRAINING, "steps": 90, "checkpoint_every": 1}
    fit_tiny(planted, tmp_path / "whole", stages=TWO_STAGES, **training)
    rng, run, kills = random.Random(time.time_ns()), tmp_path / "run", 0
    for _ in range(12):
        started = last_of(run)
        child = spawn(context, planted, run, None, training)
        while child.is_alive() and last_of(run) == started:
            time.sleep(0.002)
        child.join(rng.uniform(0, 0.08))
        child.kill()
        child.join()
        if child.exitcode == 0:
            break
        kills += 1
    fit_tiny(planted, run, stages=TWO_STAGES, resume=True, **training)
    assert kills > 0
    assert_equal_runs(run, tmp_path / "whole")


def test_resuming_a_finished_run_gives_its_best_model(planted: Dataset, whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "run")
    result = fit_tiny(planted, tmp_path / "run", stages=TWO_STAGES, resume=True, **TRAINING)
    best = load_tensors(Checkpoints(whole).folder("best") / "model.safetensors")
    assert all(torch.equal(best[name], tensor) for name, tensor in result.model.state_dict().items())
    assert result.steps == 60
    assert not result.model.started
    assert_equal_runs(tmp_path / "run", whole)


@pytest.mark.parametrize("name", [name for name in MODELS if name != "popularity"])
def test_every_model_resumes_bit_equal(
    name: str, planted: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that hid random or step state of its own would part from the uninterrupted run here."""
    config = TrainingConfig(steps=8, batch_size=16, eval_every=4, checkpoint_every=2, log_every=1)
    loss = {"num_negatives": 20} | ({"negatives": "popularity"} if name == "sasrec" else {})

    def run(out: Path, *, resume: bool = False) -> None:
        train(name, planted, model_config={"dim": 8, "loss": loss}, training=config, out=out, resume=resume)

    run(tmp_path / "whole")
    apply_gradients, calls = session.apply_gradients, iter(range(100))

    def interrupted(*arguments: Any) -> None:
        if next(calls) == 5:
            raise KeyboardInterrupt
        apply_gradients(*arguments)

    monkeypatch.setattr(loop, "apply_gradients", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut")
    run(tmp_path / "cut", resume=True)
    assert_equal_runs(tmp_path / "cut", tmp_path / "whole")


def test_a_full_disk_leaves_the_checkpoints_before_and_resumes(
    planted: Dataset, tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, tensors: dict[str, torch.Tensor]) -> None:
        if "step-00000028" in str(path) and path.name.startswith("optimizer"):
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        save_tensors(path, tensors)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save_tensors", full)
        with pytest.raises(StorageError, match="could not be") as caught:
            fit_tiny(planted, tmp_path / "run", stages=TWO_STAGES, **TRAINING)
    assert "free some disk space" in caught.value.fix
    names = {entry.name for entry in (tmp_path / "run" / "checkpoints").iterdir()}
    assert names == {"index.json", "step-00000021"}
    fit_tiny(planted, tmp_path / "run", stages=TWO_STAGES, resume=True, **TRAINING)
    assert_equal_runs(tmp_path / "run", whole)


def test_a_tensor_file_that_the_disk_refuses_is_a_storage_error(tmp_path: Path) -> None:
    """The safetensors library reports the system's error in its own type; a file size limit provokes one."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(StorageError):
            save_tensors(tmp_path / "big.safetensors", {"a": torch.zeros(100_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_two_processes_agree_and_see_other_windows(planted: Dataset, tmp_path: Path) -> None:
    """Sparse gradients are averaged over two CPU processes: both end with the same weights, unlike one process's."""
    script = tmp_path / "script.py"
    script.write_text(
        "import sys; from pathlib import Path; import os; from support_training import fit_tiny\n"
        "from gemirec.artifacts import save_tensors; from gemirec.data.dataset import Dataset\n"
        "result = fit_tiny(Dataset.open(sys.argv[1]), Path(sys.argv[2]) / 'run')\n"
        "save_tensors(Path(sys.argv[2]) / os.environ['RANK'], dict(result.model.state_dict()))\n"
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "29611"]
    environment = {**os.environ, "PYTHONPATH": str(Path(support_training.__file__).parent), "OMP_NUM_THREADS": "1"}
    subprocess.run([*command, str(script), str(planted.path), str(tmp_path)], check=True, env=environment)
    first, second = load_tensors(tmp_path / "0"), load_tensors(tmp_path / "1")
    alone = fit_tiny(planted, tmp_path / "alone").model.state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["items.weight"], alone["items.weight"])
    state = json.loads((Checkpoints(tmp_path / "run").folder("last") / "state.json").read_text())
    assert state["examples"] == 2 * 30 * 16


def test_resume_of_nothing_starts_afresh(planted: Dataset, tmp_path: Path, whole: Path) -> None:
    fit_tiny(planted, tmp_path / "run", stages=TWO_STAGES, resume=True, **TRAINING)
    assert_equal_runs(tmp_path / "run", whole)


def test_a_folder_with_a_run_is_not_trained_into(planted: Dataset, whole: Path) -> None:
    with pytest.raises(StorageError, match="holds a run already"):
        fit_tiny(planted, whole, stages=TWO_STAGES, **TRAINING)


def test_a_folder_with_something_else_is_left_alone(planted: Dataset, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(StorageError, match="something else"):
        fit_tiny(planted, tmp_path, resume=True)
    assert [entry.name for entry in tmp_path.iterdir()] == ["thesis.txt"]


def test_resume_with_another_configuration_names_the_keys(planted: Dataset, whole: Path) -> None:
    with pytest.raises(TrainingError, match="another configuration") as caught:
        fit_tiny(planted, whole, resume=True, stages=TWO_STAGES, **{**TRAINING, "learning_rate": 0.5, "seed": 4})
    assert "training.learning_rate: 0.001 there, 0.5 asked" in caught.value.got
    assert "training.seed" in caught.value.got
    assert "steps" not in caught.value.got


def test_resume_with_another_dataset_names_the_fingerprint(planted: Dataset, whole: Path, tmp_path: Path) -> None:
    shutil.copytree(planted.path, tmp_path / "data")
    info = json.loads((tmp_path / "data" / "dataset.json").read_text())
    (tmp_path / "data" / "dataset.json").write_text(json.dumps({**info, "fingerprint": "other"}))
    with pytest.raises(TrainingError, match="another configuration or dataset") as caught:
        fit_tiny(type(planted).open(tmp_path / "data"), whole, resume=True, stages=TWO_STAGES, **TRAINING)
    assert "dataset.fingerprint" in caught.value.got


@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.safetensors", "state.json"])
@pytest.mark.parametrize("keep", [0.0, 0.5, 0.99])
def test_a_cut_checkpoint_is_a_clear_error(
    file: str, keep: float, planted: Dataset, whole: Path, tmp_path: Path
) -> None:
    shutil.copytree(whole, tmp_path / "run")
    path = Checkpoints(tmp_path / "run").folder("last") / file
    path.write_bytes(path.read_bytes()[: int(keep * path.stat().st_size)])
    with pytest.raises(ArtifactError, match="damaged") as caught:
        fit_tiny(planted, tmp_path / "run", stages=TWO_STAGES, resume=True, **TRAINING)
    assert file in caught.value.got


def test_a_missing_checkpoint_folder_is_a_clear_error(planted: Dataset, whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "run")
    shutil.rmtree(Checkpoints(tmp_path / "run").folder("last"))
    with pytest.raises(ArtifactError, match="names a folder that is not there"):
        fit_tiny(planted, tmp_path / "run", stages=TWO_STAGES, resume=True, **TRAINING)


def test_a_checkpoint_of_another_model_or_version_is_refused(planted: Dataset, whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "run")
    checkpoints = Checkpoints(tmp_path / "run")
    with pytest.raises(ArtifactError, match="does not fit the model") as caught:
        checkpoints.load("last", torch.nn.Linear(3, 3))
    assert "items.weight" in caught.value.got
    path = checkpoints.folder("last") / "state.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format_version": 99}))
    with pytest.raises(ArtifactError, match="another format version"):
        fit_tiny(planted, tmp_path / "run", stages=TWO_STAGES, resume=True, **TRAINING)


def test_the_tracker_drops_later_and_half_written_lines(tmp_path: Path) -> None:
    tracker = Tracker(tmp_path, tensorboard=False)
    for step in (5, 10, 15):
        tracker.log("train", step, "s", {"loss": step / 10})
    tracker.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "st')
    Tracker(tmp_path, step=10, tensorboard=False).close()
    assert [line["step"] for line in read_metrics(tmp_path)] == [5, 10]
    assert (tmp_path / "metrics.jsonl").read_text().count("\n") == 2
    Tracker(tmp_path, tensorboard=False).close()
    assert read_metrics(tmp_path) == []
