"""The pure parts of a run: stage lengths, seeds, freezing, the progress bar."""

from __future__ import annotations

import io
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from gemirec.errors import ConfigError
from gemirec.models.base import Stage
from gemirec.training.progress import Progress, progress_bar
from gemirec.training.schedule import derive_seed, plan_stages


@given(
    shares=st.lists(st.floats(0.01, 100), min_size=1, max_size=6),
    steps=st.integers(1, 10_000),
)
def test_stage_lengths_add_up_and_keep_proportions(shares: list[float], steps: int) -> None:
    spans = plan_stages([Stage(str(number), share) for number, share in enumerate(shares)], steps)
    assert spans[0].start == 0
    assert spans[-1].end == steps
    for before, after in itertools.pairwise(spans):
        assert before.end == after.start
    for span, share in zip(spans, shares, strict=True):
        assert abs((span.end - span.start) - steps * share / sum(shares)) <= 1 + 1e-6


@pytest.mark.parametrize("stages", [[], [Stage("a", 0)], [Stage("a", 2), Stage("b", -1)]])
def test_stages_without_length_are_refused(stages: list[Stage]) -> None:
    with pytest.raises(ConfigError, match="no length"):
        plan_stages(stages, 10)


@given(st.integers(0, 2**40), st.integers(0, 2**40), st.integers(0, 3), st.integers(0, 4096))
def test_seeds_fit_torch_and_depend_on_every_part(seed: int, step: int, purpose: int, rank: int) -> None:
    value = derive_seed(seed, step, purpose, rank)
    assert 0 <= value < 2**63
    others = {
        derive_seed(seed + 1, step, purpose, rank),
        derive_seed(seed, step + 1, purpose, rank),
        derive_seed(seed, step, purpose + 1, rank),
        derive_seed(seed, step, purpose, rank + 1),
    }
    assert value not in others
    assert len(others) == 4
    assert seed == step or derive_seed(seed, step, purpose) != derive_seed(step, seed, purpose)


def test_the_bar_shows_step_loss_rate_and_metric() -> None:
    console = Console(file=io.StringIO(), width=160, force_terminal=True)
    with progress_bar(console) as show:
        show(Progress(50, 200, "train", 1.25, 12345.6, "recall@50", 0.111, 0.122))
    assert isinstance(console.file, io.StringIO)
    shown = console.file.getvalue()
    for part in ("train", "50/200", "loss 1.2500", "12,346 examples/s", "recall@50 0.1110 (best 0.1220)"):
        assert part in shown
