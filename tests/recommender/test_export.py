"""What an export holds: the model's own vectors bit for bit, graphs that give its numbers, a map of neighbours."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from gemirec.components.selection import Selected
from gemirec.data.dataset import Dataset
from gemirec.errors import ArtifactError, ConfigError, MissingExtraError, StorageError
from gemirec.models.base import Histories, RetrievalModel
from gemirec.models.dmi import DMI
from gemirec.models.dmi.config import SHARED
from gemirec.models.gemirec import GemiRec
from gemirec.recommender import Recommender
from gemirec.recommender.artifact import new_artifact_info
from gemirec.recommender.export import ExportConfig, export, project, vectors
from gemirec.recommender.export.vectors import read_facts
from gemirec.recommender.histories import DatasetHistories
from gemirec.retrieval.versions import dictionary_version, model_version
from support_cli import answer, gemirec
from support_models import TINY, ready, right_padded, sequences, shake

QUICK = ExportConfig(map_steps=0)
GRAPH = ExportConfig(exporter="torchscript", int8=True)


def trained(name: str, data: Dataset, **more: Any) -> Recommender:
    """A recommender around a tiny model with parameters that are all about something; ``dmi+NAME`` refines NAME."""
    name, _, base = name.partition("+")
    over = dict(more)
    if base:
        own = {key: value for key, value in TINY[base].items() if key not in SHARED}
        over |= {"base": {"model": base, **own}, "loss": TINY[base]["loss"]}
    model = ready(name, data.spec(), **over).eval()
    shake(model, 0.1)
    for part in model.modules():
        if isinstance(part, GemiRec):
            part.refresh()
    return Recommender(new_artifact_info(name, model, data), model, data.items, DatasetHistories(data), data)


def features(data: Dataset, rows: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    categorical, numeric = data.user_features()
    assert categorical is not None
    assert numeric is not None
    return torch.from_numpy(categorical[rows].astype(np.int64)), torch.from_numpy(numeric[rows].astype(np.float32))


def session(path: Path) -> Any:
    onnxruntime = pytest.importorskip("onnxruntime")
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


# --- vectors ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def comirec(recommender: Recommender, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return recommender.save_pretrained(tmp_path_factory.mktemp("home") / "artifact")


def test_vectors_are_the_model_s_bit_for_bit(recommender: Recommender, planted: Dataset, tmp_path: Path) -> None:
    facts = export(recommender, tmp_path / "out", QUICK, which=["items", "users"])
    model = recommender.model
    items = pl.read_parquet(tmp_path / "out/items.parquet")
    assert items["item_id"].to_list() == [f"item-{i}" for i in range(1, 121)]
    with torch.no_grad():
        assert np.array_equal(items["vector"].to_numpy(), model.item_vectors()[1:].numpy())
        everyone = right_padded(sequences(planted), model.max_length)
        own = model.interests(Histories(everyone, *features(planted, [*range(400)])))
    users = pl.read_parquet(tmp_path / "out/users.parquet")
    assert users.columns == ["user_id", "interest", "weight", "vector"]
    assert np.array_equal(users["vector"].to_numpy(), own.vector_BKD[own.mask_BK].numpy())
    row_R, interest_R = own.mask_BK.nonzero(as_tuple=True)
    assert users["user_id"].to_list() == planted.users["user_id"].gather(row_R.numpy()).to_list()
    assert users["interest"].to_list() == interest_R.tolist()
    assert (facts["users"], facts["without_history"], facts["interests"]) == (400, 0, len(row_R))
    for name in ("items", "users"):
        about = read_facts(tmp_path / f"out/{name}.parquet")
        assert about["model_version"] == model_version(model)
        assert about["fingerprint"] == planted.fingerprint
    assert json.loads((tmp_path / "out/export.json").read_text())["dim"] == model.item_vectors().shape[1]


def test_users_are_streamed_block_by_block(
    recommender: Recommender, comirec: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Small blocks and row groups, from the log as from an artifact's own histories: the same rows."""
    import pyarrow.parquet as pq

    export(recommender, tmp_path / "whole", QUICK, which=["users"])
    monkeypatch.setattr(vectors, "ROWS", 300)
    seen: list[tuple[int, int]] = []
    small = ExportConfig(batch_size=64)
    export(comirec, tmp_path / "parts", small, which=["items", "users"], progress=lambda *at: seen.append(at))
    assert seen[-1] == (400, 400)
    assert len(seen) == 7
    file = pq.ParquetFile(tmp_path / "parts/users.parquet")
    assert file.num_row_groups > 3
    assert max(file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)) < 300 + 64 * 4
    one, other = (pl.read_parquet(tmp_path / name / "users.parquet") for name in ("whole", "parts"))
    assert one.drop("vector").equals(other.drop("vector"))
    np.testing.assert_allclose(one["vector"].to_numpy(), other["vector"].to_numpy(), atol=1e-6)


