"""Items without interactions: the features, the regression and the vectors, against plain NumPy and by property."""

from __future__ import annotations

import re
import zlib
from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from gemirec.config import from_dict
from gemirec.errors import ArtifactError, ConfigError, DataError, GemirecError
from gemirec.retrieval.cold_start import ColdItems, ColdStartConfig, cold_items, fit_ridge
from gemirec.retrieval.item_features import ItemFeatureConfig, ItemFeatures, hash_words, shared_columns

WORDS = st.lists(st.text("abcdefgäßÉλ0123", min_size=1, max_size=6), min_size=1, max_size=8)
CATEGORIES = ("cup", "tea", "pot", "jar")


def features_of(known: pl.DataFrame, items: pl.DataFrame, **values: Any) -> NDArray[np.float64]:
    config = from_dict(ItemFeatureConfig, values)
    return ItemFeatures(known, shared_columns(known, items, config), config)(items)


def table(rng: np.random.Generator, rows: int) -> pl.DataFrame:
    """Items with a category, a title of four words and a vector."""
    return pl.DataFrame(
        {
            "category": rng.choice(CATEGORIES, size=rows),
            "title": [" ".join(rng.choice(list("qwertzuiop"), size=4)) for _ in range(rows)],
            "given": pl.Series(rng.normal(1, 2, size=(rows, 3)).tolist(), dtype=pl.List(pl.Float64)),
        }
    )


def splitmix(x: int) -> int:
    """The finaliser of SplitMix64 in Python's whole numbers."""
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) % 2**64
    return x ^ (x >> 31)


def plain_features(known: pl.DataFrame, items: pl.DataFrame, buckets: int) -> NDArray[np.float64]:
    """What the module docstring of item_features says, item by item."""
    names = sorted(known["category"].unique(), key=lambda name: (-known["category"].to_list().count(name), name))
    vectors = np.array(known["given"].to_list())
    mean, scale = vectors.mean(0), np.sqrt(((vectors - vectors.mean(0)) ** 2).sum(1).mean())
    rows = []
    for item in items.to_dicts():
        word_part = np.zeros(buckets)
        for word in set(re.findall(r"[^\W_]+", item["title"].lower())):
            hashed = splitmix((zlib.crc32(word.encode()) + (2 << 32) + 0x9E3779B97F4A7C15) % 2**64)
            word_part[hashed % buckets] += -1 if hashed >> 63 else 1
        word_part /= np.linalg.norm(word_part) or 1
        category_part = [float(item["category"] == name) for name in names]
        rows.append(np.concatenate([category_part, word_part, (np.array(item["given"]) - mean) / scale]))
    return np.array(rows)


