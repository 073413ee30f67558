"""Releases: artifact, index and cache of interests that belong together and are rolled together, or not at all.

::

    ROOT/current.json             the release that is served; replaced by a rename
    ROOT/marks.bin                since when users have new events, for the caches of all releases
    ROOT/releases/NAME/
        release.json              versions of the parts, written last
        artifact/                 model (with its dictionary and fusion) and items
        index/                    optional: an index of the items; without it they are searched exactly
        cache/                    optional: the store of cached interests; one in Redis is named in release.json

A release is opened whole, and refused if one part is of another version than the others. A request takes one
:class:`Release` from a :class:`~gemirec.recommender.release_reader.ReleaseReader` and uses it to its end, whatever is
switched meanwhile: it never sees a mix.
"""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from gemirec.artifacts import FORMAT_VERSION, atomic_dir, check_format, read_json, translate_os_errors, write_json
from gemirec.errors import ArtifactError, ConfigError, StorageError
from gemirec.recommender.face import Recommender
from gemirec.retrieval.cached import CachedInterests
from gemirec.retrieval.index import load_index
from gemirec.retrieval.stores import StoreInfo, fill_store, open_store
from gemirec.retrieval.stores.embedded import alone
from gemirec.retrieval.stores.redis_store import fill_redis, open_redis
from gemirec.retrieval.versions import model_version, served_version

if TYPE_CHECKING:
    from gemirec.retrieval.index import ItemIndex
    from gemirec.retrieval.stores import Bulk, InterestStore

_ROLL = "make the release again from parts of one model: ReleaseFolder.add"


class ReleaseInfo(msgspec.Struct, frozen=True, kw_only=True):
    """Content of ``release.json``.

    Attributes:
        name: Of the release.
        model_version: :func:`~gemirec.retrieval.versions.model_version`.
        items_version: :func:`~gemirec.retrieval.versions.served_version`: of the vectors that are searched.
        artifact: SHA-256 of ``artifact/artifact.json``.
        index: SHA-256 of ``index/index.json``, if there is an index.
        cache: Where the cached interests are: ``embedded``, ``redis``, or nowhere.
        redis: The generation in Redis.
        redis_prefix: Of its keys.
        format_version: Of the layout.
    """

    name: str
    model_version: str
    items_version: str
    artifact: str
    index: str | None = None
    cache: str | None = None
    redis: StoreInfo | None = None
    redis_prefix: str = "gemirec"
    format_version: int = FORMAT_VERSION


@dataclass(frozen=True)
class Release:
    """The parts of one version, opened.

    Attributes:
        info: Names and versions.
        recommender: Model and items; it searches in the release's index.
        index: The release's index; ``None`` where items are searched exactly.
        store: The release's store of cached interests, or ``None``.
        cached: The model behind that store, or ``None``.
    """

    info: ReleaseInfo
    recommender: Recommender
    index: ItemIndex | None = None
    store: InterestStore | None = None
    cached: CachedInterests | None = None

    @property
    def name(self) -> str:
        """Name of the release."""
        return self.info.name

    @property
    def version(self) -> str:
        """Version of the model, and so of every part."""
        return self.info.model_version

    def close(self) -> None:
        """Let go of files and connections. Nothing is asked afterwards."""
        if self.store is not None:
            self.store.close()


