"""Write the tables of README.md and docs/models.md from the catalogue of models; ``--check`` only looks."""

from __future__ import annotations

import sys
from pathlib import Path

from gemirec.config import to_dict
from gemirec.models.catalog import MODELS, PROFILES, config_class, load_profile, model_table

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
        default = to_dict(cls())
        profiles = {profile: to_dict_of_profile(name, profile) for profile in PROFILES}
        lines += [f"## {name}", "", f"{row.line}. {row.paper}.", ""]
        lines += ["| field | default | " + " | ".join(PROFILES) + " |", "|---|---|" + "---|" * len(PROFILES)]
        for field, value in flat(default).items():
            cells = [str(profiles[profile].get(field, "")) for profile in PROFILES]
            lines.append(f"| `{field}` | {value} | " + " | ".join(cells) + " |")
        lines.append("")
    return "\n".join(lines)


def to_dict_of_profile(name: str, profile: str) -> dict[str, object]:
    """Return the model's values of a profile, flat; empty if the model has no such profile."""
    return flat(load_profile(name, profile)["model"])


def flat(values: dict[str, object], prefix: str = "") -> dict[str, object]:
    """Return nested mappings as ``{"a.b": value}``."""
    out: dict[str, object] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            out |= flat(value, f"{prefix}{key}.")
        else:
            out[f"{prefix}{key}"] = value
    return out


def generated(root: Path) -> dict[Path, str]:
    """Return the content that each file should have."""
    readme = root / "README.md"
    return {
        readme: with_table(readme.read_text(encoding="utf-8"), model_table()),
        root / "docs" / "models.md": models_page(),
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
