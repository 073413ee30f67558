"""Errors that say what is wrong, what was got, and how to fix it.

Every error that a user can cause is a :class:`GemirecError`: the command line prints its three parts without a
traceback, the library raises it like any other exception.
"""

from __future__ import annotations


class GemirecError(Exception):
    r"""An error with three parts.

    Args:
        what: What is wrong, in one sentence without a full stop.
        got: The offending thing: file, row, value, key.
        fix: What the reader should do about it.

    Example:
        >>> str(GemirecError("the log is empty", got="log.parquet (0 rows)", fix="give a log with events"))
        'the log is empty\n  got: log.parquet (0 rows)\n  fix: give a log with events'
    """

    def __init__(self, what: str, *, got: object, fix: str) -> None:
        self.what = what
        self.got = str(got)
        self.fix = fix
        super().__init__(f"{what}\n  got: {self.got}\n  fix: {fix}")


class DataError(GemirecError):
    """A log, item table or user table cannot be used as it is."""


class ConfigError(GemirecError):
    """A configuration key, value or combination is wrong."""


class ArtifactError(GemirecError):
    """A file or folder written by gemirec is missing, damaged, or of another version."""


class StorageError(GemirecError):
    """A file could not be read or written: rights, space, or the disk itself."""


class TrainingError(GemirecError):
    """Training cannot go on: a loss that is not finite, no training window, a checkpoint of another run."""


class RetrievalError(GemirecError):
    """An index cannot be used or saved: its recall is too low, or its database does not answer."""


class MissingExtraError(GemirecError):
    """An optional dependency is needed and not installed."""

    def __init__(self, extra: str, module: str) -> None:
        super().__init__(
            f"the optional dependency {module!r} is not installed",
            got=f"import of {module!r}",
            fix=f"pip install 'gemirec[{extra}]'",
        )
