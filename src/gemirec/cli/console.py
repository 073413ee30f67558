"""What the command line prints: results on stdout, progress on stderr, errors in three parts."""

from __future__ import annotations

import json
import os
import sys
from typing import TYPE_CHECKING, Any

import typer
from typer.core import TyperGroup

from gemirec.errors import GemirecError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

WRONG_INPUT = 2
"""Exit code of an error that the caller can mend: data, configuration, files."""
UNEXPECTED = 1
"""Exit code of a fault in gemirec itself."""
TRACEBACK_VARIABLE = "GEMIREC_TRACEBACK"
"""Set it to see the traceback of an error."""


class Verbs(TyperGroup):
    """The group of all verbs: the one place where errors become exit codes."""

    def invoke(self, ctx: Any) -> Any:
        """Run a verb; print a gemirec error in its three parts and leave with code 2, any other with code 1."""
        try:
            return super().invoke(ctx)
        except GemirecError as error:
            _raise_if_asked(error)
            _show_error(error.what, error.got, error.fix, as_json=bool(ctx.find_root().obj))
            raise typer.Exit(WRONG_INPUT) from None
        except BrokenPipeError:  # the reader of our output left: gemirec ... | head
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(0) from None
        except Exception as error:
            if type(error).__module__.partition(".")[0] in {"typer", "click"}:
                raise
            _raise_if_asked(error)
            fix = f"this is a fault in gemirec: run again with {TRACEBACK_VARIABLE}=1 and report what it prints"
            _show_error(
                "something unexpected happened", f"{type(error).__name__}: {error}", fix, bool(ctx.find_root().obj)
            )
            raise typer.Exit(UNEXPECTED) from None


def _raise_if_asked(error: Exception) -> None:
    """Let the traceback through where the variable asks for it."""
    if os.environ.get(TRACEBACK_VARIABLE):
        raise error


def _show_error(what: str, got: str, fix: str, as_json: bool) -> None:
    """Print an error for a reader, and for a program if it asked for JSON."""
    if as_json:
        print(json.dumps({"error": {"what": what, "got": got, "fix": fix}}, ensure_ascii=False))
    print(f"error: {what}\n  got: {got}\n  fix: {fix}", file=sys.stderr)


def emit(result: Mapping[str, Any], as_json: bool) -> None:
    """Print a result: one JSON value for programs, aligned lines and tables for readers."""
    if as_json:
        print(json.dumps(result, ensure_ascii=False, default=str))
        return
    from rich.console import Console

    console = Console(soft_wrap=True) if sys.stdout.isatty() else Console(width=160, soft_wrap=True)
    for renderable in _render(result, 0):
        console.print(renderable, highlight=False, markup=False)


def _render(result: Mapping[str, Any], depth: int) -> Iterator[Any]:
    """Yield lines and tables for one mapping."""
    pad = "  " * depth
    width = max((len(key) for key in result), default=0)
    for key, value in result.items():
        if isinstance(value, dict):
            yield f"{pad}{key}"
            yield from _render(value, depth + 1)
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            yield from ([f"{pad}{key}"] if key else [])
            yield _table(value)
        else:
            yield f"{pad}{key:{width}}  {text(value)}"


def _table(rows: list[dict[str, Any]]) -> Any:
    """Return a rich table of equal mappings."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name, value in rows[0].items():
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        table.add_column(name, justify="right" if number else "left")
    for row in rows:
        table.add_row(*(text(value) for value in row.values()))
    return table


def text(value: Any) -> str:
    """Return one value as a reader wants it."""
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "-"}[value]
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1000 else f"{value:,.0f}"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(text, value))
    return str(value)
