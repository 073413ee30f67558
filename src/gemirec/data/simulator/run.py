"""Writes a simulated log and its planted truth, chunk by chunk, into a folder that appears whole or not at all."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gemirec.artifacts import FORMAT_VERSION, atomic_dir, check_format, read_json, write_json
from gemirec.config import from_dict, to_dict
from gemirec.data.simulator.catalogue import QUALITIES, Catalogue, build_catalogue, cluster_name, super_name
from gemirec.data.simulator.chunk import ANNOUNCEMENTS, KINDS_OF_EVENT, Events, Users, draw_chunk
from gemirec.data.simulator.config import SimulatorConfig
from gemirec.data.simulator.features import draw_features
from gemirec.errors import ArtifactError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import pyarrow as pa
    from numpy.typing import NDArray

EVENTS_PER_CHUNK = 200_000
"""Expected events of a chunk: about 100 MB of work arrays. The log's content depends on it."""
ITEMS_PER_ROW_GROUP = 100_000


@dataclass(frozen=True)
class SimulatedLog:
    """A simulated log on disk.

    Attributes:
        path: The folder.
        config: What it was made from.
        num_events: Rows of ``interactions.parquet``.
    """

    path: Path
    config: SimulatorConfig
    num_events: int

    @classmethod
    def open(cls, path: str | Path) -> SimulatedLog:
        """Open a folder that :func:`simulate` wrote.

        Raises:
            ArtifactError: The folder is missing, damaged or of another format version.
        """
        path = Path(path)
        raw = read_json(path / "simulator.json")
        check_format("simulated log", raw.get("format_version") if isinstance(raw, dict) else None, path)
        try:
            return cls(path, from_dict(SimulatorConfig, raw["config"], where="simulator.json"), int(raw["num_events"]))
        except (KeyError, TypeError, ValueError) as error:
            raise ArtifactError("simulator.json is damaged", got=f"{path}: {error!r}", fix="simulate again") from error

    @property
    def interactions(self) -> Path:
        """The log: user_id, item_id, timestamp."""
        return self.path / "interactions.parquet"

    @property
    def items(self) -> Path:
        """The item table: item_id, title, category, subcategory."""
        return self.path / "items.parquet"

    @property
    def users(self) -> Path:
        """The user table: user_id and features."""
        return self.path / "users.parquet"

    @property
    def truth_users(self) -> Path:
        """Planted interests of every user."""
        return self.path / "truth_users.parquet"

    @property
    def truth_items(self) -> Path:
        """Cluster, popularity and vector of every item; its value in each aspect, if the log has aspects."""
        return self.path / "truth_items.parquet"

    @property
    def truth_events(self) -> Path | None:
        """Cluster and kind of every event, row for row beside the log; ``None`` if it was not asked for."""
        return self.path / "truth_events.parquet" if self.config.write_event_truth else None


