"""What ``gemirec serve`` is pointed at: an artifact, perhaps with an index, or a folder of releases."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from gemirec.errors import ConfigError
from gemirec.recommender import Recommender
from gemirec.retrieval.versions import model_version

if TYPE_CHECKING:
    from gemirec.retrieval.cached import CachedInterests
    from gemirec.retrieval.index import ItemIndex


@dataclass(frozen=True)
class Opened:
    """A model with all that belongs to it.

    Attributes:
        recommender: The model and its items.
        artifact: The artifact's folder.
        version: A name for all of it.
        index: Where items are searched; ``None`` for exactly.
        cached: The model behind a cache of interests, or ``None``.
        close: Lets go of files and connections.
    """

    recommender: Recommender
    artifact: Path
    version: str
    index: ItemIndex | None = None
    cached: CachedInterests | None = None
    close: Callable[[], None] = lambda: None


def open_served(path: Path, *, index: Path | None = None, redis_url: str | None = None) -> Opened:
    """Open what is to be served.

    Args:
        path: An artifact, or a folder of releases, of which the one is opened that is served now.
        index: An index of the artifact's items; a release has its own.
        redis_url: Where the caches in Redis are.

    Raises:
        ArtifactError: A part is missing, damaged or of another version.
        ConfigError: An index is given for a release.
    """
    if not (path / "current.json").is_file():
        recommender = Recommender.from_pretrained(path)
        if index is None:
            return Opened(recommender, path, _version(recommender, path / "artifact.json"))
        from gemirec.retrieval.index import load_index

        version = _version(recommender, path / "artifact.json", index / "index.json")
        return Opened(recommender, path, version, load_index(index))
    if index is not None:
        fix = "leave --index out: a release is searched in its own index"
        raise ConfigError("a release has its own index", got=f"{path} and {index}", fix=fix)
    from gemirec.recommender.release import ReleaseFolder

    release = ReleaseFolder(path, redis_url=redis_url).open()
    folder = path / "releases" / release.name
    version = _version(release.recommender, folder / "release.json")
    return Opened(release.recommender, folder / "artifact", version, release.index, release.cached, release.close)


def _version(recommender: Recommender, *files: Path) -> str:
    """Return a name: the model, and a hash of all that its files say and its parameters weigh."""
    digest = hashlib.sha256(model_version(recommender.model).encode())
    for file in files:
        digest.update(file.read_bytes() if file.exists() else b"")
    return f"{recommender.info.model}-{digest.hexdigest()[:12]}"
