"""Pictures: what they show is counted, ranked and computed as the model has it; t-SNE keeps neighbours together."""

from __future__ import annotations

import json
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch

from gemirec.artifacts import write_json
from gemirec.cli.pictures import picture
from gemirec.components.codes import unflatten
from gemirec.data.dataset import Dataset
from gemirec.errors import ArtifactError, ConfigError, DataError, MissingExtraError
from gemirec.experiments.pictures import pictures
from gemirec.experiments.pictures.case import Names, find_case
from gemirec.experiments.pictures.curves import curves_figure, panels, stage_ends
from gemirec.experiments.pictures.map import colour_key, item_map, map_figure, sample_items
from gemirec.experiments.pictures.posterior import posterior, posterior_figure
from gemirec.experiments.pictures.refinement import refinement, refinement_figure
from gemirec.experiments.pictures.tree import pruned, tree_figure, tree_rows, tree_text
from gemirec.models.base import Histories, RetrievalModel
from gemirec.models.dmi import DMI
from gemirec.models.gemirec import GemiRec
from gemirec.recommender import Recommender
from gemirec.recommender.artifact import new_artifact_info
from gemirec.recommender.histories import DatasetHistories
from gemirec.recommender.projection import pca, tsne
from support import write_planted_dataset
from support_models import ready, right_padded, sequences, tiny


def coded(planted: Dataset, **over: Any) -> GemiRec:
    """An untrained GemiRec whose item vectors are the planted clusters plus noise, at its last stage."""
    model = tiny("gemirec", planted.spec(), **over).eval()
    assert isinstance(model, GemiRec)
    torch.manual_seed(1)
    with torch.no_grad():
        model.item_table.weight[1:] = torch.eye(16)[(torch.arange(planted.num_items) % 6)] + 0.2 * torch.randn(
            planted.num_items, 16
        )
        model.start_dictionary()
        model.start_joint()
    return model


def save(model: RetrievalModel, name: str, dataset: Dataset, path: Path) -> Path:
    info = new_artifact_info(name, model, dataset, fallback="popularity", training={})
    Recommender(info, model, dataset.items, DatasetHistories(dataset), dataset).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def model(planted: Dataset) -> GemiRec:
    return coded(planted, keep_user_vector=True)


def same_neighbour_share(xy_N2: torch.Tensor, cluster_N: torch.Tensor) -> float:
    distance_NN = torch.cdist(xy_N2, xy_N2).fill_diagonal_(torch.inf)
    return float((cluster_N[distance_NN.argmin(dim=1)] == cluster_N).float().mean())


# --- projections ------------------------------------------------------------------------------------------------------


def test_pca_is_numpy_s() -> None:
    x_ND = np.random.default_rng(0).normal(size=(40, 5)) * [3, 2, 1, 0.5, 0.1]
    centred_ND = x_ND - x_ND.mean(axis=0)
    value_D, axis_DD = np.linalg.eigh(centred_ND.T @ centred_ND)
    found_N2 = pca(torch.from_numpy(x_ND)).double().numpy()
    np.testing.assert_allclose(np.abs(found_N2), np.abs(centred_ND @ axis_DD[:, [-1, -2]]), atol=1e-5)
    np.testing.assert_allclose((found_N2**2).sum(axis=0), value_D[[-1, -2]], rtol=1e-5)
    assert pca(torch.tensor([[5.0], [7.0]])).tolist() == [[-1.0, 0.0], [1.0, 0.0]]


def test_tsne_separates_planted_clusters_where_two_components_cannot() -> None:
    torch.manual_seed(0)
    cluster_N = torch.arange(150) % 10
    vector_ND = torch.eye(10)[cluster_N] + 0.15 * torch.randn(150, 10)
    place_N2 = tsne(vector_ND, steps=250)
    assert place_N2.isfinite().all()
    assert torch.equal(place_N2, tsne(vector_ND, steps=250))
    assert same_neighbour_share(place_N2, cluster_N) > 0.95
    assert same_neighbour_share(pca(vector_ND), cluster_N) < 0.9


def test_a_guest_lies_among_its_neighbours_though_guests_resemble_each_other_more() -> None:
    """Two guests share a large part that no item has, which would pull them together."""
    torch.manual_seed(0)
    cluster_N = torch.arange(90) % 3
    host_ND = torch.eye(4)[cluster_N] + 0.1 * torch.randn(90, 4)
    guest_KD = torch.tensor([[0.5, 0, 0, 1.0], [0, 0.5, 0, 1.0]])
    place_N2 = tsne(torch.cat([host_ND, guest_KD]), guests=2, steps=250)
    nearest_KX = torch.cdist(place_N2[90:], place_N2[:90]).topk(5, largest=False).indices
    assert cluster_N[nearest_KX].tolist() == [[0] * 5, [1] * 5]