@given(words=WORDS, buckets=st.integers(1, 50), seed=st.integers(0, 99))
@settings(max_examples=80)
def test_words_count_once_in_any_order_and_case(words: list[str], buckets: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    shuffled = [words[i] for i in rng.permutation(np.repeat(np.arange(len(words)), 2))]
    plain = [word for word in words if "ß" not in word]  # its capital is SS, another spelling
    texts = [" ".join(words), "  --".join(shuffled), " ".join(plain), ", ".join(plain).upper()]
    items = pl.DataFrame({"title": texts})
    out = features_of(items, items, buckets=buckets)
    assert out.shape == (4, buckets)
    np.testing.assert_array_equal(out[0], out[1])
    np.testing.assert_array_equal(out[2], out[3])
    assert np.linalg.norm(out[0]) == pytest.approx(1) or not out[0].any()


@given(words=WORDS, buckets=st.integers(1, 2000))
@settings(max_examples=80)
def test_the_hash_is_crc_and_splitmix(words: list[str], buckets: int) -> None:
    bucket_W, sign_W = hash_words(pl.Series(words), buckets)
    expected = [splitmix((zlib.crc32(word.encode()) + (2 << 32) + 0x9E3779B97F4A7C15) % 2**64) for word in words]
    assert bucket_W.tolist() == [hashed % buckets for hashed in expected]
    assert sign_W.tolist() == [-1.0 if hashed >= 2**63 else 1.0 for hashed in expected]


def test_features_are_what_the_docstring_says() -> None:
    rng = np.random.default_rng(0)
    known, items = table(rng, 60), table(rng, 9)
    got = features_of(known, items, buckets=16, vectors=["given"])
    np.testing.assert_allclose(got, plain_features(known, items, 16), atol=1e-12)


def test_lists_of_categories_numbers_and_what_is_not_known() -> None:
    known = pl.DataFrame({"tags": [["a", "b"], ["a"], [], None], "year": [1999.0, 2001.0, 2001.0, None]})
    items = pl.DataFrame({"tags": [["b", "a", "b"], ["c"], None], "year": ["2001", None, "1999"]})
    got = features_of(known, items, categories=["tags", "year"])  # places: a, b, 2001, 1999
    third = 1 / np.sqrt(3)
    np.testing.assert_allclose(got, [[third, third, third, 0], [0, 0, 0, 0], [0, 0, 0, 1]])
    few = features_of(known, items, categories=["tags", "year"], most_categories=1)  # places: a, 2001
    np.testing.assert_allclose(few, [[1 / np.sqrt(2)] * 2, [0, 0], [0, 0]])


@given(rows=st.integers(2, 40), features=st.integers(1, 6), seed=st.integers(0, 999), strength=st.floats(0.01, 50))
@settings(max_examples=60)
def test_the_ridge_solves_its_normal_equations(rows: int, features: int, seed: int, strength: float) -> None:
    """Weighted least squares with an intercept that is not penalised, as one system over [features, 1]."""
    rng = np.random.default_rng(seed)
    x, y = rng.normal(3, 1, size=(rows, features)), rng.normal(size=(rows, 2))
    weight = rng.uniform(0.1, 2, size=rows)
    cut = int(rng.integers(0, rows + 1))
    ridge = fit_ridge(((x[part], y[part], weight[part]) for part in (slice(0, cut), slice(cut, rows))), strength)
    one = np.column_stack([x, np.ones(rows)])
    penalty = np.diag([strength] * features + [0.0])
    solved = np.linalg.solve(one.T @ (weight[:, None] * one) + penalty, one.T @ (weight[:, None] * y))
    np.testing.assert_allclose(ridge(x), one @ solved, atol=1e-6)


def given_items(
    seed: int = 0, *, items: int = 80, new: int = 7, dim: int = 5, normalize: bool = False
) -> tuple[torch.Tensor, pl.DataFrame, NDArray[np.int64], pl.DataFrame, NDArray[np.int64]]:
    """Arguments of cold_items: vectors that follow the category, side features, counts, new items and their indices."""
    rng = np.random.default_rng(seed)
    known, fresh = table(rng, items), table(rng, new)
    centre = {name: rng.normal(size=dim) for name in CATEGORIES}
    vector = np.array([centre[name] for name in known["category"]]) + 0.3 * rng.normal(size=(items, dim))
    item_ND = torch.tensor(np.vstack([np.zeros(dim), vector]), dtype=torch.float32)
    item_ND = torch.nn.functional.normalize(item_ND, dim=1) if normalize else item_ND
    count_N = np.concatenate([[0], rng.integers(0, 30, size=items)])
    return item_ND, known, count_N, fresh, np.arange(items + 1, items + new + 1)


def vectors(seed: int = 0, *, width: int | None = None, normalize: bool = False, **values: Any) -> ColdItems:
    item_ND, known, count_N, new, index_C = given_items(seed, normalize=normalize)
    config = from_dict(ColdStartConfig, {"vectors": ["given"], "buckets": 16, **values})
    return cold_items(item_ND, width or item_ND.shape[1], known, count_N, new, index_C, config)


@pytest.mark.parametrize("length", ["features", "mean"])
def test_new_vectors_are_the_ridge_s_direction_at_the_length_of_trained_ones(length: str) -> None:
    item_ND, known, count_N, new, index_C = given_items()
    cold = vectors(length=length, strength=2.0, half_count=4.0, boost=1.5)
    trained = count_N[1:] > 0
    assert 0 < trained.sum() < len(trained)
    count = count_N[1:][trained]
    weight = count / (count + 4.0)
    learnt_from = known.filter(pl.Series(trained))
    x, target = plain_features(learnt_from, learnt_from, 16), item_ND[1:].double().numpy()[trained]
    norm = np.linalg.norm(target, axis=1)
    one = np.column_stack([x, np.ones(len(x))])
    penalty = np.diag([2.0] * x.shape[1] + [0.0])
    left = one.T @ (weight[:, None] * one) + penalty
    solved = np.linalg.solve(left, one.T @ (weight[:, None] * np.column_stack([target, norm])))
    said = np.column_stack([plain_features(learnt_from, new, 16), np.ones(new.height)]) @ solved
    size = said[:, -1].clip(norm.min(), norm.max()) if length == "features" else np.average(norm, weights=weight)
    unit = said[:, :-1] / np.linalg.norm(said[:, :-1], axis=1, keepdims=True)
    np.testing.assert_allclose(cold.vector_CD, 1.5 * np.atleast_1d(size)[:, None] * unit, atol=2e-6)
    assert cold.index_C.tolist() == index_C.tolist()
    cosine = unit @ (target / norm[:, None]).T
    assert cold.stand_in_C.tolist() == (np.flatnonzero(trained)[cosine.argmax(1)] + 1).tolist()


def test_a_category_of_strength_items_is_believed_half() -> None:
    known = pl.DataFrame({"category": [name for name in CATEGORIES for _ in range(6)]})
    item_ND = torch.randn(25, 8, generator=torch.Generator().manual_seed(0))
    mean_D, own_D = item_ND[1:].mean(0), item_ND[1:7].mean(0)
    blocks = [(features_of(known, known), item_ND[1:].double().numpy(), np.ones(24))]
    said = fit_ridge(blocks, 6.0)(features_of(known, known[:1]))[0]
    np.testing.assert_allclose(said, (mean_D + own_D) / 2, atol=1e-6)


@pytest.mark.parametrize("length", ["features", "mean"])
def test_where_the_model_normalises_new_vectors_are_normalised(length: str) -> None:
    np.testing.assert_allclose(vectors(normalize=True, length=length).vector_CD.norm(dim=1), 1.0, atol=1e-6)


def test_vectors_that_no_event_trained_are_not_learnt_from() -> None:
    item_ND, known, count_N, new, index_C = given_items()
    config = ColdStartConfig(buckets=16)
    before = cold_items(item_ND, 5, known, count_N, new, index_C, config)
    moved_ND = item_ND.clone()
    moved_ND[count_N == 0] = 100.0
    after = cold_items(moved_ND, 5, known, count_N, new, index_C, config)
    assert torch.equal(before.vector_CD, after.vector_CD)
    assert (count_N[after.stand_in_C.numpy()] > 0).all()


def test_cells_are_those_of_the_nearest_trained_item() -> None:
    item_ND, known, count_N, new, index_C = given_items()
    cells_ND = torch.nn.functional.one_hot(torch.arange(len(item_ND)) % 3, 3).float()
    plain = vectors()
    config = ColdStartConfig(vectors=("given",), buckets=16)
    parted = cold_items(torch.cat([item_ND, cells_ND], 1), 5, known, count_N, new, index_C, config)
    assert torch.equal(parted.vector_CD[:, :5], plain.vector_CD)
    assert torch.equal(parted.vector_CD[:, 5:], cells_ND[plain.stand_in_C])


def test_an_item_of_which_nothing_is_known_gets_the_mean(caplog: pytest.LogCaptureFixture) -> None:
    item_ND, known, count_N, _, _ = given_items()
    new = pl.DataFrame({"category": ["cup", "never seen", None]})
    cold = cold_items(item_ND, 5, known, count_N, new, np.array([81, 82, 83]), ColdStartConfig(length="mean"))
    weight = count_N[1:] / (count_N[1:] + 5.0)
    mean = np.average(item_ND[1:].double().numpy(), axis=0, weights=weight)
    mean *= np.average(item_ND[1:].norm(dim=1).double().numpy(), weights=weight) / np.linalg.norm(mean)
    np.testing.assert_allclose(cold.vector_CD[1:], [mean, mean], atol=1e-4)
    assert not np.allclose(cold.vector_CD[0], mean, atol=0.05)
    assert "2 of 3 new items share no feature" in caplog.text


@given(seed=st.integers(0, 999))
@settings(max_examples=40)
def test_served_read_and_merged(seed: int) -> None:
    rng = np.random.default_rng(seed)
    model_ND = torch.randn(9, 3, generator=torch.Generator().manual_seed(seed))

    def some(index: NDArray[np.int64]) -> ColdItems:
        return ColdItems(
            torch.from_numpy(index),
            torch.from_numpy(rng.normal(size=(len(index), 3)).astype(np.float32)),
            torch.from_numpy(rng.integers(1, 9, size=len(index))),
        )

    first = some(np.array([4, 9, 10]))
    second = some(np.sort(rng.choice([4, 7, 9, 11, 12], size=3, replace=False)))
    both = first.merged(second)
    vector = {**dict(zip(first.index_C.tolist(), first.vector_CD.tolist(), strict=True))}
    vector |= dict(zip(second.index_C.tolist(), second.vector_CD.tolist(), strict=True))
    stand_in = dict(zip(first.index_C.tolist(), first.stand_in_C.tolist(), strict=True))
    stand_in |= dict(zip(second.index_C.tolist(), second.stand_in_C.tolist(), strict=True))
    served = both.served(model_ND)
    assert len(served) == max(vector) + 1
    for item in range(len(served)):
        expected = vector.get(item, model_ND[item].tolist() if item < 9 else [0.0] * 3)
        assert served[item].tolist() == expected
    asked = rng.integers(1, 13, size=20)
    assert both.read(asked).tolist() == [stand_in.get(item, item) for item in asked.tolist()]
    assert both.read(np.empty(0, dtype=np.int64)).tolist() == []


WRONG: list[tuple[dict[str, Any], pl.DataFrame, type[GemirecError], str, str]] = [
    ({}, pl.DataFrame({"colour": ["red"]}), ConfigError, "no side feature is named", "texts="),
    ({"texts": ["titel"]}, pl.DataFrame({"title": ["a"]}), ConfigError, "known items has no column 'titel'", "'title'"),
    ({"categories": ["category"]}, pl.DataFrame({"x": [1]}), ConfigError, "new items has no column", "both tables"),
    ({}, pl.DataFrame({"category": ["?"]}), DataError, "nothing that is said of the new items", "other columns"),
    ({"texts": ["given"]}, pl.DataFrame({"given": [[1.0]]}), DataError, "holds no texts", "categories"),
    ({"vectors": ["title"]}, pl.DataFrame({"title": ["a"]}), DataError, "holds no vectors", "list of numbers"),
    ({"vectors": ["given"]}, pl.DataFrame({"given": [[1.0, 2.0, 3.0], [1.0]]}), DataError, "not equally long", "width"),
    ({"vectors": ["given"]}, pl.DataFrame({"given": [[1.0, 2.0]]}), DataError, "not equally long", "one width"),
    ({"vectors": ["given"]}, pl.DataFrame({"given": [[1.0, np.nan, 2.0]]}), DataError, "not finite", "mend"),
    ({"vectors": ["given"]}, pl.DataFrame({"given": [[1.0, None, 2.0]]}), DataError, "not finite", "mend"),
]


@pytest.mark.parametrize(("values", "new", "kind", "what", "fix"), WRONG)
def test_features_that_cannot_be_used(
    values: dict[str, Any], new: pl.DataFrame, kind: type[GemirecError], what: str, fix: str
) -> None:
    item_ND, known, count_N, _, _ = given_items()
    index_C = np.arange(81, 81 + new.height)
    with pytest.raises(kind, match=what) as caught:
        cold_items(item_ND, 5, known, count_N, new, index_C, from_dict(ColdStartConfig, values))
    assert fix in caught.value.fix
    assert caught.value.got


def test_known_vectors_are_checked_too() -> None:
    item_ND, known, count_N, new, index_C = given_items()
    config = ColdStartConfig(vectors=("given",))
    ragged = known.with_columns(given=pl.Series([[1.0]] + [[1.0, 2.0]] * 79))
    with pytest.raises(DataError, match="not equally long"):
        cold_items(item_ND, 5, ragged, np.ones_like(count_N), new, index_C, config)
    empty = known.with_columns(given=pl.lit(None, dtype=pl.List(pl.Float64)))
    with pytest.raises(DataError, match="no known item has a vector"):
        cold_items(item_ND, 5, empty, count_N, new, index_C, config)
    with pytest.raises(DataError, match="no item has training events"):
        cold_items(item_ND, 5, known, np.zeros_like(count_N), new, index_C, config)


def test_tensors_that_do_not_fit_are_refused() -> None:
    cold = vectors()
    again = ColdItems.of(cold.tensors(), width=5, trained=80, items=87)
    assert torch.equal(again.vector_CD, cold.vector_CD)
    wrong = [
        cold,
        replace(cold, stand_in_C=cold.stand_in_C + 80),
        replace(cold, index_C=cold.index_C.flip(0)),
        replace(cold, vector_CD=cold.vector_CD[:3]),
    ]
    for number, part in enumerate(wrong):
        with pytest.raises(ArtifactError, match="do not fit the model"):
            ColdItems.of(part.tensors(), width=4 if number == 0 else 5, trained=80, items=87)
    with pytest.raises(ArtifactError, match="do not fit the model"):
        ColdItems.of({"index": cold.index_C}, width=5, trained=80, items=87)
