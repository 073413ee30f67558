"""Every config field of every model changes something, and the catalogue resolves.

For each leaf field the model is built, run and differentiated with the field's value and with another one; vectors,
initialisation, loss or gradients must differ. A field that acts only together with others names its company in
``COMPANY``: torch-rechub's models had a temperature that was stored and never used.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import pytest
import torch

from gemirec.components.aggregators import AGGREGATORS
from gemirec.components.extractors import EXTRACTORS
from gemirec.components.penalties import PENALTIES
from gemirec.config import Config, from_dict, merge, to_dict
from gemirec.data.dataset import Dataset, DataSpec
from gemirec.errors import ConfigError
from gemirec.models.base import RetrievalModel
from gemirec.models.catalog import MODELS, PROFILES, build_model, config_class, load_profile, model_class, model_table
from support_models import TINY, begin, right_padded, sequences, shake, train_batch

COMPANY: dict[str, dict[str, Any]] = {
    "item_std": {"item_init": "normal"},
    "loss.num_negatives": {"loss": {"negatives": "uniform"}},
    "loss.unique": {"loss": {"negatives": "uniform"}},
    "loss.alpha": {"loss": {"negatives": "popularity"}},
    "loss.mixed_with": {"loss": {"negatives": "mixed"}},
    "loss.log_q": {"loss": {"negatives": "popularity"}},  # uniform draws have equal log q, which cancels
    "loss.detach_weights": {"loss": {"beta": 1.0}},
    "loss.power": {"loss": {"readout": "label_aware"}},
    "feature_dim": {"use_user_features": True},
    "mind:use_user_features": {"projection": "relu"},
    "mind:feature_dim": {"use_user_features": True, "projection": "relu"},
    "mind:hidden_factor": {"projection": "mlp"},
    "mima:loss.readout": {"matching": "none"},  # a matched pair has one interest
    "mima:loss.power": {"matching": "none", "loss": {"readout": "label_aware"}},
    "simrec:attribute_weight": {"mix": "sum"},
    "hstu:loss.readout": {"num_interests": 2},
    "hstu:loss.power": {"num_interests": 2, "loss": {"readout": "label_aware"}},
    "hstu:hidden_factor": {"num_interests": 2},
    "ulim:loss.readout": {"train_categories": "served"},  # "target" trains one interest
    "ulim:loss.power": {"train_categories": "served", "loss": {"readout": "label_aware"}},
    "dismir:hardest_of": {"recommendation": "bpr"},
    "bam:loss.readout": {"selection": "readout"},  # a drawn interest is one
    "bam:loss.power": {"selection": "readout", "loss": {"readout": "label_aware"}},
    "bam:linear_dim": {"selection": "linear"},
    "dmi:serve_seed": {"serve_start": "noised"},
    "dmi:neighbours": {"guidance": "neighbours"},
    "dmi:neighbours_of": {"guidance": "neighbours"},
    "dmi:memory": {"guidance": "users"},
    "dmi:denoiser.guide_start": {"guidance": "neighbours"},
    "dmi:contrast_temperature": {"contrast_weight": 0.5},
    "dmi:train": {"base_share": 0.5},
    "denoiser.prune.threshold": {"denoiser": {"prune": {"rule": "learned"}}},
    "denoiser.prune.softness": {"denoiser": {"prune": {"rule": "learned"}}},
    "gemirec:loss.readout": {"train_interests": "served"},  # "label" trains one interest
    "gemirec:loss.power": {"train_interests": "served", "loss": {"readout": "label_aware"}},
    "gemirec:feature_dim": {},
    "timirec:dropout": {"predictor_layers": 2, "dropout": 0.2},
    "adaptive_k.kind": {"adaptive_k": {"mass": 0.5, "radius": 0.8}},
    "adaptive_k.mass": {"adaptive_k": {"kind": "mass", "mass": 0.5}},
    "adaptive_k.min_silhouette": {"adaptive_k": {"kind": "silhouette", "min_silhouette": 0.1}},
    "adaptive_k.radius": {"adaptive_k": {"kind": "density", "radius": 0.5}},
    "adaptive_k.min_points": {"adaptive_k": {"kind": "density", "radius": 0.8}},
    "umi:feature_dim": {"profile": "features"},
    "quantizer.encoder": {"quantizer": {"code_dim": 16}},  # codes in the items' space are as wide as they
    "quantizer.kmeans_iterations": {"quantizer": {"kmeans_iterations": 1}},  # the default is enough to converge
    "quantizer.kmeans_sample": {"quantizer": {"kmeans_sample": 30}},
    "quantizer.dead_after": {"quantizer": {"sizes": [60, 3]}},  # more codes than a batch of 64 can use
    "beam": {"decoder": {"head": "factorised"}, "beam": 3},
    "tower.layers": {"tower": {"kind": "causal"}},
    "tower.heads": {"tower": {"kind": "causal"}},
    "tower.dropout": {"tower": {"kind": "causal"}},
    "fusion.gate": {"fusion": {"kind": "residual"}},
    "fusion.attend": {"fusion": {"kind": "residual"}},
    "fusion.sharpness": {"fusion": {"kind": "residual", "attend": 0.5}},
    "cell_bonus": {"cells": "own"},
    "cell_prior": {"cells": "own", "train_interests": "served"},
    "gemirec:history_share": {"history_share": 0.3},
    "interest_positions": {"interest_positions": 0.5},  # the default is all, and there are no more
}

PARTS: dict[str, list[Any]] = {
    "extractor": [{"kind": "transform"}],
    "regularizers": [[{"kind": "cosine"}]],
    "aggregator": [{"kind": "mean"}],
    "base": [{"model": "mind"}],
}
"""Other values of the fields that name a part; the parts' own fields are tested below."""