def test_an_artifact_without_histories_has_no_users(recommender: Recommender, tmp_path: Path) -> None:
    bare = recommender.save_pretrained(tmp_path / "bare", histories=False)
    notes: list[str] = []
    facts = export(bare, tmp_path / "out", ExportConfig(map_steps=0, exporter="torchscript"), note=notes.append)
    assert facts["parts"] == ["items", "map", "onnx"]
    assert any("no users" in text for text in notes)
    with pytest.raises(ArtifactError, match="keeps no histories"):
        export(bare, tmp_path / "other", QUICK, which=["users"])
    assert not (tmp_path / "other").exists()


def test_items_that_came_later_are_exported_too(recommender: Recommender, tmp_path: Path) -> None:
    new = pl.DataFrame({"item_id": ["new-1", "new-2"], "category": ["c0", "c3"]})
    more = recommender.with_new_items(new)
    export(more, tmp_path / "out", ExportConfig(), which=["items", "map"])
    items, laid = (pl.read_parquet(tmp_path / f"out/{name}.parquet") for name in ("items", "map"))
    assert items["item_id"].to_list()[-2:] == laid["item_id"].to_list()[-2:] == ["new-1", "new-2"]
    served_ND, version = more.served_items()
    assert np.array_equal(items["vector"].to_numpy(), served_ND[1:].numpy())
    assert read_facts(tmp_path / "out/items.parquet")["items_version"] == version != model_version(more.model)
    assert laid["count"].to_list()[-2:] == [0, 0]
    assert laid.select("x", "y").to_numpy().dtype == np.float32


# --- graphs -------------------------------------------------------------------------------------------------------

NAMES = [
    "comirec_sa",
    "sasrec",
    "gemirec",
    "dmi",
    "dmi+gemirec",
    pytest.param("mind", marks=pytest.mark.slow),  # torch's faster exporter cannot do it
]