@pytest.mark.parametrize("vectors", [torch.ones(1, 3), torch.ones(3, 3), torch.ones(20, 3), torch.zeros(6, 2)])
def test_few_and_equal_vectors_have_places(vectors: torch.Tensor) -> None:
    place_N2 = tsne(vectors, guests=1, steps=20)
    assert place_N2.shape == (len(vectors), 2)
    assert place_N2.isfinite().all()


# --- the user ---------------------------------------------------------------------------------------------------------


def test_the_default_user_has_most_held_out_items_in_new_categories(planted: Dataset) -> None:
    category_N = planted.spec().category_N.copy()
    category_N[1:] = np.random.default_rng(3).integers(0, 9, planted.num_items)  # 0: unknown, never new
    rows = sequences(planted)
    best, most = -1, -1
    for user in planted.users_in("test"):
        cut = int(0.8 * len(rows[user]))
        seen = set(category_N[rows[user][:cut]].tolist())
        new = sum(category_N[item] not in seen and category_N[item] > 0 for item in set(rows[user][cut:].tolist()))
        if new > most:
            best, most = int(user), new
    case = find_case(planted, label_N=category_N)
    assert case.user_id == f"user-{best}"
    cut = int(0.8 * len(rows[best]))
    assert (case.history_H.tolist(), case.future_T.tolist()) == (rows[best][:cut].tolist(), rows[best][cut:].tolist())


def test_prefixes_are_what_a_model_would_have_read(planted: Dataset) -> None:
    user = planted.users_in("test")[3]
    case = find_case(planted, f"user-{user}")
    found = case.prefixes([1, 4, len(case.history_H)], 5)
    assert torch.equal(found.item_BL, right_padded([case.history_H[:n] for n in (1, 4, len(case.history_H))], 5))
    categorical_UF, numeric_UG = planted.user_features()
    assert categorical_UF is not None
    assert numeric_UG is not None
    assert found.user_categorical_BF is not None
    assert found.user_numeric_BG is not None
    assert found.user_categorical_BF.tolist() == [categorical_UF[user].tolist()] * 3
    np.testing.assert_array_equal(found.user_numeric_BG.numpy(), np.stack([numeric_UG[user]] * 3))


def test_wrong_users_are_refused(planted: Dataset) -> None:
    with pytest.raises(DataError, match="no such user"):
        find_case(planted, "nobody")
    trained = planted.users_in("train")[0]
    with pytest.raises(DataError, match="nothing of this user is held out"):
        find_case(planted, f"user-{trained}")


# --- the map ----------------------------------------------------------------------------------------------------------


def test_the_map_shows_the_user_s_items_and_interests(planted: Dataset, model: GemiRec) -> None:
    case, names = find_case(planted), Names(planted, model)
    item_S = sample_items(planted.spec().train_count_N, case, 60)
    assert len(item_S) == len(set(item_S.tolist())) == 60
    assert set(case.history_H) | set(case.future_T) <= set(item_S.tolist())
    found = item_map(model, case, item_S, names, "gemirec")
    assert np.isfinite(found.xy_S2).all()
    assert np.isfinite(found.xy_K2).all()
    cluster_S = torch.from_numpy((item_S - 1) % 6)
    assert same_neighbour_share(torch.from_numpy(found.xy_S2), cluster_S) > 0.9  # chance is 1 in 6
    with torch.no_grad():
        interests = model.interests(case.now(model.max_length))
        score_KN = interests.vector_BKD[0] @ model.item_vectors()[1:].T
    assert interests.weight_BK is not None
    assert interests.code_BKC is not None
    assert found.label_K == [f"{k + 1} ({p:.0%})" for k, p in enumerate(interests.weight_BK[0].tolist())]
    for k, about in enumerate(found.about_K):
        nearest = score_KN[k].argsort(descending=True)[:20] % 6
        category, count = Counter(nearest.tolist()).most_common(1)[0]
        codes = ".".join(map(str, interests.code_BKC[0, k].tolist()))
        assert about.startswith("the user's own vector; c" if k == 0 else f"code {codes}; c")
        assert about.endswith(f" {count / 20:.0%}")
        if list(Counter(nearest.tolist()).values()).count(count) == 1:
            assert f"; c{category} " in about