def leaves(cls: type[Config], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted name and type of every leaf field."""
    for key, hint in get_type_hints(cls).items():
        if key not in cls.__struct_fields__:
            continue
        if isinstance(hint, type) and issubclass(hint, Config):
            yield from leaves(hint, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", hint


def others(hint: Any, value: Any) -> list[Any]:
    """Other values of a field: every other literal, the other truth, twice the number or numbers, one number fewer."""
    if get_origin(hint) is Annotated:
        hint = get_args(hint)[0]
    if get_origin(hint) is Literal:
        return [choice for choice in get_args(hint) if choice != value]
    if hint is bool:
        return [not value]
    if hint in (int, float):
        return [2 * value if value else hint(1) / 2 if hint is float else 1]
    if get_origin(hint) is tuple:
        return [[2 * entry for entry in value], value[:-1]]
    raise AssertionError(f"a field of type {hint}: teach this test another value")


def nested(name: str, value: Any) -> dict[str, Any]:
    for part in reversed(name.split(".")):
        value = {part: value}
    assert isinstance(value, dict)
    return value


def value_of(config: Config, name: str) -> Any:
    value: Any = to_dict(config)
    for part in name.split("."):
        value = value[part]
    return value


def fingerprint(model: RetrievalModel, dataset: Dataset) -> dict[str, torch.Tensor]:
    """All that a field could change: parameters, stages, and in every stage its start, loss and gradients; vectors."""
    model.learn_from(dataset)
    out = {f"state {key}": value.clone() for key, value in model.state_dict().items()}
    shake(model, 0.3)
    for number, stage in enumerate(model.stages):
        out[f"stage {number} {stage.name} {stage.on_start} {stage.frozen}"] = torch.tensor(stage.share)
        begin(model, stage)
        out |= {f"{stage.name} state {key}": value.clone() for key, value in model.state_dict().items()}
        for step in range(1 if len(model.stages) == 1 else 2):
            torch.manual_seed(0)
            model.zero_grad()
            loss = model.train().losses(train_batch(dataset, model.max_length), stage.name).total()
            out[f"{stage.name} {step} loss"] = loss.detach()
            if loss.requires_grad:
                loss.backward()  # type: ignore[no-untyped-call]
            gradients = {key: p.grad.clone() for key, p in model.named_parameters() if p.grad is not None}
            out |= {f"{stage.name} {step} gradient {key}": gradient for key, gradient in gradients.items()}
            if step == 0 and len(model.stages) > 1:
                shake(model, 0.05)
    model.eval()
    batch = train_batch(dataset, model.max_length, step=1)
    out["interests"] = model.interests(batch).vector_BKD.detach()
    out["interest mask"] = model.interests(batch).mask_BK
    out["items"] = model.item_vectors().detach()
    return out


def differ(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    if one.keys() != two.keys():
        return True
    return any(
        one[key].shape != two[key].shape or not torch.allclose(one[key].float(), two[key].float(), rtol=1e-4, atol=1e-7)
        for key in one
    )


@pytest.fixture(scope="module")
def known() -> dict[str, dict[str, torch.Tensor]]:
    """Fingerprints that several fields are compared with."""
    return {}


FIELDS = [(name, field, hint) for name in MODELS for field, hint in leaves(config_class(name))]


@pytest.mark.parametrize(("name", "field", "hint"), FIELDS, ids=[f"{name}-{field}" for name, field, _ in FIELDS])
def test_every_field_changes_something(
    name: str, field: str, hint: Any, planted: Dataset, known: dict[str, dict[str, torch.Tensor]]
) -> None:
    spec = planted.spec()
    company = COMPANY.get(f"{name}:{field}", COMPANY.get(field, {}))
    base = merge(TINY[name], company)

    def run(values: dict[str, Any]) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        return fingerprint(build_model(name, values, spec), planted)

    key = f"{name} {base}"
    if key not in known:
        known[key] = run(base)
        assert not differ(known[key], run(base)), "the comparison itself must be deterministic"
    before = known[key]
    torch.manual_seed(0)
    alternatives = PARTS.get(field) or others(hint, value_of(build_model(name, base, spec).config, field))
    assert alternatives
    for value in alternatives:
        assert differ(before, run(merge(base, nested(field, value)))), f"{name}: {field} = {value} changes nothing"


def test_the_declared_company_is_of_real_fields() -> None:
    known = {field for _, field, _ in FIELDS} | {f"{name}:{field}" for name, field, _ in FIELDS}
    assert set(COMPANY) <= known


def test_every_field_has_a_docstring() -> None:
    """The text under a field is its help: one for each."""
    import ast
    import importlib
    import inspect

    for name in MODELS:
        for cls in config_class(name).__mro__:
            if not (issubclass(cls, Config) and cls is not Config):
                continue
            tree = ast.parse(inspect.getsource(importlib.import_module(cls.__module__)))
            body = next(n.body for n in tree.body if isinstance(n, ast.ClassDef) and n.name == cls.__name__)
            for node, after in zip(body, [*body[1:], None], strict=True):
                if isinstance(node, ast.AnnAssign):
                    documented = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
                    assert documented, f"{cls.__name__}: {ast.unparse(node.target)}"


@pytest.mark.parametrize("name", list(MODELS))
def test_catalogue_rows_resolve(name: str) -> None:
    row = MODELS[name]
    assert issubclass(model_class(name), RetrievalModel)
    assert issubclass(config_class(name), Config)
    assert row.paper
    assert row.line
    assert f"| `{name}` |" in model_table()
    for profile in PROFILES:
        assert load_profile(name, profile)


def test_a_part_of_a_loss_keeps_the_rest_of_the_models_own() -> None:
    """Not the rest of the loss class's: MIND's readout is label-aware, whatever else of its loss is set."""
    loss = from_dict(config_class("mind"), {"loss": {"temperature": 0.1}}).loss  # type: ignore[attr-defined]
    assert (loss.temperature, loss.readout, loss.power) == (0.1, "label_aware", 10.0)
    assert from_dict(config_class("gemirec"), {"loss": {}}) == config_class("gemirec")()


def test_wrong_names_are_refused_with_a_suggestion(planted: Dataset) -> None:
    spec = planted.spec()
    with pytest.raises(ConfigError, match="comirec_sa"):
        build_model("comirec_s", {}, spec)
    with pytest.raises(ConfigError, match="choose one of: paper, tuned"):
        load_profile("mind", "best")
    with pytest.raises(ConfigError, match="num_interests"):
        build_model("mind", {"num_interest": 3}, spec)
    with pytest.raises(ConfigError, match="rounds"):
        build_model("mind", {"rounds": 0}, spec)
    bad = config_class("mind")(rounds=0)
    with pytest.raises(ConfigError, match="rounds"):
        build_model("mind", bad, spec)


@pytest.mark.parametrize(
    ("name", "config", "what"),
    [
        ("sasrec", {"dim": 10, "heads": 3}, "heads must divide"),
        ("mind", {"use_user_features": True}, "needs a projection"),
    ],
)
def test_impossible_combinations_are_refused(name: str, config: dict[str, Any], what: str, planted: Dataset) -> None:
    with pytest.raises(ConfigError, match=what):
        build_model(name, config, planted.spec())


@pytest.mark.parametrize("name", ["youtube_dnn", "mind"])
def test_user_features(name: str, planted: Dataset) -> None:
    """They reach the interests; an unknown user is served; data without any are refused."""
    spec = planted.spec()
    over = {"use_user_features": True} | ({"projection": "mlp"} if name == "mind" else {})
    torch.manual_seed(0)
    model = build_model(name, merge(TINY[name], over), spec).eval()
    batch = train_batch(planted, model.max_length)
    unknown = type(batch)(batch.item_BL)
    assert not torch.allclose(model.interests(batch).vector_BKD, model.interests(unknown).vector_BKD)
    bare = DataSpec(num_items=spec.num_items, train_count_N=spec.train_count_N)
    with pytest.raises(ConfigError, match="the data have none"):
        build_model(name, over, bare)


def test_mind_has_the_adaptive_number_of_interests(planted: Dataset) -> None:
    torch.manual_seed(0)
    model = build_model("mind", {"num_interests": 4, "dim": 8}, planted.spec()).eval()
    item_BL = right_padded([sequences(planted)[0].repeat(3)[:n] for n in (1, 3, 8, 16)], 20)
    found = model.interests(type(train_batch(planted, 20))(item_BL))
    assert found.mask_BK.sum(1).tolist() == [1, 1, 3, 4]
    assert (found.vector_BKD[~found.mask_BK] == 0).all()


def test_sasrec_trains_every_position_as_its_prefix(planted: Dataset) -> None:
    """The loss over all positions is that of the prefixes as histories of their own, the next item their target."""
    from gemirec.models.base import TrainBatch
    from support_models import tiny

    over: dict[str, Any] = {"loss": {"negatives": "uniform"}}
    every = tiny("sasrec", planted.spec(), **over).eval()
    last = tiny("sasrec", planted.spec(), all_positions=False, **over).eval()
    last.load_state_dict(every.state_dict())
    events = [int(item) for item in sequences(planted)[3][:6]]
    window = TrainBatch(torch.tensor([events[:5]]), target_B=torch.tensor([events[5]]))
    window_loss = every.losses(TrainBatch(window.item_BL, target_B=window.target_B, generator=seeded()), "train")
    prefixes = right_padded([sequences(planted)[3][:n] for n in range(1, 6)], every.max_length)
    prefix_loss = last.losses(TrainBatch(prefixes, target_B=torch.tensor(events[1:]), generator=seeded()), "train")
    torch.testing.assert_close(window_loss.total(), prefix_loss.total())


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


ROLES: dict[str, dict[str, tuple[Any, Any]]] = {
    "extractor": EXTRACTORS,
    "aggregator": AGGREGATORS,
    "regularizers": PENALTIES,
}


def fields_of(role: str) -> list[tuple[str, str, str, Any]]:
    table = ROLES[role]
    hints = {kind: get_type_hints(row[0]) for kind, row in table.items()}
    return [(role, kind, field, hints[kind][field]) for kind in table for field in table[kind][0].__struct_fields__]


PART_COMPANY: dict[str, dict[str, Any]] = {
    "routing.map_std": {"maps": "positions"},
    "graph.hops": {"levels": 3},
    "pool.hidden_factor": {"network": True},
    "target.serving": {"serving": "max"},
    "graph.map_std": {"maps": "positions"},
}
PART_ALONE = {"target.serving", "prototypes.gate"}
"""Fields whose other value is refused with these parts; other tests have them."""


@pytest.mark.parametrize(
    ("role", "kind", "field", "hint"),
    [row for role in ("extractor", "aggregator", "regularizers") for row in fields_of(role)],
    ids=lambda part: part if isinstance(part, str) else "",
)
def test_every_field_of_every_part_changes_something(
    role: str, kind: str, field: str, hint: Any, planted: Dataset
) -> None:
    if f"{kind}.{field}" in PART_ALONE:
        return
    part = {"kind": kind, **PART_COMPANY.get(f"{kind}.{field}", {})}
    if kind == "target":
        part["serving"] = "max"
    base: dict[str, Any] = {"extractor": {"kind": "prototypes"}} if kind == "intent" else {}

    def run(values: dict[str, Any]) -> dict[str, torch.Tensor]:
        over = merge(base, {role: [values] if role == "regularizers" else values})
        torch.manual_seed(0)
        return fingerprint(build_model("composed", merge(TINY["composed"], over), planted.spec()), planted)

    table = ROLES[role]
    default = getattr(from_dict(table[kind][0], {k: v for k, v in part.items() if k != "kind"}), field)
    before = run(part)
    for value in others(hint, default):
        if (kind, field, value) == ("routing", "logits", "zero"):
            continue  # refused with one map for all
        assert differ(before, run({**part, field: value})), f"{kind}: {field} = {value} changes nothing"
