"""What serves requests from releases that are switched meanwhile: each request sees one release, whole."""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gemirec.recommender.release import Release, ReleaseFolder


class _Held:
    """A release and how many requests use it."""

    def __init__(self, release: Release, state: tuple[str, str]) -> None:
        self.release, self.state, self.users, self.replaced = release, state, 0, False


class ReleaseReader:
    """Hands the served release to requests, and replaces it while they run.

    May be used from several threads.

    Args:
        folder: The releases.

    Raises:
        ArtifactError: The release that is served cannot be opened.

    Example:
        Whatever is switched meanwhile, a request sees one release::

            reader = ReleaseReader(ReleaseFolder("releases"))
            with reader.use() as release:
                release.recommender.recommend(histories=[["item-7"]], k=10)
            reader.refresh()  # now and then, from one thread of its own
    """

    def __init__(self, folder: ReleaseFolder) -> None:
        self._folder = folder
        self._lock, self._refreshing = threading.Lock(), threading.Lock()
        self._held = self._open()

    @contextlib.contextmanager
    def use(self) -> Iterator[Release]:
        """Yield the release that is served now; it stays open until the block ends."""
        with self._lock:
            held = self._held
            held.users += 1
        try:
            yield held.release
        finally:
            with self._lock:
                held.users -= 1
                done = held.replaced and not held.users
            if done:
                held.release.close()

    def refresh(self) -> bool:
        """Take up what is served now, if that has changed; requests go on meanwhile.

        Raises:
            ArtifactError: The new release cannot be opened. The old one is served further.
        """
        with self._refreshing:
            if self._folder.state() == self._held.state:
                return False
            self._replace(self._open())
            return True

    def close(self) -> None:
        """Close the release when its last request ends. Nothing is asked afterwards."""
        self._replace(self._held)

    def _open(self) -> _Held:
        state = self._folder.state()
        return _Held(self._folder.open(state[0]), state)

    def _replace(self, new: _Held) -> None:
        with self._lock:
            old, self._held = self._held, new
            old.replaced = True
            done = not old.users
        if done:
            old.release.close()
