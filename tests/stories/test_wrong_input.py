"""What a user does wrong: exit code 2, an error in three parts, nothing half-written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from gemirec.data.simulator import SimulatorConfig, simulate
from support_cli import answer, gemirec

Setup = Callable[[Path], object]


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a log, a dataset, a run, and ways to spoil them."""
    home = tmp_path_factory.mktemp("template")
    log = simulate(home / "log", SimulatorConfig(num_users=200, num_items=400))
    shutil.copy(log.interactions, home / "good.parquet")
    gemirec("prepare", "good.parquet", "-o", "data", cwd=home)
    quick = ["--set", "training.steps=4", "--set", "model.dim=8", "--set", "training.eval_every=0"]
    gemirec("train", "data", "-o", "run", *quick, cwd=home)
    return home


def table(path: Path, **columns: list[object]) -> None:
    pl.DataFrame(columns, strict=False).write_csv(path / "bad.csv")


def cut(name: str) -> Setup:
    def spoil(home: Path) -> None:
        file = home / name
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])

    return spoil


def another_version(home: Path) -> None:
    file = home / "run/artifact/artifact.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "format_version": 7}))


def nothing(home: Path) -> None:
    pass


PREPARE = "prepare bad.csv -o out"
CASES: list[tuple[str, str, Setup, str]] = [
    ("no log", "prepare nowhere.parquet -o out", nothing, "nowhere.parquet"),
    ("empty log", PREPARE, lambda p: table(p, user_id=[], item_id=[], timestamp=[]), "empty"),
    ("one event", PREPARE, lambda p: table(p, user_id=[1], item_id=[1], timestamp=[1]), "removes every event"),
    ("missing column", PREPARE, lambda p: table(p, user=[1], item_id=[1], timestamp=[1]), "user_id"),
    ("null id", PREPARE, lambda p: table(p, user_id=[1, None], item_id=[1, 2], timestamp=[1, 2]), "user_id"),
    ("negative time", PREPARE, lambda p: table(p, user_id=[1], item_id=[1], timestamp=[-5]), "-5"),
    ("time is text", PREPARE, lambda p: table(p, user_id=[1], item_id=[1], timestamp=["noon"]), "noon"),
    ("cut log", "prepare good.parquet -o out", cut("good.parquet"), "good.parquet"),
    ("output exists", "prepare good.parquet -o data", nothing, "exists already"),
    ("k-core of nothing", "prepare good.parquet -o out --set filter=k_core --set min_item=99999", nothing, "99999"),
    ("mistyped key", "prepare good.parquet -o out --set fliter=none", nothing, "did you mean 'filter'"),
    ("mistyped value", "prepare good.parquet -o out --set min_item=many", nothing, "min_item"),
    ("no equals sign", "prepare good.parquet -o out --set min_item", nothing, "a.b=value"),
    ("no such config", "prepare good.parquet -o out --config no.yaml", nothing, "no.yaml"),
    ("simulator key", "simulate -o out --set num_user=3", nothing, "did you mean 'num_users'"),
    ("no dataset", "train nowhere -o out", nothing, "nowhere"),
    ("no such model", "train data -o out --model comirec_as", nothing, "did you mean 'comirec_sa'"),
    ("no such profile", "train data -o out --profile best", nothing, "choose one of"),
    ("mistyped section", "train data -o out --set trainig.steps=3", nothing, "did you mean 'training'"),
    ("mistyped training key", "train data -o out --set training.step=3", nothing, "did you mean 'training.steps'"),
    ("mistyped model key", "train data -o out --set model.dimm=3", nothing, "did you mean 'dim'"),
    ("wrong training value", "train data -o out --set training.steps=ten", nothing, "training.steps"),
    ("run exists", "train data -o run", nothing, "--resume"),
    ("resume another run", "train data -o run --resume --set model.dim=16", nothing, "model.dim"),
    ("cut dataset", "train data -o out", cut("data/shards/00000/events.npy"), "events.npy"),
    ("no artifact", "evaluate nowhere data", nothing, "nowhere"),
    ("cut parameters", "evaluate run/artifact data", cut("run/artifact/model.safetensors"), "model.safetensors"),
    ("cut description", "evaluate run/artifact data", cut("run/artifact/artifact.json"), "artifact.json"),
    ("another version", "recommend run/artifact --user 1", another_version, "version 7"),
    ("mistyped split", "evaluate run/artifact data --set split=exam", nothing, "exam"),
    ("nobody asked for", "recommend run/artifact", nothing, "say for whom"),
    ("two ways at once", "recommend run/artifact --user 1 --history 2", nothing, "say for whom"),
    ("no such user", "recommend run/artifact --user 123456", nothing, "are not known"),
    ("k of zero", "recommend run/artifact --history 1 -k 0", nothing, "at least 1"),
    ("histories of another kind", "recommend run/artifact --histories bad.xlsx", nothing, "bad.xlsx"),
    ("no allow-list", "recommend run/artifact --history 1 --allow no.txt", nothing, "no.txt"),
    ("no such merge", "recommend run/artifact --history 1 --merge best", nothing, "merge"),
    ("penalty without its kind", "recommend run/artifact --history 1 --diversity 1", nothing, "kind diverse"),
    ("shares are text", "recommend run/artifact --history 1 --merge quota --quota a,b", nothing, "quota"),
    ("many shares", "recommend run/artifact --user 1 --merge quota --quota 1,1,1,1,1", nothing, "more interests"),
    ("no weights", "recommend run/artifact --user 1 --merge quota --quota weight", nothing, "weighs its interests"),
    ("no categories", "recommend run/artifact --user 1 --merge diverse --diversity 1", nothing, "categories"),
    ("none to evaluate", "evaluate run/artifact data --set merge.kind=diverse", nothing, "category column"),
    ("mistyped merge key", "evaluate run/artifact data --set merge.kid=max", nothing, "did you mean 'merge.kind'"),
    ("demo without log", "demo --log nowhere.parquet -o out", nothing, "nowhere.parquet"),
    ("demo key", "demo -o out --set simulater.num_users=3", nothing, "did you mean 'simulator'"),
    ("demo model key", "demo --log good.parquet -o out --set model.dimm=3", nothing, "did you mean 'dim'"),
]


