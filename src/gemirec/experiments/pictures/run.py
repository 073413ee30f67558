"""Draw the pictures of one or two artifacts into a folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gemirec.artifacts import atomic_file, read_json, translate_os_errors, write_json
from gemirec.components.codes import unflatten
from gemirec.data.dataset import Dataset
from gemirec.errors import ConfigError, DataError
from gemirec.experiments.pictures.canvas import figure, save
from gemirec.experiments.pictures.case import Case, Names, find_case, with_codes
from gemirec.experiments.pictures.curves import curves_figure
from gemirec.experiments.pictures.map import colour_key, item_map, map_figure, sample_items
from gemirec.experiments.pictures.posterior import posterior, posterior_figure
from gemirec.experiments.pictures.refinement import refinement, refinement_figure, with_refiner
from gemirec.experiments.pictures.tree import tree_figure, tree_rows, tree_text
from gemirec.experiments.watch import Silent, Watcher
from gemirec.models.dmi import DMI
from gemirec.models.gemirec import GemiRec
from gemirec.recommender import Recommender
from gemirec.training.tracking import read_metrics

PICTURES = ("map", "tree", "posterior", "refinement", "curves")
OF_CODES = {"tree", "posterior"}
"""Those that need a dictionary of interests."""
OF_USER = {"map", "posterior", "refinement"}
"""Those that show a user."""


def pictures(
    artifact: Path,
    dataset: Path,
    out: Path,
    *,
    beside: Path | None = None,
    user: str | None = None,
    run: Path | None = None,
    which: Sequence[str] | None = None,
    items: int = 1500,
    depth: int = 2,
    watcher: Watcher | None = None,
) -> dict[str, Any]:
    """Draw what can be drawn of an artifact, or what is asked for; files that are there are replaced.

    Args:
        artifact: A trained model.
        dataset: The prepared dataset that it was trained on.
        out: Folder of the pictures.
        beside: Another artifact of the same dataset, shown beside the first one on the item map.
        user: A held-out user's id; ``None`` takes one whose interests evolve, see
            :func:`~gemirec.experiments.pictures.case.find_case`.
        run: A run folder (``OUT/run`` of ``gemirec train``), for the curves.
        which: Of :data:`PICTURES`; ``None`` draws all that the model has and the arguments allow.
        items: Most items on the map.
        depth: Levels of the tree.
        watcher: Shows progress.

    Returns:
        ``pictures`` (name to file), ``user``, and ``notes`` on what was not drawn.

    Raises:
        ConfigError: An unknown picture, or one that the model or the arguments cannot give.
        DataError: An artifact of another dataset, or a user who is not held out.
        MissingExtraError: matplotlib is not installed.
    """
    wanted = _wanted(which, run)
    figure(1, 1)  # without matplotlib nothing shall be computed first
    paths = [artifact, *([beside] if beside else [])]
    studio = _Studio.open(paths, Dataset.open(dataset), need_codes=bool(OF_CODES & set(which or ())))
    watcher = watcher or Silent()
    notes = []
    if which is None and studio.coded is None:
        notes.append(f"no tree and no posterior: {studio.why}")
        wanted = [name for name in wanted if name not in OF_CODES]
    refiner = isinstance(studio.models[0].model, DMI)
    if which is None and not refiner:
        wanted = [name for name in wanted if name != "refinement"]
    if "refinement" in wanted:
        with_refiner(studio.models[0].model, artifact)
    if which is None and run is None:
        notes.append("no curves: give the run folder with --run")
    case = find_case(studio.data, user, label_N=studio.labels()) if set(wanted) & OF_USER else None
    with translate_os_errors(out):
        out.mkdir(parents=True, exist_ok=True)
    files: dict[str, str] = {}
    for name in wanted:
        watcher.note(f"drawing {name}")
        if name == "map":
            assert case is not None
            files[name] = str(save(studio.map(case, items), out / "map.png"))
        elif name == "tree":
            files |= studio.tree(out, depth)
        elif name == "posterior":
            assert case is not None
            files[name] = str(save(studio.posterior(case), out / "posterior.png"))
        elif name == "refinement":
            assert case is not None
            files[name] = str(save(studio.refinement(case, artifact), out / "refinement.png"))
        else:
            assert run is not None
            files[name] = str(save(_curves(run), out / "curves.png"))
    return {"pictures": files, "user": None if case is None else case.user_id, "notes": notes}


def _wanted(which: Sequence[str] | None, run: Path | None) -> list[str]:
    """Return the names of the pictures to draw, in the order of :data:`PICTURES`."""
    unknown = [name for name in which or () if name not in PICTURES]
    if unknown or (which is not None and not which):
        raise ConfigError("no such picture", got=", ".join(unknown) or "none", fix=f"choose from {', '.join(PICTURES)}")
    if which is not None and "curves" in which and run is None:
        raise ConfigError("the curves need a run folder", got="no --run", fix="--run OUT/run (of gemirec train)")
    return [name for name in PICTURES if (which is None or name in which) and (name != "curves" or run is not None)]


@dataclass(frozen=True)
class _Studio:
    """What the pictures share.

    Attributes:
        models: One recommender or two.
        data: Their dataset.
        coded: The first trained GemiRec among them; ``None`` without one.
        why: Why the first of them that is refused has no codes to show.
        names: What things are called.
    """

    models: list[Recommender]
    data: Dataset
    coded: GemiRec | None
    why: str
    names: Names

    @classmethod
    def open(cls, paths: Sequence[Path], data: Dataset, *, need_codes: bool) -> _Studio:
        """Load the artifacts, and hold them against the dataset; without codes raise if they are needed."""
        models = [Recommender.from_pretrained(path) for path in paths]
        for path, recommender in zip(paths, models, strict=True):
            _check_same_data(recommender, path, data)
        coded, refusal = None, None
        for path, recommender in zip(paths, models, strict=True):
            try:
                coded = coded or with_codes(recommender.model, path)
            except ConfigError as error:
                refusal = refusal or error
        if need_codes and coded is None and refusal is not None:
            raise refusal
        return cls(models, data, coded, refusal.what if refusal else "", Names(data, coded))

    def labels(self) -> np.ndarray[Any, Any] | None:
        """Return the category ``[N + 1]`` of every item (without any, level-1 code + 1), for the choice of the user."""
        if self.names.category_N is not None or self.coded is None:
            return self.names.category_N
        return self.first_codes(self.coded) + 1

    def first_codes(self, model: GemiRec) -> np.ndarray[Any, Any]:
        """Return the level-1 code ``[N + 1]`` of every item."""
        code_N: np.ndarray[Any, Any] = unflatten(model.item_interests(), model.dictionary.sizes)[:, 0].numpy()
        return code_N

    def map(self, case: Case, items: int) -> Any:
        """Draw the item map."""
        if self.coded is not None:
            label_N, what = self.first_codes(self.coded), "code"
        elif self.names.category_N is not None:
            label_N, what = self.names.category_N.astype(np.int64), "category"
        else:
            label_N, what = np.zeros(self.data.num_items + 1, dtype=np.int64), "category"
        item_S = sample_items(self.models[0].catalog.count_N, case, items)
        titles = [recommender.info.model for recommender in self.models]
        maps = [
            item_map(recommender.model, case, item_S, self.names, title)
            for recommender, title in zip(self.models, titles, strict=True)
        ]
        return map_figure(maps, case, colour_key(label_N, case, self.names, what), self.data.num_items)

    def tree(self, out: Path, depth: int) -> dict[str, str]:
        """Draw the tree, and write its rows as JSON and as text."""
        assert self.coded is not None
        rows = tree_rows(self.coded, self.data, self.names, depth=depth)
        sizes = " x ".join(map(str, self.coded.dictionary.sizes))
        title = f"The dictionary: {sizes} codes, {self.data.num_items:,} items"
        files = {"tree": save(tree_figure(rows, title), out / "tree.png")}
        files["tree_json"], files["tree_text"] = out / "tree.json", out / "tree.txt"
        write_json(files["tree_json"], {"sizes": list(self.coded.dictionary.sizes), "rows": rows})
        with atomic_file(files["tree_text"]) as tmp:
            tmp.write_text(tree_text(rows), encoding="utf-8")
        return {name: str(path) for name, path in files.items()}

    def refinement(self, case: Case, artifact: Path) -> Any:
        """Draw the way of the first model's interests."""
        found = refinement(with_refiner(self.models[0].model, artifact), case)
        return refinement_figure(found, case, self.names)

    def posterior(self, case: Case) -> Any:
        """Draw the posterior."""
        assert self.coded is not None
        return posterior_figure(posterior(self.coded, case), case, self.names)


def _curves(run: Path) -> Any:
    """Draw the curves of a run folder, with the validation metric that it was trained by."""
    config = read_json(run / "config.json") if (run / "config.json").exists() else {}
    metric = config.get("training", {}).get("metric", "recall@50")
    title = f"Training of {config.get('model_name', run)}"
    return curves_figure(read_metrics(run), metric=metric, title=title)


def _check_same_data(recommender: Recommender, path: Path, data: Dataset) -> None:
    """Raise if the model's item numbers mean other items than the dataset's."""
    trained = recommender.info.dataset.get("fingerprint")
    if trained != data.fingerprint:
        raise DataError(
            "the model was trained on other data, so its item numbers do not fit this dataset",
            got=f"{path} trained on {trained}, got {data.fingerprint} ({data.path})",
            fix="give the dataset that the model was trained on; two models must share it",
        )