def test_colours_go_to_the_user_s_labels_first(planted: Dataset, model: GemiRec) -> None:
    pytest.importorskip("matplotlib")
    case, names = find_case(planted), Names(planted, model)
    label_N = np.concatenate([[0], np.arange(planted.num_items) % 30])
    own = Counter(label_N[np.concatenate([case.history_H, case.future_T])].tolist())
    key = colour_key(label_N, case, names, "code")
    assert len(key.shown) == 7
    assert [own[label] for label in key.shown] == ([count for _, count in own.most_common()] + [0] * 7)[:7]
    item_S = sample_items(planted.spec().train_count_N, case, 50)
    colours = dict(zip(item_S.tolist(), key.colours(item_S), strict=True))
    assert {label_N[item] for item, colour in colours.items() if colour != "#C9C9C9"} <= set(key.shown)
    maps = [item_map(made, case, item_S, names, made.__class__.__name__) for made in (model, comirec(planted))]
    drawn = map_figure(maps, case, key, planted.num_items)
    panels_drawn = [axes for axes in drawn.axes if axes.get_title()]
    assert [axes.get_title() for axes in panels_drawn] == ["GemiRec", "ComiRecSA"]
    for axes, panel in zip(panels_drawn, maps, strict=True):
        items, history, future, _, crosses = axes.collections
        np.testing.assert_allclose(items.get_offsets(), panel.xy_S2)
        place = dict(zip(item_S.tolist(), panel.xy_S2.tolist(), strict=True))
        for points, own_items in ((history, case.history_H), (future, case.future_T)):
            np.testing.assert_allclose(points.get_offsets(), [place[item] for item in sorted(set(own_items.tolist()))])
        np.testing.assert_allclose(crosses.get_offsets(), panel.xy_K2)
        assert [text.get_text() for text in axes.texts] == panel.label_K
    legend = [text.get_text() for text in drawn.legends[0].get_texts()]
    assert legend == ["history", "future (held out)", "interest of the model", *key.names, "other codes"]
    assert case.user_id in drawn.get_suptitle()


def comirec(planted: Dataset) -> RetrievalModel:
    return ready("comirec_sa", planted.spec()).eval()


# --- the tree ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("over", [{}, {"quantizer": {"sizes": [5]}}, {"dictionary": "categories"}])
def test_the_tree_s_rows_are_brute_force_counts(planted: Dataset, over: dict[str, Any]) -> None:
    model = coded(planted, **over)
    rows = tree_rows(model, planted, Names(planted, model), depth=9, top=2)
    sizes = model.dictionary.sizes
    codes = [tuple(code) for code in unflatten(model.item_interests()[1:], sizes).tolist()]
    table = planted.items.to_dicts()
    wanted = {code[:level] for code in codes for level in range(1, len(sizes) + 1)}
    assert sorted(tuple(row["path"]) for row in rows) == sorted(wanted)
    for row in rows:
        path = tuple(row["path"])
        members = [item for item, code in zip(table, codes, strict=True) if code[: len(path)] == path]
        parent = sum(code[: len(path) - 1] == path[:-1] for code in codes)
        assert row["items"] == len(members)
        assert row["share"] == len(members) / len(codes)
        assert row["share_of_parent"] == len(members) / parent
        best = sorted(members, key=lambda item: -item["train_count"])[:2]  # stable: the catalogue's order
        assert [(found["item_id"], found["train_count"]) for found in row["top_items"]] == [
            (item["item_id"], item["train_count"]) for item in best
        ]
        count = Counter(item["category"] for item in members)
        assert [found["share"] for found in row["categories"]] == [n / len(members) for _, n in count.most_common(2)]
        assert all(found["share"] == count[found["category"]] / len(members) for found in row["categories"])
    for level in range(len(sizes)):
        for parent_path in {tuple(row["path"][:level]) for row in rows if len(row["path"]) == level + 1}:
            own = [row for row in rows if tuple(row["path"][:-1]) == parent_path and len(row["path"]) == level + 1]
            assert [row["items"] for row in own] == sorted((row["items"] for row in own), reverse=True)
            if level:
                above = rows.index(next(row for row in rows if tuple(row["path"]) == parent_path))
                assert rows.index(own[0]) == above + 1


