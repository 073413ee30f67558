"""One small model on the disk, and a server over it inside the test's process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

pytest.importorskip("prometheus_client")
pytest.importorskip("httpx")

from gemirec.recommender import Recommender
from support_models import TINY
from support_serving import Client

if TYPE_CHECKING:
    from gemirec.data.dataset import Dataset

QUICK = ["model.dim=16", "training.steps=60", "training.learning_rate=0.02", "training.eval_every=0"]


@pytest.fixture(scope="session")
def artifact(planted: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ComiRec-SA on the planted data (items item-1 ... item-120, users user-0 ... user-399)."""
    recommender = Recommender.fit(planted, model="comirec_sa", overrides=QUICK)
    return recommender.save_pretrained(tmp_path_factory.mktemp("served") / "artifact")


@pytest.fixture(scope="session")
def other_artifact(planted: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another model on the same data."""
    recommender = Recommender.fit(planted, model="comirec_sa", overrides=[*QUICK, "training.seed=9"])
    return recommender.save_pretrained(tmp_path_factory.mktemp("other") / "artifact")


@pytest.fixture(scope="session")
def recommender(artifact: Path) -> Recommender:
    """The model of ``artifact``, asked without a server."""
    return Recommender.from_pretrained(artifact)


@pytest.fixture
def make_client(artifact: Path, tmp_path: Path) -> Callable[..., Client]:
    """Make a server inside this process."""

    def make(**settings: Any) -> Client:
        return Client(artifact, tmp_path / "events.sqlite", **settings)

    return make


@pytest.fixture(scope="session")
def reading(artifact: Path, tmp_path_factory: pytest.TempPathFactory) -> Client:
    """One server for the tests that change nothing of it."""
    return Client(artifact, tmp_path_factory.mktemp("reading") / "events.sqlite")


@pytest.fixture
def client(make_client: Callable[..., Client]) -> Client:
    """A server with its defaults and no keys."""
    return make_client()


@pytest.fixture(scope="session")
def dictionary_artifact(planted: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small GemiRec on the same data: two levels of 6 and 3 codes, 3 interests."""
    overrides = {"model": TINY["gemirec"], "training": {"steps": 60, "eval_every": 0}}
    recommender = Recommender.fit(planted, model="gemirec", overrides=overrides)
    return recommender.save_pretrained(tmp_path_factory.mktemp("dictionary") / "artifact")
