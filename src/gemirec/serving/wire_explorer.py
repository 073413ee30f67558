"""What travels between the server and its explorer page, beside what :mod:`gemirec.serving.wire` has."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from gemirec.serving.wire import Body, Id

MOST_POINTS = 20_000
"""Most items of a map."""
VariantName = Literal["A", "B"]
Shown = Annotated[int, Meta(ge=1, le=100)]


class VariantQuery(Body, kw_only=True, frozen=True):
    """Query of what can be asked of one of two artifacts."""

    variant: VariantName | None = None
    """Ask this artifact, whoever the user is, and log no impression; without it the user's own one answers."""


class ArtifactsQuery(Body, kw_only=True, frozen=True):
    """``GET /artifacts``: nothing to say."""


class UsersQuery(VariantQuery, kw_only=True, frozen=True):
    """``GET /users``."""

    query: Annotated[str, Meta(max_length=256)] = ""
    """The id of a user, or a part of it; empty for the first ones."""
    count: Shown = 20
    """Most users to name."""


class MapQuery(VariantQuery, kw_only=True, frozen=True):
    """``GET /map``."""

    count: Annotated[int, Meta(ge=1, le=MOST_POINTS)] = 3000
    """Most items of the map, an even sample of the catalogue from its most to its least popular item."""


class DictionaryQuery(VariantQuery, kw_only=True, frozen=True):
    """``GET /dictionary``."""

    path: Annotated[str, Meta(max_length=200, pattern=r"^([0-9]{1,9}(\.[0-9]{1,9})*)?$")] = ""
    """Codes from the first level on, with dots between: ``3.1``; empty for the whole dictionary."""
    items: Shown = 8
    """Most items to name of each code."""


class ItemsRequest(Body, kw_only=True, frozen=True):
    """``POST /items``."""

    item_ids: Annotated[list[Id], Meta(min_length=1, max_length=2000)]
    """Items that are asked about."""


class ItemFacts(msgspec.Struct, kw_only=True, frozen=True):
    """An item, and where it lies on the map."""

    item_id: int | str
    title: str | None
    category: str | None
    count: int
    """Training events."""
    x: float | None
    """Across, -1 to 1; null if the artifact's map does not have the item."""
    y: float | None
    codes: list[int] | None
    """Its path in the model's dictionary, if it has one."""


class ItemsAnswer(msgspec.Struct, kw_only=True, frozen=True):
    """Answer of ``/items``."""

    items: list[ItemFacts]
    """In the order of the request."""
    unknown: list[int | str]
    """Items that the model does not know."""
    version: str


class MapAnswer(msgspec.Struct, kw_only=True, frozen=True):
    """Answer of ``/map``."""

    items: list[ItemFacts]
    total: int
    """Items of the catalogue."""
    source: Literal["export", "principal components"]
    """``export``: the artifact's ``map.parquet``. Otherwise the directions in which the item vectors differ most."""
    version: str


class CategoryShare(msgspec.Struct, kw_only=True, frozen=True):
    """How much of a code's items a category is."""

    category: str
    share: float


class Code(msgspec.Struct, kw_only=True, frozen=True):
    """A code of the dictionary, and what it holds."""

    path: list[int]
    """Codes from the first level to this one."""
    items: int
    """Items in it."""
    share: float
    """Of all items."""
    categories: list[CategoryShare]
    """The most frequent ones."""
    top: list[ItemFacts]
    """Its items with the most training events."""


class DictionaryAnswer(msgspec.Struct, kw_only=True, frozen=True):
    """Answer of ``/dictionary``."""

    sizes: list[int]
    """Codes of each level; empty for a model without a dictionary."""
    here: Code | None
    """The path that was asked for; null if no item has it."""
    codes: list[Code]
    """The codes of the next level that hold items, the largest first."""
    version: str


class UserFound(msgspec.Struct, kw_only=True, frozen=True):
    """A user whose history is stored."""

    user_id: str
    events: int
    """Items of the history that the model knows."""
    history: list[int | str]
    """The last of them, oldest first."""


class UsersAnswer(msgspec.Struct, kw_only=True, frozen=True):
    """Answer of ``/users``."""

    users: list[UserFound]
    """The one with just this id first, then those whose id begins with it, then those that contain it."""
    total: int
    """Users whose history is stored."""
    version: str


class ArtifactFacts(msgspec.Struct, kw_only=True, frozen=True):
    """What an artifact is, and what can be asked of it."""

    variant: VariantName
    version: str
    model: str
    data: str
    """Name of the data it was trained on."""
    items: int
    users: int
    """Users whose history is stored."""
    categories: bool
    """Whether lambda can be given: the data had categories."""
    titles: bool
    sizes: list[int]
    """Codes of each level of the dictionary; empty without one."""


class ArtifactsAnswer(msgspec.Struct, kw_only=True, frozen=True):
    """Answer of ``/artifacts``."""

    artifacts: list[ArtifactFacts]
    """What is served: variant A, and B if there is a second one."""


Explored = UsersQuery | MapQuery | DictionaryQuery | ItemsRequest | ArtifactsQuery
"""What the page asks of an engine beside recommendations."""