def test_the_tree_is_drawn_and_written_with_what_was_left_out(planted: Dataset, model: GemiRec) -> None:
    rows = tree_rows(model, planted, Names(planted, model), depth=2)
    shown = pruned(rows, 3, 1)
    assert sum(row["items"] for row in shown if len(row["path"]) == 1) == planted.num_items
    for row in shown:
        if len(row["path"]) == 1 and "codes" not in row:
            below = [child for child in shown if len(child["path"]) == 2 and child["path"][0] == row["path"][0]]
            assert sum(child["items"] for child in below) == row["items"]
    text = tree_text(shown).splitlines()
    assert len(text) == len(shown) + 1
    assert text[1].split()[:3] == [str(rows[0]["path"][0]), str(rows[0]["items"]), f"{rows[0]['share']:.1%}"]
    assert any(line.startswith(f"… {len({row['path'][0] for row in rows}) - 3} more") for line in text)
    pytest.importorskip("matplotlib")
    drawn = tree_figure(rows, "costs $5 to $9", first=3, below=1)
    said = [found.get_text() for found in drawn.axes[0].texts]
    assert [".".join(map(str, row["path"])) for row in shown if "codes" not in row] == [
        word for word in said if word.replace(".", "").isdigit()
    ]
    assert f"item {rows[0]['top_items'][0]['item_id']}" in " ".join(said)
    drawn.canvas.draw()  # dollars in a title are no formula


# --- the posterior ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("over", [{}, {"quantizer": {"sizes": [5]}}, {"generator": "history"}])
def test_the_posterior_is_the_model_s_on_every_prefix(planted: Dataset, over: dict[str, Any]) -> None:
    model = coded(planted, **over)
    case = find_case(planted)
    found = posterior(model, case, top=2, most=6)
    events = len(case.history_H)
    assert found.length_X.tolist() == list(range(events - 5, events + 1))
    np.testing.assert_allclose(found.probability_XM.sum(axis=1), 1, atol=1e-4)
    coming = [*case.history_H.tolist(), int(case.future_T[0])]
    item_interest_N = model.item_interests()
    ever = set()
    for length, row_M, true in zip(found.length_X, found.probability_XM, found.true_X, strict=True):
        window = right_padded([case.history_H[:length]], model.max_length)
        histories = Histories(window, case.categorical_F, case.numeric_G)
        with torch.no_grad():
            own_M = model.log_probs(model.state(histories))[0].exp()
        np.testing.assert_allclose(row_M, own_M.numpy(), atol=1e-5)
        assert true == item_interest_N[coming[length]]
        ever |= set(own_M.topk(2).indices.tolist())
    peak_M = found.probability_XM.max(axis=0)
    assert set(found.shown_R.tolist()) == {m for m in ever if peak_M[m] >= 0.05 or m in found.true_X}
    when_R = found.probability_XM[:, found.shown_R].argmax(axis=0)
    assert when_R.tolist() == sorted(when_R.tolist())


def test_the_heat_map_rings_what_came_next(planted: Dataset, model: GemiRec) -> None:
    pytest.importorskip("matplotlib")
    case, names = find_case(planted), Names(planted, model)
    found = posterior(model, case)
    axes = posterior_figure(found, case, names).axes[0]
    grid_RX = axes.images[0].get_array()
    np.testing.assert_allclose(grid_RX.sum(axis=0), 1, atol=1e-4)  # the last row holds all other interests
    np.testing.assert_allclose(grid_RX[:-1].T, found.probability_XM[:, found.shown_R], atol=1e-6)
    shown = found.shown_R.tolist()
    rows = [shown.index(true) if true in shown else len(shown) for true in found.true_X.tolist()]
    assert axes.collections[0].get_offsets().tolist() == [[x, row] for x, row in enumerate(rows)]
    labels = [text.get_text() for text in axes.get_xticklabels()]
    last = case.history_H[-1]
    assert labels[-1] == f"item item-{last} [c{(last - 1) % 6}]  {len(case.history_H)}"
    assert axes.get_yticklabels()[0].get_text().split()[0] == names.path(shown[0])


# --- the refinement ---------------------------------------------------------------------------------------------------


def refiner(planted: Dataset, **over: Any) -> DMI:
    """A DMI whose denoiser is no longer the identity."""
    model = tiny("dmi", planted.spec(), **over).eval()
    assert isinstance(model, DMI)
    torch.manual_seed(2)
    with torch.no_grad():
        model.denoiser.context_gate_D.fill_(0.5)
        weight = model.denoiser.network[2].weight
        assert isinstance(weight, torch.Tensor)
        torch.nn.init.normal_(weight, std=0.5)
    return model


