"""A recommender that searches in a given index: the same tables as the exact one, refused beside another model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch

from gemirec import MergeConfig, Recommender
from gemirec.errors import ArtifactError
from gemirec.retrieval.index import ExactIndex, IndexConfig, IndexKind, ItemIndex, build_index, load_index
from support_cli import answer, gemirec

USERS = [f"user-{i}" for i in range(0, 60, 2)]


@pytest.fixture(scope="module")
def artifact(recommender: Recommender, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return recommender.save_pretrained(tmp_path_factory.mktemp("home") / "artifact")


@pytest.mark.parametrize("kind", ["exact_int8", "flat"])
def test_tables_are_those_of_the_exact_index(recommender: Recommender, kind: IndexKind) -> None:
    if kind == "flat":
        pytest.importorskip("faiss")
    item_ND, version = recommender.served_items()
    query_QD = torch.from_numpy(recommender.interests(USERS)["vector"].to_numpy().copy())
    index = build_index(item_ND, IndexConfig(kind=kind, k=30), query_QD, version=version)
    other = recommender.with_index(index)
    some = [f"item-{i}" for i in range(1, 121) if i % 3]
    merges = (MergeConfig(), MergeConfig(kind="diverse", diversity=0.3), MergeConfig(kind="quota"))
    for exclude_seen, merge in zip((True, False, True), merges, strict=True):
        for allow in (None, some, some[:9]):
            asked: dict[str, Any] = {"k": 12, "exclude_seen": exclude_seen, "allow": allow, "merge": merge}
            assert other.recommend(USERS, **asked).equals(recommender.recommend(USERS, **asked))
            found = other.interests(USERS, items=7, exclude_seen=exclude_seen, allow=allow)
            assert found.equals(recommender.interests(USERS, items=7, exclude_seen=exclude_seen, allow=allow))
    assert other.explain(USERS[:4]).equals(recommender.explain(USERS[:4]))
    assert other.similar_items(["item-3"]).equals(recommender.similar_items(["item-3"]))
    assert other.with_index(None).recommend(USERS).equals(recommender.recommend(USERS))


def test_items_that_left_the_index_are_not_recommended(recommender: Recommender) -> None:
    item_ND, version = recommender.served_items()
    index = ExactIndex(item_ND)
    index.version = version
    first = recommender.recommend(USERS, k=1)["item_id"].unique().to_list()
    index.remove(torch.from_numpy(recommender.catalog.encode(pl.Series(first))))
    table = recommender.with_index(index).recommend(USERS, k=10)
    assert not set(first) & set(table["item_id"])
    assert table.group_by("user_id").len()["len"].unique().to_list() == [10]


def test_the_index_of_another_model_is_refused(recommender: Recommender) -> None:
    item_ND, version = recommender.served_items()
    same, other, narrow, more = (ExactIndex(part) for part in (item_ND, item_ND, item_ND[:, 1:], torch.zeros(200, 16)))
    same.version, other.version = version, "another"
    assert recommender.with_index(same).recommend(USERS[:1]).height == 20
    for index, why in ((other, "another model"), (narrow, "does not fit"), (more, "does not fit")):
        with pytest.raises(ArtifactError, match=why):
            recommender.with_index(index)
    new = pl.DataFrame({"item_id": ["new-1"], "category": ["c1"]})
    with pytest.raises(ArtifactError, match="another model"):
        recommender.with_new_items(new).with_index(same)


def test_from_the_command_line_to_a_recommender(recommender: Recommender, artifact: Path, tmp_path: Path) -> None:
    pytest.importorskip("faiss")
    words = ("index", artifact, "--kind", "ivf_sq8", "--recall", "0.9", "-k", "20")
    facts = answer(*words, "--out", "index", "--set", "queries=50", cwd=tmp_path)
    assert (facts["kind"], facts["items"], facts["queries"], facts["reached"]) == ("ivf_sq8", 120, 50, True)
    assert [row["list length"] for row in facts["recall"]] == [10, 20]
    assert facts["recall"][-1]["recall"] >= facts["wanted"] == 0.9
    assert facts["bytes"] == sum(file.stat().st_size for file in (tmp_path / "index").iterdir())
    index: ItemIndex = load_index(tmp_path / "index")
    assert index.params == {name: facts[name] for name in ("nprobe", "rerank")}
    found = Recommender.from_pretrained(artifact).with_index(tmp_path / "index").recommend(USERS, k=20)
    exact = recommender.recommend(USERS, k=20)
    assert found.join(exact, on=["user_id", "item_id"]).height >= 0.85 * exact.height
    table = gemirec(*words, "--out", "index", "--overwrite", cwd=tmp_path).stdout
    assert "list length" in table


def test_an_artifact_without_histories_has_no_interests(recommender: Recommender, tmp_path: Path) -> None:
    bare = recommender.save_pretrained(tmp_path / "bare", histories=False)
    assert "keeps no histories" in gemirec("index", bare, "--out", "index", cwd=tmp_path, code=2).stderr
    unknown = gemirec("index", bare, "--out", "index", "--kind", "tree", cwd=tmp_path, code=2).stderr
    assert "kind" in unknown