class ReleaseFolder:
    """A folder of releases, one of which is served.

    Args:
        root: The folder; made when the first release is added.
        redis_url: Where the caches in Redis are; not written into any file, as it may hold a password.
        ttl: Seconds after which a cached value counts as missing; ``None`` for never.

    Example:
        Roll model, index and cache together::

            releases = ReleaseFolder("releases")
            releases.add("monday", "run/artifact", index="run/index", cache=bulk_of_cache("cache.parquet"))
            releases.switch("monday")
    """

    def __init__(self, root: str | Path, *, redis_url: str | None = None, ttl: float | None = None) -> None:
        self.root = Path(root)
        self.ttl = ttl
        self._redis_url = redis_url

    @property
    def names(self) -> list[str]:
        """The releases that are whole."""
        return sorted(path.parent.name for path in self.root.glob("releases/[!.]*/release.json"))

    @property
    def current(self) -> str:
        """The release that is served.

        Raises:
            ArtifactError: None has been named yet, or the pointer is damaged.
        """
        path = self.root / "current.json"
        value = read_json(path)
        check_format("release pointer", value.get("format_version") if isinstance(value, dict) else None, path)
        return _plain(value.get("release"), path)

    def add(
        self,
        name: str,
        artifact: str | Path,
        *,
        index: str | Path | None = None,
        cache: Bulk | None = None,
        redis_prefix: str | None = None,
    ) -> Path:
        """Put a release together; it appears whole or not at all, and is not served yet.

        Args:
            name: Of the release; letters, digits and the like, no path.
            artifact: Folder of the trained model; it is copied.
            index: Folder of an index of its items; it is copied.
            cache: What fills the store of cached interests (``bulk_of_cache(FILE)``, or ``Bulk(store_info(model),
                users, ())`` for one that requests fill); ``None`` for no cache.
            redis_prefix: Keep the cache in Redis, under keys with this prefix.

        Returns:
            Its folder.

        Raises:
            ArtifactError: A part is of another version than the model, or is damaged.
            StorageError: There is a release of this name, or the disk refuses.
        """
        folder = self.root / "releases" / _plain(name, self.root)
        with translate_os_errors(folder):
            folder.parent.mkdir(parents=True, exist_ok=True)
        with alone(self.root, "releases"), atomic_dir(folder) as tmp, translate_os_errors(folder):
            shutil.copytree(artifact, tmp / "artifact")
            if index is not None:
                shutil.copytree(index, tmp / "index")
            recommender = Recommender.from_pretrained(tmp / "artifact")
            info = ReleaseInfo(
                name=name,
                model_version=model_version(recommender.model),
                items_version=served_version(recommender.model, recommender.cold),
                artifact=_digest(tmp / "artifact/artifact.json"),
                index=None if index is None else _digest(tmp / "index/index.json"),
            )
            if cache is not None:
                info = self._fill(tmp, info, cache, redis_prefix)
            write_json(tmp / "release.json", msgspec.to_builtins(info))
            self._opened(tmp, name).close()
        return folder

    def switch(self, name: str) -> None:
        """Serve a release from now on, after opening it once: what cannot be opened is not named.

        Raises:
            ArtifactError: There is no such release, a part is damaged, or the parts are of different versions.
        """
        self.open(name).close()
        write_json(self.root / "current.json", {"format_version": FORMAT_VERSION, "release": name})

    def open(self, name: str | None = None) -> Release:
        """Open a release, the one that is served without a name.

        Raises:
            ArtifactError: There is no such release, a part is damaged, or the parts are of different versions.
            ConfigError: Its cache is in Redis, and no URL is known.
        """
        name = self.current if name is None else name
        return self._opened(self.root / "releases" / _plain(name, self.root), name)

    def remove(self, name: str) -> None:
        """Remove a release that is not served; whoever has it open keeps it.

        A cache in Redis goes when the next one is filled under its prefix.

        Raises:
            StorageError: It is the one that is served.
        """
        if (self.root / "current.json").exists() and name == self.current:
            raise StorageError("the release that is served cannot be removed", got=name, fix="switch to another first")
        shutil.rmtree(self.root / "releases" / _plain(name, self.root), ignore_errors=True)

    def state(self) -> tuple[str, str]:
        """Return what a reader must open anew when it changes: the release, and the generation of its cache."""
        name = self.current
        pointer = self.root / "releases" / name / "cache" / "current.json"
        return name, str(read_json(pointer)) if pointer.exists() else ""

    def _fill(self, tmp: Path, info: ReleaseInfo, cache: Bulk, redis_prefix: str | None) -> ReleaseInfo:
        """Fill the store of a release that is being put together."""
        _same([("cache", cache.info.version)], info.model_version, tmp)
        if redis_prefix is None:
            fill_store(tmp / "cache", cache, marks=self.root / "marks.bin")
            return msgspec.structs.replace(info, cache="embedded")
        others = (_read_info(self.root / "releases" / name, name) for name in self.names)
        used = [other.redis.generation for other in others if other.redis is not None]
        filled = fill_redis(self._url(), cache, prefix=redis_prefix, ttl=self.ttl, switch=False, keep=used)
        return msgspec.structs.replace(info, cache="redis", redis=filled, redis_prefix=redis_prefix)

    def _opened(self, folder: Path, name: str) -> Release:
        """Open the parts and hold them against each other."""
        info = _read_info(folder, name)
        for part, digest in (("artifact/artifact.json", info.artifact), ("index/index.json", info.index)):
            if digest is not None and _digest(folder / part) != digest:
                raise ArtifactError("a part of the release was exchanged", got=folder / part, fix=_ROLL)
        recommender = Recommender.from_pretrained(folder / "artifact")
        index = None if info.index is None else load_index(folder / "index")
        store = self._store(folder, info)
        try:
            parts = [("artifact", model_version(recommender.model))]
            parts += [("cache", store.version)] if store is not None else []
            _same(parts, info.model_version, folder)
            items = [("items of the artifact", served_version(recommender.model, recommender.cold))]
            items += [("index", str(index.version))] if index is not None else []
            _same(items, info.items_version, folder)
            found = recommender if index is None else recommender.with_index(index)
            cached = None if store is None else CachedInterests(recommender.model, store, version=info.model_version)
        except BaseException:
            if store is not None:
                store.close()
            raise
        return Release(info, found, index, store, cached)

    def _store(self, folder: Path, info: ReleaseInfo) -> InterestStore | None:
        if info.cache == "embedded":
            return open_store(folder / "cache", ttl=self.ttl, marks=self.root / "marks.bin")
        if info.cache == "redis":
            return open_redis(self._url(), info=info.redis, prefix=info.redis_prefix, ttl=self.ttl)
        return None

    def _url(self) -> str:
        if self._redis_url is None:
            fix = 'give it: ReleaseFolder(root, redis_url="redis://...")'
            raise ConfigError("the cache of this release is in Redis, whose URL is not known", got=self.root, fix=fix)
        return self._redis_url


