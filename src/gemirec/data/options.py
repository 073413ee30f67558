"""Settings of :func:`gemirec.data.prepare.prepare`: names of columns, filters, split."""

from __future__ import annotations

from typing import Literal

from gemirec.config import Config
from gemirec.errors import ConfigError

Format = Literal["auto", "parquet", "csv", "tsv", "jsonl", "inter", "comirec"]


class Columns(Config, frozen=True, kw_only=True):
    """Names of the log's columns. The last three are used where the log has them; ``null`` ignores them."""

    user: str = "user_id"
    """Who: integers or strings."""
    item: str = "item_id"
    """What: integers or strings."""
    timestamp: str | None = "timestamp"
    """When: numbers of any unit, or dates. ``null``, or a log without any such column: the order of the rows."""
    event: str | None = "event"
    """Kind of event (click, buy, ...), for the filter ``events``."""
    weight: str | None = "weight"
    """Weight of the event, at least 0; kept beside the events and given to the training batches."""
    split: str | None = "split"
    """The user's own split (train, valid, test): where the log has this column, it wins over ``split``."""

    def __post_init__(self) -> None:
        """Refuse one column in two roles."""
        named = [name for name in (self.user, self.item, self.timestamp, self.event, self.split) if name]
        if len(set(named)) < len(named):
            raise ConfigError("one column is named for two roles", got=named, fix="give every role a column of its own")


class PrepareConfig(Config, frozen=True, kw_only=True):
    """How a log becomes a dataset. The defaults are ComiRec's protocol (METHODS 6.1)."""

    columns: Columns = Columns()
    """Names of the log's columns."""
    format: Format = "auto"
    """Format of the log's files; ``auto`` goes by the ending of the name (``.txt`` is ComiRec's)."""
    id_type: Literal["auto", "integer", "string"] = "auto"
    """``string`` reads every id as text; ``auto`` takes the column's own type (text files: by their first rows)."""
    nulls: Literal["error", "drop"] = "error"
    """What a missing id or timestamp means: refuse the log, or leave the event out (counted in the statistics)."""
    allow_negative_times: bool = False
    """Accept timestamps below 0 (before 1970). Off, because -1 most often stands for a missing value."""
    events: tuple[str, ...] = ()
    """Kinds of events kept, by the event column; empty keeps all (Taobao: ``["pv"]``)."""
    min_weight: float | None = None
    """Least weight of an event that is kept (ratings: 4 keeps the 4s and 5s); ``null`` keeps all."""
    keep_weights: bool = True
    """Write the weights beside the events. Off: the weight column serves the filter only."""
    duplicates: Literal["keep", "drop_exact", "keep_first", "keep_last"] = "keep"
    """``drop_exact``: one event per user, item and time. ``keep_first``/``keep_last``: one per user and item."""
    filter: Literal["one_pass", "k_core", "none"] = "one_pass"
    """``one_pass``: frequent items, then users by what is left (ComiRec). ``k_core``: both again until nothing goes."""
    min_item: int = 5
    """Fewest events of an item that stays."""
    min_user: int = 5
    """Fewest events of a user that stays."""
    split: Literal["users", "leave_one_out", "global_time", "column"] = "users"
    """``users``: other users are held out (ComiRec). ``leave_one_out``: last event tests, the one before validates.
    ``global_time``: two cuts in time. ``column``: the log's own column (taken anyway where there is one)."""
    fractions: tuple[float, float, float] = (0.8, 0.1, 0.1)
    """Share of users (``users``) or of events (``global_time``) in train, valid, test."""
    evaluation_cut: float = 0.8
    """A held-out user's history is the first ``floor(cut x length)`` events, the targets are the rest."""
    cut_times: tuple[int, int] | None = None
    """``global_time``: first time of valid and of test, in the log's unit; ``null`` takes them from ``fractions``."""
    check_time_leak: bool = False
    """Refuse a split in which a training event is later than a held-out one. Always on for ``global_time``."""
    category: str | None = "category"
    """Column of the item table that names an item's category; of a list, the first entry."""
    user_categorical: tuple[str, ...] | None = None
    """Categorical features in the user table; ``null`` picks them (text, booleans, whole numbers of few values)."""
    user_numeric: tuple[str, ...] | None = None
    """Numeric features in the user table; ``null`` picks the other number columns."""
    max_vocabulary: int = 10_000
    """Most values of a categorical user feature; rarer ones count as unknown."""
    shards: int = 0
    """Parts on disk; 0 makes one per 16 million events."""
    seed: int = 1
    """Seed of the order and the split of users."""
    name: str = ""
    """Name of the dataset; empty takes the name of the file or folder."""

    def __post_init__(self) -> None:
        """Refuse values that no log could satisfy."""
        total = sum(self.fractions)
        if min(self.fractions) < 0 or self.fractions[0] <= 0 or abs(total - 1) > 1e-6:
            raise ConfigError(
                "fractions must be shares of train, valid and test that sum to 1",
                got=self.fractions,
                fix="write for example fractions=[0.8, 0.1, 0.1]",
            )
        if not 0 < self.evaluation_cut < 1:
            raise ConfigError(
                "evaluation_cut must lie between 0 and 1", got=self.evaluation_cut, fix="ComiRec's value is 0.8"
            )
        if self.cut_times is not None and self.cut_times[0] > self.cut_times[1]:
            raise ConfigError(
                "cut_times must be in order", got=self.cut_times, fix="give the start of valid, then the start of test"
            )
        for name in ("min_item", "min_user", "shards", "seed"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} must not be negative", got=getattr(self, name), fix="give 0 or more")