def simulate(
    out: str | Path,
    config: SimulatorConfig | None = None,
    *,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> SimulatedLog:
    """Simulate a log with planted interests; the package docstring states the model.

    Args:
        out: The folder to write. It appears when it is complete.
        config: Size and shape; ``None`` takes the demo's.
        overwrite: Replace a folder that is there already.
        progress: Called as ``progress(users done, users in all)`` after every chunk.

    Returns:
        The paths of what was written.

    Raises:
        StorageError: ``out`` exists and ``overwrite`` is false, or the disk refuses.

    Example:
        >>> import tempfile, pathlib
        >>> folder = pathlib.Path(tempfile.mkdtemp()) / "log"
        >>> log = simulate(folder, SimulatorConfig(num_users=50, num_items=600))
        >>> sorted(p.name for p in folder.iterdir())[:3]
        ['interactions.parquet', 'items.parquet', 'simulator.json']
    """
    config = config or SimulatorConfig()
    with atomic_dir(out, overwrite=overwrite) as folder:
        catalogue = build_catalogue(config)
        with ExitStack() as stack:
            _Table(stack, folder / "items.parquet").write_all(_item_tables(config, catalogue))
            _Table(stack, folder / "truth_items.parquet").write_all(_item_truth_tables(config, catalogue))
        with ExitStack() as stack:
            num_events = _write_users_and_events(config, catalogue, stack, folder, progress)
        summary = {"format_version": FORMAT_VERSION, "num_events": num_events, "config": to_dict(config)}
        write_json(folder / "simulator.json", summary)
    return SimulatedLog(Path(out), config, num_events)


def _write_users_and_events(
    config: SimulatorConfig,
    catalogue: Catalogue,
    stack: ExitStack,
    folder: Path,
    progress: Callable[[int, int], None] | None,
) -> int:
    """Stream every chunk to the four tables that grow with the users; return the number of events."""
    log, features, truth = (
        _Table(stack, folder / f"{name}.parquet") for name in ("interactions", "users", "truth_users")
    )
    truth_events = _Table(stack, folder / "truth_events.parquet") if config.write_event_truth else None
    item_ids = _ids("i", catalogue.id_N, config)
    num_events = 0
    size = max(1, round(EVENTS_PER_CHUNK / config.mean_events))
    for chunk, first in enumerate(range(0, config.num_users, size)):
        count = min(size, config.num_users - first)
        users, events, rng = draw_chunk(config, catalogue, chunk, first, count)
        user_ids = _ids("u", np.arange(first, first + count), config)
        log.write(_event_columns(events, user_ids, item_ids))
        features.write({"user_id": user_ids} | draw_features(config, catalogue, users, rng))
        truth.write({"user_id": user_ids} | _user_truth(config, users, events))
        if truth_events is not None:
            kind_E = _codes(KINDS_OF_EVENT, events.kind_E)
            truth_events.write({"cluster": events.cluster_E.astype(np.int32), "kind": kind_E})
        num_events += len(events.user_E)
        if progress is not None:
            progress(first + count, config.num_users)
    return num_events


class _Table:
    """A Parquet file that grows by one row group per write."""

    def __init__(self, stack: ExitStack, path: Path) -> None:
        self._stack = stack
        self._path = path
        self._writer: Any = None

    def write(self, columns: dict[str, Any]) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        table = pa.table(columns)
        if self._writer is None:
            self._writer = self._stack.enter_context(pq.ParquetWriter(self._path, table.schema))
        self._writer.write_table(table, row_group_size=len(table))

    def write_all(self, tables: Iterator[dict[str, Any]]) -> None:
        for columns in tables:
            self.write(columns)


def _ids(letter: str, number_X: NDArray[np.int64], config: SimulatorConfig) -> pa.Array:
    """Return ids as the files have them: integers, or strings of a letter and the number."""
    import pyarrow as pa
    import pyarrow.compute as pc

    numbers = pa.array(number_X)
    if not config.string_ids:
        return numbers
    return pc.binary_join_element_wise(letter, numbers.cast(pa.string()), "")


def _codes(names: tuple[str, ...], code_X: NDArray[np.int8]) -> pa.Array:
    """Return names for codes, as a dictionary column."""
    import pyarrow as pa

    return pa.DictionaryArray.from_arrays(pa.array(code_X), pa.array(names))


def _event_columns(events: Events, user_ids: pa.Array, item_ids: pa.Array) -> dict[str, Any]:
    return {
        "user_id": user_ids.take(events.user_E),
        "item_id": item_ids.take(events.item_E),
        "timestamp": events.time_E,
    }


def _user_truth(config: SimulatorConfig, users: Users, events: Events) -> dict[str, Any]:
    """Return the planted interests of a chunk's users; the birth's columns are null without one."""
    import pyarrow as pa

    filled_UJ = np.arange(config.interests_max) < users.interests_U[:, None]
    offset_U1 = np.concatenate([[0], np.cumsum(users.interests_U)]).astype(np.int32)

    def ragged(value_UJ: NDArray[Any], kind: str) -> pa.Array:
        return pa.ListArray.from_arrays(offset_U1, value_UJ[filled_UJ].astype(kind))

    no_birth_U = ~users.has_birth_U
    begin_U = np.cumsum(users.events_U) - users.events_U
    birth_event_U = np.where(no_birth_U, 0, users.birth_U)
    return {
        "interests": ragged(users.cluster_UJ1[:, : config.interests_max], "int32"),
        "weights": ragged(users.weight_UJ, "float32"),
        "drift": ragged(users.drift_UJ, "float32"),
        "born_cluster": pa.array(users.cluster_UJ1[:, -1].astype(np.int32), mask=no_birth_U),
        "birth_event": pa.array(birth_event_U.astype(np.int32), mask=no_birth_U),
        "birth_time": pa.array(events.time_E[begin_U + birth_event_U], mask=no_birth_U),
        "announced_by": pa.DictionaryArray.from_arrays(
            pa.array(users.announced_U, mask=no_birth_U), pa.array(ANNOUNCEMENTS)
        ),
        "num_events": users.events_U.astype(np.int32),
    }


def _item_slices(catalogue: Catalogue) -> Iterator[NDArray[np.int64]]:
    """Yield the items' indices by ascending id, a row group at a time: the file's order says nothing of clusters."""
    order_N = np.argsort(catalogue.id_N)
    for begin in range(0, catalogue.num_items, ITEMS_PER_ROW_GROUP):
        yield order_N[begin : begin + ITEMS_PER_ROW_GROUP]


def _item_tables(config: SimulatorConfig, catalogue: Catalogue) -> Iterator[dict[str, Any]]:
    import pyarrow as pa
    import pyarrow.compute as pc

    kinds = pa.array([cluster_name(config, c) for c in range(config.num_clusters)])
    themes = pa.array([super_name(int(g)) for g in catalogue.super_I])
    qualities = pa.array([word.capitalize() for word in QUALITIES])
    spoken = pc.replace_substring(kinds, "/", " ")
    for index in _item_slices(catalogue):
        label, number = catalogue.label_N[index], catalogue.id_N[index]
        ending = pa.array(number).cast(pa.string())
        yield {
            "item_id": _ids("i", number, config),
            "title": pc.binary_join_element_wise(
                qualities.take(number % len(QUALITIES)), spoken.take(label), ending, " "
            ),
            "category": themes.take(label),
            "subcategory": kinds.take(label),
        }


def _item_truth_tables(config: SimulatorConfig, catalogue: Catalogue) -> Iterator[dict[str, Any]]:
    import pyarrow as pa

    def rows(value_XD: NDArray[Any]) -> pa.Array:
        return pa.FixedSizeListArray.from_arrays(value_XD.ravel(), value_XD.shape[1])

    popularity_N = catalogue.popularity()
    for index in _item_slices(catalogue):
        is_precursor = index >= catalogue.first_precursor
        announces = (index - catalogue.first_precursor) // max(config.precursors_per_cluster, 1)
        yield {
            "item_id": _ids("i", catalogue.id_N[index], config),
            "cluster": catalogue.cluster_N[index],
            "super_cluster": catalogue.super_I[catalogue.cluster_N[index]],
            "is_precursor": is_precursor,
            "announces": pa.array(announces.astype(np.int32), mask=~is_precursor),
            "popularity": popularity_N[index],
            "vector": rows(catalogue.vector_ND[index]),
        } | ({"aspect_values": rows(catalogue.value_NA[index])} if config.aspects else {})
