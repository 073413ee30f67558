"""The generator of a trained GemiRec as a predictor of the next item's interest, beside counting the history.

Axes: B users of a block, M interests, N items (row 0 is padding).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gemirec.evaluation.generator import GeneratorScores, seen_interests
from gemirec.evaluation.ranking import serving
from gemirec.experiments.probe_sources import history_twin
from gemirec.models.base import Histories

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from gemirec.data.batches import EvalWindows
    from gemirec.experiments.watch import Watcher
    from gemirec.models.gemirec import GemiRec


def generator_rows(
    model: GemiRec, windows: Callable[[], Iterator[EvalWindows]], watcher: Watcher
) -> dict[str, list[dict[str, Any]]]:
    """Return the sections ``generator``, ``calibration`` and ``reliability`` of a probe.

    Args:
        model: The trained model; without a generator of its own, counting the history stands alone.
        windows: Gives the batches of users, anew for each predictor.
        watcher: Shows progress.
    """
    predictors = {"history frequency": history_twin(model)}
    if model.decoder is not None:
        predictors = {"generator": model, **predictors}
    rows: dict[str, list[dict[str, Any]]] = {"generator": [], "calibration": [], "reliability": []}
    for name, predictor in predictors.items():
        watcher.note(f"probing predictions of {name}")
        scores = generator_scores(predictor, windows())
        rows["generator"] += [{"predictor": name, **row} for row in scores.rows()]
        found: dict[str, Any] = {"predictor": name}
        for group, result in scores.calibrations().items():
            found |= {f"error, {group}": result.error}
            rows["reliability"] += [{"predictor": name, "pairs of": group, **row} for row in result.bins]
        mass = scores.new_mass()
        rows["calibration"].append({**found, "P(new) predicted": mass["predicted"], "found": mass["found"]})
    return rows


def generator_scores(model: GemiRec, windows: Iterator[EvalWindows]) -> GeneratorScores:
    """Measure how well the model's generator predicts the interest of the next item.

    Users without history are left out. "Seen" are the interests of the whole history, not of the part that is read.

    Args:
        model: The model; its items' interests are the truth.
        windows: Batches of users.
    """
    scores = GeneratorScores()
    with serving(model, None) as place:
        interest_N = model.item_interests()
        for block in windows:
            histories = Histories(block.item_BL, block.user_categorical_BF, block.user_numeric_BG).to(place)
            logp_BM = model.log_probs(model.state(histories)).float()
            true_B = interest_N[block.target_E[block.target_offset_B1[:-1]].to(place)]
            seen_BM = seen_interests(
                interest_N[block.seen_E.to(place)], block.seen_offset_B1.to(place), model.num_interests
            )
            known_B = histories.length_B > 0
            if bool(known_B.any()):
                scores.add(logp_BM[known_B], true_B[known_B], seen_BM[known_B])
    return scores
