"""Fixtures shared by the whole suite. Torch runs on one thread: two contend and are slower here."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

sys.path.insert(0, str(Path(__file__).parent))
os.environ.setdefault("OMP_NUM_THREADS", "1")

from hypothesis import settings

from support import write_planted_dataset

if TYPE_CHECKING:
    from gemirec.data.dataset import Dataset

# No test fails because the machine is slow: hypothesis would time each example.
settings.register_profile("gemirec", deadline=None)
settings.load_profile("gemirec")

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """400 users, 120 items, 6 planted interests, two shards, one categorical and two numeric user features."""
    return write_planted_dataset(tmp_path_factory.mktemp("data") / "planted", user_features=True)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real logs; tests that use it are skipped where it is absent."""
    if not SHARED_DATA.is_dir():
        pytest.skip("the folder of real logs (../shared/data) is not here")
    return SHARED_DATA