def _read_info(folder: Path, name: str) -> ReleaseInfo:
    path = folder / "release.json"
    value = read_json(path)
    check_format("release", value.get("format_version") if isinstance(value, dict) else None, path)
    try:
        info = msgspec.convert(value, ReleaseInfo)
    except msgspec.ValidationError as error:
        raise ArtifactError("a release is damaged", got=f"{path}: {error}", fix=_ROLL) from error
    if info.name != name:
        raise ArtifactError("a release has another name than its folder", got=f"{path}: {info.name}", fix=_ROLL)
    return info


def _same(parts: list[tuple[str, str]], version: str, folder: Path) -> None:
    """Raise unless all parts are of one version, with all of them named."""
    if any(found != version for _, found in parts):
        said = ", ".join(f"{part} {found[:16]}" for part, found in [("release", version), *parts])
        raise ArtifactError("the parts of a release are of different versions", got=f"{folder}: {said}", fix=_ROLL)


def _plain(name: object, where: Path) -> str:
    """Return a name that is one folder's."""
    if not isinstance(name, str) or not name or Path(name).name != name or name.startswith("."):
        raise ArtifactError("this is no name of a release", got=f"{where}: {name!r}", fix="give a plain name")
    return name


def _digest(path: Path) -> str:
    if not path.exists():
        raise ArtifactError("a file of the release is missing", got=path, fix=_ROLL)
    with translate_os_errors(path):
        return hashlib.sha256(path.read_bytes()).hexdigest()