@pytest.mark.parametrize(("words", "spoil", "says"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_one_clear_error_and_nothing_half_written(
    template: Path, tmp_path: Path, words: str, spoil: Setup, says: str
) -> None:
    home = Path(shutil.copytree(template, tmp_path / "home"))
    spoil(home)
    before = {path: path.stat().st_size for path in home.rglob("*")}
    done = gemirec(*words.split(), "--json", cwd=home, code=2)
    error = json.loads(done.stdout)["error"]
    assert set(error) == {"what", "got", "fix"}
    assert all(error.values())
    assert says in " ".join(error.values())
    assert f"error: {error['what']}\n  got: {error['got']}\n  fix: {error['fix']}\n" in done.stderr
    assert "Traceback" not in done.stderr
    assert {path: path.stat().st_size for path in home.rglob("*")} == before


def test_a_fault_of_gemirec_is_code_1_and_says_so(
    template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("oh")

    monkeypatch.setattr("gemirec.data.simulator.simulate", broken)
    done = gemirec("simulate", "-o", "out", "--json", cwd=tmp_path, code=1)
    assert "fault in gemirec" in done.stderr
    assert json.loads(done.stdout)["error"]["got"] == "ZeroDivisionError: oh"
    monkeypatch.setenv("GEMIREC_TRACEBACK", "1")
    with pytest.raises(ZeroDivisionError):
        gemirec("simulate", "-o", "out", cwd=tmp_path)


def test_more_than_the_catalogue_and_unknown_items_are_results_not_errors(template: Path) -> None:
    rows = answer("recommend", "run/artifact", "--history", "no,such,item", "-k", "100000", cwd=template)[
        "recommendations"
    ]
    items = answer("prepare", "good.parquet", "-o", "again", cwd=template)["items"]
    assert len(rows) == items
    assert {(row["source"], row["skipped"]) for row in rows} == {("popularity", 3)}
