"""Write what the documentation says of models and settings from the code; ``--check`` only looks."""

from __future__ import annotations

import ast
import inspect
import sys
import textwrap
from pathlib import Path

from gemirec.config import Config, EvaluationConfig, TrainingConfig, to_dict
from gemirec.data.prepare import PrepareConfig
from gemirec.data.simulator import SimulatorConfig
from gemirec.models.catalog import MODELS, PROFILES, config_class, load_profile, model_table

SECTIONS: tuple[tuple[str, str, type[Config]], ...] = (
    ("prepare", "gemirec prepare --set KEY=VALUE", PrepareConfig),
    ("train", "gemirec train --set training.KEY=VALUE", TrainingConfig),
    ("evaluate", "gemirec evaluate --set KEY=VALUE", EvaluationConfig),
    ("simulate", "gemirec simulate --set KEY=VALUE", SimulatorConfig),
)
START, END = "<!-- generated from gemirec.models.catalog: start -->", "<!-- generated: end -->"


def with_table(text: str, table: str) -> str:
    """Return ``text`` with what stands between the marks replaced."""
    head, _, rest = text.partition(START)
    _, _, tail = rest.partition(END)
    return f"{head}{START}\n{table}{END}{tail}"


def models_page() -> str:
    """Return docs/models.md: the table, and for each model its fields with default and profiles."""
    lines = [
        "# Models",
        "",
        "Generated from `gemirec.models.catalog` by `tools/generate_docs.py`. Choose with `--model NAME`, a profile",
        "with `--profile tuned` (default) or `--profile paper`, and change a field with `--set model.FIELD=VALUE`.",
        "",
        model_table(),
    ]
    for name, row in MODELS.items():
        cls = config_class(name)
        docs = field_docs_deep(cls)
        profiles = {profile: flat(load_profile(name, profile)["model"], docs) for profile in PROFILES}
        lines += [f"## {name}", "", f"{row.line}. {row.paper}.", ""]
        lines += [
            "| field | default | " + " | ".join(PROFILES) + " | meaning |",
            "|---|---|" + "---|" * len(PROFILES) + "---|",
        ]
        for field, value in flat(to_dict(cls()), docs).items():
            cells = [plain(profiles[profile][field]) if field in profiles[profile] else "" for profile in PROFILES]
            lines.append(f"| `{field}` | {plain(value)} | " + " | ".join(cells) + f" | {docs.get(field, '')} |")
        lines.append("")
    return "\n".join(lines)


def field_docs(cls: type[Config]) -> dict[str, str]:
    """Return what the docstring under each field of a config class says, fields of its bases included."""
    found: dict[str, str] = {}
    for base in reversed([c for c in cls.__mro__ if c is not Config and issubclass(c, Config)]):
        (node,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        assert isinstance(node, ast.ClassDef)
        for field, text in zip(node.body, node.body[1:], strict=False):
            if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
                assert isinstance(field.target, ast.Name)
                found[field.target.id] = " ".join(str(text.value.value).split())
    return found


def rows_of(cls: type[Config]) -> list[str]:
    """Return one table row per field, those of nested configs included."""
    docs = field_docs_deep(cls)
    return [f"| `{key}` | {plain(value)} | {docs.get(key, '')} |" for key, value in flat(to_dict(cls()), docs).items()]


def plain(value: object) -> str:
    """Return a value as YAML has it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, (tuple, list)):
        return f"[{', '.join(map(plain, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}: {plain(part)}' for key, part in value.items())}}}"
    return str(value) if value != "" else '""'


def configuration_page() -> str:
    """Return docs/configuration.md: every key of every verb, with its default and meaning."""
    lines = ["# Configuration", "", "Generated from the config classes by `tools/generate_docs.py`.", ""]
    lines += [
        "Every key can stand in a YAML file (`--config`) or behind `--set`. A model's own keys: [models](models.md)."
    ]
    for name, usage, cls in SECTIONS:
        lines += ["", f"## {name}", "", f"`{usage}`, class `{cls.__module__}.{cls.__name__}`.", ""]
        lines += ["| key | default | meaning |", "|---|---|---|", *rows_of(cls)]
    return "\n".join(lines) + "\n"


def field_docs_deep(cls: type[Config], prefix: str = "") -> dict[str, str]:
    """Return :func:`field_docs` of a class and of the configs nested in it, keyed ``a.b``, ready for a table."""
    found = {}
    for name, text in field_docs(cls).items():
        value = getattr(cls(), name)
        found[f"{prefix}{name}"] = text.replace("|", "\\|").replace("``", "`")
        if isinstance(value, Config):
            found |= field_docs_deep(type(value), f"{prefix}{name}.")
    return found


def flat(values: dict[str, object], docs: dict[str, str], prefix: str = "") -> dict[str, object]:
    """Return nested configs as ``{"a.b": value}``; a mapping that is one field, by ``docs``, stays whole."""
    out: dict[str, object] = {}
    for key, value in values.items():
        inner = f"{prefix}{key}."
        if isinstance(value, dict) and any(name.startswith(inner) for name in docs):
            out |= flat(value, docs, inner)
        else:
            out[f"{prefix}{key}"] = value
    return out


def generated(root: Path) -> dict[Path, str]:
    """Return the content that each file should have."""
    readme = root / "README.md"
    return {
        readme: with_table(readme.read_text(encoding="utf-8"), model_table()),
        root / "docs" / "models.md": models_page(),
        root / "docs" / "configuration.md": configuration_page(),
    }


def stale(root: Path) -> list[str]:
    """Return the names of the files that are not up to date."""
    wanted = generated(root)
    return [p.name for p, text in wanted.items() if not p.exists() or p.read_text(encoding="utf-8") != text]


def main() -> int:
    """Write the files, or with ``--check`` say which are stale."""
    root = Path(__file__).resolve().parents[1]
    if "--check" in sys.argv:
        found = stale(root)
        print("stale: " + ", ".join(found) if found else "up to date")
        return bool(found)
    for path, text in generated(root).items():
        path.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