@pytest.mark.parametrize("name", NAMES)
def test_a_graph_gives_the_model_s_interests(name: str, planted: Dataset, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    recommender = trained(name, planted)
    model = recommender.model
    config = ExportConfig(int8=True, exporter="auto" if name == "mind" else "torchscript", least_recall=0.8)
    facts = export(recommender, tmp_path / "out", config, which=["onnx"])
    assert not any(part.training for part in model.modules())
    graph = session(tmp_path / "out/model.onnx")
    rows = sequences(planted)
    for batch, length in ((1, 1), (1, 12), (3, 2), (5, 7), (64, 12), (4, 16)):
        users = list(range(7, 7 + batch))
        given = right_padded([np.resize(rows[u], max(1, length - u % 3)) for u in users], length)
        read = right_padded([row[row != 0].numpy() for row in given], model.max_length)
        own, feed = wanted(model, Histories(read, *features(planted, users)), given)
        found = graph.run(["vector", "mask"], {value.name: feed[value.name] for value in graph.get_inputs()})
        np.testing.assert_allclose(found[0], own[0], atol=2e-5 * max(1.0, float(np.abs(own[0]).max())))
        assert np.array_equal(found[1], own[1])
    by_file = {row["file"]: row for row in facts["graphs"]}
    assert by_file["model.onnx"]["recall"] > 0.999
    assert by_file["model.onnx"]["exporter"] == ("dynamo" if name == "mind" else "torchscript")
    assert 0.8 <= by_file["model.int8.onnx"]["recall"] <= 1
    inputs = facts["signature"]["model"]["inputs"]
    assert inputs["item"] == {"type": "int64", "axes": ["batch", "length"]}
    assert ("interest" in inputs) == name.endswith("gemirec")  # the generator is not in the graph


@torch.no_grad()
def wanted(model: RetrievalModel, histories: Histories, given: torch.Tensor) -> tuple[list[Any], dict[str, Any]]:
    """The model's vectors and masks, and what a graph is fed with for the same users."""
    feed = {"item": given.numpy()}
    assert histories.user_categorical_BF is not None
    assert histories.user_numeric_BG is not None
    feed |= {"categorical": histories.user_categorical_BF.numpy(), "numeric": histories.user_numeric_BG.numpy()}
    base = model.base if isinstance(model, DMI) else model
    if isinstance(base, GemiRec):
        chosen = base.select(base.state(histories))
        feed |= {"interest": chosen.index_Bk.numpy(), "log_probability": chosen.logp_Bk.numpy()}
    own = model.interests(histories)
    return [own.vector_BKD.numpy(), own.mask_BK.numpy()], feed


@pytest.fixture(scope="module")
def gemi(planted: Dataset, tmp_path_factory: pytest.TempPathFactory) -> tuple[GemiRec, Path]:
    pytest.importorskip("onnxruntime")
    recommender, out = trained("gemirec", planted), tmp_path_factory.mktemp("gemi") / "out"
    export(recommender, out, GRAPH, which=["onnx"])
    assert isinstance(recommender.model, GemiRec)
    return recommender.model, out


def test_gemirec_s_graph_fuses_whatever_indices_it_is_given(gemi: tuple[GemiRec, Path], planted: Dataset) -> None:
    """A cache's interests may be older than the history: they are fused with the user as the user is now."""
    model, out = gemi
    users = list(range(20, 30))
    item_BL = right_padded([sequences(planted)[u] for u in users], model.max_length)
    histories = Histories(item_BL, *features(planted, users))
    rng = np.random.default_rng(0)
    count = model.config.num_interests - model.config.keep_user_vector
    index_Bk = np.stack([rng.permutation(model.num_interests)[:count] for _ in users])
    index_Bk[3:6, -1] = -1
    logp_Bk = np.log(rng.uniform(0.01, 0.2, index_Bk.shape)).astype(np.float32)
    logp_Bk[index_Bk < 0] = -np.inf
    chosen = Selected(torch.from_numpy(index_Bk), torch.from_numpy(logp_Bk))
    with torch.no_grad():
        own = model.fused(histories, chosen)
    graph = session(out / "model.onnx")
    feed = {"item": item_BL.numpy(), "interest": index_Bk, "log_probability": logp_Bk}
    feed |= dict(zip(("categorical", "numeric"), (part.numpy() for part in features(planted, users)), strict=True))
    vector, mask, weight = graph.run(["vector", "mask", "weight"], {v.name: feed[v.name] for v in graph.get_inputs()})
    assert own.weight_BK is not None
    np.testing.assert_allclose(vector, own.vector_BKD.numpy(), atol=1e-5)
    np.testing.assert_allclose(weight, own.weight_BK.numpy(), atol=1e-6)
    assert np.array_equal(mask, own.mask_BK.numpy())


def test_dmi_s_denoiser_is_a_graph_of_its_own(planted: Dataset, tmp_path: Path) -> None:
    """The reverse process with the graph in the denoiser's place gives what DMI serves."""
    pytest.importorskip("onnxruntime")
    recommender = trained("dmi", planted)
    model = recommender.model
    assert isinstance(model, DMI)
    facts = export(recommender, tmp_path / "out", GRAPH, which=["onnx"])
    assert {row["file"] for row in facts["graphs"]} >= {"model.onnx", "denoiser.onnx", "denoiser.int8.onnx"}
    graph, calls = session(tmp_path / "out/denoiser.onnx"), []
    users = list(range(9))
    histories = Histories(
        right_padded([sequences(planted)[u][: u + 1] for u in users], model.max_length), *features(planted, users)
    )

    def denoise(noised: Any, step: Any, item: Any, mask: Any, guide: Any = None) -> torch.Tensor:
        calls.append(int(step[0]))
        inputs = {"noised": noised, "step": step.expand(len(item)), "item_vector": item, "mask": mask}
        return torch.from_numpy(graph.run(["clean"], {name: value.numpy() for name, value in inputs.items()})[0])

    with torch.no_grad():
        own = model.interests(histories).vector_BKD
        model.denoise = denoise  # type: ignore[method-assign, assignment]
        served = model.interests(histories).vector_BKD
    assert calls == [leg.step for leg in model.reverse.legs]
    torch.testing.assert_close(served, own, atol=1e-5, rtol=0)


def test_a_graph_says_what_it_is_and_nothing_of_where_it_was_made(gemi: tuple[GemiRec, Path]) -> None:
    onnx = pytest.importorskip("onnx")
    model, out = gemi
    for name in ("model.onnx", "model.int8.onnx"):
        about = json.loads({p.key: p.value for p in onnx.load(out / name).metadata_props}[vectors.METADATA_KEY])
        assert about["dictionary_version"] == dictionary_version(model)
        raw = (out / name).read_bytes()
        assert b".py" not in raw
        assert str(Path(__file__).parents[2]).encode() not in raw


def test_a_graph_that_gives_other_numbers_is_not_written(
    planted: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxruntime")
    from gemirec.recommender.export.traced import HistoryGraph

    right = HistoryGraph.forward
    wrong = [lambda out: (out[0] + 0.01, out[1]), lambda out: (out[0], ~out[1]), lambda out: (out[0] / 0.0, out[1])]
    recommender = trained("comirec_sa", planted)
    for change in wrong:
        monkeypatch.setattr(HistoryGraph, "forward", lambda self, *inputs, c=change: c(right(self, *inputs)))
        with pytest.raises(ArtifactError, match="does not give the model's numbers"):
            export(recommender, tmp_path / "out", GRAPH, which=["onnx"])
        assert list(tmp_path.iterdir()) == []


def test_a_graph_in_8_bits_that_finds_too_little_is_not_written(planted: Dataset, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    strict = ExportConfig(exporter="torchscript", int8=True, least_recall=1.0)
    with pytest.raises(ArtifactError, match="finds too little"):
        export(trained("comirec_sa", planted), tmp_path / "out", strict, which=["onnx"])
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_cannot_be_a_graph_says_so(planted: Dataset, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    with pytest.raises(ConfigError, match="cannot be made an ONNX graph") as error:
        export(trained("mgnm", planted), tmp_path / "out", GRAPH, which=["onnx"])
    assert "diag_embed" in error.value.got
    assert "--which items,users,map" in error.value.fix


def test_large_parameters_lie_in_a_file_of_their_own(
    planted: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxruntime")
    from gemirec.recommender.export import onnx as writer

    monkeypatch.setattr(writer, "EXTERNAL_ABOVE", 4000)
    facts = export(trained("comirec_sa", planted), tmp_path / "out", GRAPH, which=["onnx"])
    assert facts["bytes"]["model.onnx.data"] >= 121 * 16 * 4
    moved = (tmp_path / "out").rename(tmp_path / "moved")  # as a whole it can be carried elsewhere
    assert session(moved / "model.onnx").run(None, {"item": np.array([[3, 4]])})[0].shape == (1, 3, 16)


# --- map ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [ExportConfig(), ExportConfig(landmarks=60, map_steps=250), QUICK])
def test_neighbours_on_the_map_share_their_category(
    config: ExportConfig, recommender: Recommender, tmp_path: Path
) -> None:
    export(recommender, tmp_path / "one", config, which=["map"])
    export(recommender, tmp_path / "two", config, which=["map"])
    assert (tmp_path / "one/map.parquet").read_bytes() == (tmp_path / "two/map.parquet").read_bytes()
    table = pl.read_parquet(tmp_path / "one/map.parquet")
    items = recommender.catalog.items
    assert table.columns == ["item_id", "x", "y", "category", "count", "landmark"]
    assert table["item_id"].equals(items["item_id"])
    assert table["count"].to_list() == items["train_count"].to_list()
    assert table["landmark"].sum() == min(config.landmarks, len(items))
    place_N2 = table.select("x", "y").to_numpy()
    assert np.abs(place_N2).max() == pytest.approx(1, abs=1e-6)
    assert len(np.unique(place_N2, axis=0)) == len(items)
    distance_NN = np.linalg.norm(place_N2[:, None] - place_N2[None], axis=2)
    np.fill_diagonal(distance_NN, np.inf)
    category = table["category"].to_numpy()
    near_NJ = np.argsort(distance_NN, axis=1)[:, :5]
    shared = (category[near_NJ] == category[:, None]).mean()
    by_chance = (category[None] == category[:, None]).mean()
    assert shared > (4 if config.map_steps else 2) * by_chance


def test_the_map_is_of_the_vectors_without_their_cells(planted: Dataset, tmp_path: Path) -> None:
    """Coordinates that a model adds for its search would pack each cell into a point."""
    recommender = trained("gemirec", planted, cells="own")
    export(recommender, tmp_path / "out", QUICK, which=["items", "map"])
    item_ND = torch.from_numpy(pl.read_parquet(tmp_path / "out/items.parquet")["vector"].to_numpy().copy())
    assert item_ND.shape[1] == 16 + 6
    own = project(item_ND[:, :16], steps=0).xy_N2.numpy()
    np.testing.assert_allclose(
        pl.read_parquet(tmp_path / "out/map.parquet").select("x", "y").to_numpy(), own, atol=1e-6
    )


# --- the verb -----------------------------------------------------------------------------------------------------


def test_the_verb(comirec: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    quick = ["--set", "map_steps=0", "--set", "exporter=torchscript"]
    facts = answer("export", comirec, "--out", "out", "--int8", *quick, cwd=tmp_path)
    assert facts["parts"] == ["items", "users", "map", "onnx"]
    assert {file.name for file in (tmp_path / "out").iterdir()} == {*facts["bytes"], "export.json"}
    told = gemirec("export", comirec, "--out", "more", "--which", "onnx", *quick, cwd=tmp_path).stdout
    assert "difference" in told
    assert "recall" in told
    failed = gemirec("export", comirec, "--out", "out", "--which", "items", cwd=tmp_path, code=2)
    assert "exists already" in failed.stderr
    assert "no such part" in gemirec("export", comirec, "--out", "x", "--which", "itmes", cwd=tmp_path, code=2).stderr


def test_without_onnx_vectors_and_map_are_still_exported(
    recommender: Recommender, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(MissingExtraError, match=r"gemirec\[export\]"):
        export(recommender, tmp_path / "out", QUICK)
    export(recommender, tmp_path / "out", QUICK, which=["items", "map"])
    with pytest.raises(StorageError):
        export(recommender, tmp_path / "out", QUICK, which=["items"])
    export(recommender, tmp_path / "out", QUICK, which=["items"], overwrite=True)
    assert not (tmp_path / "out/map.parquet").exists()