@pytest.mark.parametrize("steps", [1, 3])
def test_the_refinement_lists_neighbours_before_on_the_way_and_after(planted: Dataset, steps: int) -> None:
    model, case = refiner(planted, reverse_steps=steps), find_case(planted)
    found = refinement(model, case, nearest=5)
    assert found.title_R[0] == "coarse"
    assert found.title_R[-1] == "refined"
    assert len(found.title_R) == steps + 1  # the first state is the coarse interest itself
    with torch.no_grad():
        histories = case.now(model.max_length)
        coarse_KD = model.base.interests(histories).vector_BKD[0].numpy()
        refined_KD = model.interests(histories).vector_BKD[0].numpy()
        item_ND = model.item_vectors().numpy()[1:]
    item_ND = item_ND / np.linalg.norm(item_ND, axis=1, keepdims=True)
    for column, vector_KD in ((0, coarse_KD), (-1, refined_KD)):
        unit_KD = vector_KD / np.linalg.norm(vector_KD, axis=1, keepdims=True)
        cosine_KN = unit_KD @ item_ND.T
        np.testing.assert_allclose(found.cosine_KRP[:, column], -np.sort(-cosine_KN, axis=1)[:, :5], atol=1e-5)
        listed = np.take_along_axis(cosine_KN, found.item_KRP[:, column] - 1, axis=1)
        np.testing.assert_allclose(listed, found.cosine_KRP[:, column], atol=1e-5)
    length_K = np.linalg.norm(coarse_KD, axis=1) * np.linalg.norm(refined_KD, axis=1)
    np.testing.assert_allclose(found.moved_KR[:, -1], (coarse_KD * refined_KD).sum(axis=1) / length_K, atol=1e-5)
    assert (found.moved_KR[:, -1] < 0.999).any()


def test_the_lists_mark_what_came_true_and_what_is_new(planted: Dataset) -> None:
    pytest.importorskip("matplotlib")
    case = find_case(planted)
    found = refinement(refiner(planted), case, nearest=5)
    drawn = refinement_figure(found, case, Names(planted))
    texts = [text for axes in drawn.axes for text in axes.texts]
    shown = found.item_KRP.reshape(-1).tolist()
    future, history = set(case.future_T.tolist()), set(case.history_H.tolist())
    assert ["★" in text.get_text() for text in texts] == [item in future for item in shown]
    assert ["●" in text.get_text() for text in texts] == [item in history - future for item in shown]
    new = sum(len(set(after) - set(before)) for row in found.item_KRP.tolist() for before, after in pairwise(row))
    assert sum(text.get_weight() == "bold" for text in texts) == new


# --- the curves -------------------------------------------------------------------------------------------------------


def run_lines() -> list[dict[str, Any]]:
    lines: list[dict[str, Any]] = []
    for step in range(10, 61, 10):
        stage = "retrieval" if step <= 30 else "joint"
        terms = {"loss/retrieval": 5.0 - step / 20} | ({"loss/generator": 3.0} if stage == "joint" else {})
        lines.append({"kind": "train", "step": step, "stage": stage, "loss": 9.0, **terms, "lr": 0.1})
        if step % 30 == 0:
            lines.append({"kind": "valid", "step": step, "stage": stage, "hr@20": step / 100, "recall@50": 0.5})
            health = {"utilisation_level_1": 0.9, "min_distance_level_1": 0.2, "alarm": 0.0}
            lines.append({"kind": "health", "step": step, "stage": stage, **health})
    return lines


def test_every_term_has_a_panel_and_every_stage_its_place() -> None:
    lines = run_lines()
    assert stage_ends(lines) == [("retrieval", 0, 30), ("joint", 30, 60)]
    found = {panel.title: panel.curves for panel in panels(lines, "hr@20")}
    assert list(found) == [
        "loss (weighted total)",
        "loss/retrieval",
        "loss/generator",
        "validation hr@20",
        "dictionary: health",
        "dictionary: least distance of two codes",
    ]
    assert found["validation hr@20"] == {"hr@20": [("retrieval", 30, 0.3), ("joint", 60, 0.6)]}
    assert found["loss/generator"] == {"loss/generator": [("joint", step, 3.0) for step in (40, 50, 60)]}
    with pytest.raises(ArtifactError, match="no training line"):
        panels([line for line in lines if line["kind"] != "train"])
    pytest.importorskip("matplotlib")
    axes = {axes.get_title(): axes for axes in curves_figure(lines, metric="hr@20").axes}
    parts = [line.get_xydata().tolist() for line in axes["loss/retrieval"].lines]
    assert parts[:2] == [[[10, 4.5], [20, 4], [30, 3.5]], [[40, 3], [50, 2.5], [60, 2]]]
    assert parts[2] == [[30, 0], [30, 1]]  # where the stage ends
    assert [text.get_text() for text in axes["loss/generator"].texts] == ["retrieval", "joint"]


# --- the whole --------------------------------------------------------------------------------------------------------


def test_all_pictures_from_artifacts(
    planted: Dataset, model: GemiRec, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    own, other = (
        save(model, "gemirec", planted, tmp_path / "a"),
        save(comirec(planted), "comirec_sa", planted, tmp_path / "b"),
    )
    run = tmp_path / "run"
    run.mkdir()
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in run_lines()))
    write_json(run / "config.json", {"model_name": "gemirec", "training": {"metric": "hr@20"}})
    user = f"user-{planted.users_in('valid')[0]}"
    given: dict[str, Any] = {"beside": other, "user": user, "run": run, "items": 40, "depth": 2, "quiet": True}
    picture(own, planted.path, tmp_path / "out", as_json=True, **given)
    said = json.loads(capsys.readouterr().out)
    assert list(said["pictures"]) == ["map", "tree", "tree_json", "tree_text", "posterior", "curves"]
    assert (said["user"], said["notes"]) == (user, [])
    for name, path in said["pictures"].items():
        if not name.startswith("tree_"):
            assert Path(path).read_bytes().startswith(b"\x89PNG")
    tree = json.loads((tmp_path / "out" / "tree.json").read_text())
    assert tree == {"sizes": [6, 3], "rows": tree_rows(model, planted, Names(planted, model), depth=2)}
    assert (tmp_path / "out" / "tree.txt").read_text() == tree_text(tree["rows"])
    assert "matplotlib.pyplot" not in sys.modules
    # ComiRec alone: the map by category, and a note for what it cannot show
    picture(other, planted.path, tmp_path / "plain", as_json=True, items=40, quiet=True)
    said = json.loads(capsys.readouterr().out)
    assert list(said["pictures"]) == ["map"]
    assert len(said["notes"]) == 2
    # the dictionary of the second artifact, where the first has none
    named = pictures(other, planted.path, tmp_path / "swapped", beside=own, which=["tree"])
    assert json.loads(Path(named["pictures"]["tree_json"]).read_text()) == tree


def test_what_cannot_be_drawn_is_refused(planted: Dataset, model: GemiRec, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    other, out = save(comirec(planted), "comirec_sa", planted, tmp_path / "b"), tmp_path / "out"
    for which in (["tree"], ["map", "posterior"]):
        with pytest.raises(ConfigError, match="only a gemirec model"):
            pictures(other, planted.path, out, which=which)
    with pytest.raises(ConfigError, match="only a dmi model"):
        pictures(other, planted.path, out, which=["refinement"])
    with pytest.raises(ConfigError, match="no such picture"):
        pictures(other, planted.path, out, which=["tea"])
    with pytest.raises(ConfigError, match="run folder"):
        pictures(other, planted.path, out, which=["curves"])
    early = tiny("gemirec", planted.spec())
    with pytest.raises(ConfigError, match="before its last stage"):
        pictures(save(early, "gemirec", planted, tmp_path / "early"), planted.path, out, which=["tree"])
    elsewhere = write_planted_dataset(tmp_path / "elsewhere", num_users=60, seed=5)
    with pytest.raises(DataError, match="trained on other data"):
        pictures(other, elsewhere.path, out)
    info = new_artifact_info("comirec_sa", comirec(planted), planted, fallback="popularity", training={})
    info = msgspec.structs.replace(info, dataset={**info.dataset, "fingerprint": "another"})
    stray = Recommender(info, comirec(planted), planted.items, DatasetHistories(planted), planted)
    stray.save_pretrained(tmp_path / "stray")
    with pytest.raises(DataError, match="two models must share it"):
        pictures(other, planted.path, out, beside=tmp_path / "stray")
    assert not out.exists()


def test_without_matplotlib_the_error_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtraError, match=r"gemirec\[plots\]"):
        pictures(tmp_path, tmp_path, tmp_path / "out")
