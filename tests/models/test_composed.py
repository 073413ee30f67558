"""The composed model: it is the models it composes, its parts' fields act, and what cannot be is refused."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import gemirec
from gemirec.components.adaptive import AdaptiveConfig
from gemirec.components.aggregators import AGGREGATORS
from gemirec.components.extractors import EXTRACTORS
from gemirec.components.penalties import PENALTIES
from gemirec.components.regularizers import cosine_penalty
from gemirec.components.routed import RoutingConfig
from gemirec.config import from_dict, merge, to_dict
from gemirec.data.dataset import Dataset, DataSpec
from gemirec.errors import ConfigError
from gemirec.models.base import RetrievalModel
from gemirec.models.catalog import build_model, load_profile
from gemirec.models.composed import Composed, ComposedConfig
from support_models import held_out, loss_of, shake, train_batch

SMALL: dict[str, Any] = {"dim": 8, "max_length": 6, "num_interests": 3, "loss": {"num_negatives": 20}}
PROFILES = Path(gemirec.__file__).parent / "profiles"
PRESETS = sorted(path.name.split(".")[1] for path in PROFILES.glob("composed.*.yaml"))


@pytest.fixture(scope="module")
def spec(planted: Dataset) -> DataSpec:
    return planted.spec()


def build(spec: DataSpec, name: str = "composed", **over: Any) -> RetrievalModel:
    torch.manual_seed(0)
    return build_model(name, merge(SMALL, over), spec)


SAME: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, str]]] = {
    "comirec_sa": ({"extractor": {"kind": "attention"}}, {}, {"extractor.attention.": "attention."}),
    "comirec_dr": (
        {"extractor": {"kind": "routing", "maps": "positions", "logits": "zero"}},
        {},
        {"extractor.votes.": "votes."},
    ),
    "mind": (
        {"extractor": {"kind": "routing"}, "adaptive_k": {"kind": "log"}},
        {"loss": {"readout": "hard"}},
        {"extractor.votes.": "votes.", "extractor.logit_KL": "logit_KL"},
    ),
    "remi": (
        {"extractor": {"kind": "attention"}, "regularizers": [{"kind": "covariance", "weight": 3.0}]},
        {"routing_weight": 3.0, "routing_reduce": "mean", "loss": {"beta": 0.0}},
        {"extractor.attention.": "attention."},
    ),
    "sine": (
        {
            "extractor": {"kind": "prototypes", "num_prototypes": 7, "gate": "aggregator"},
            "aggregator": {"kind": "intent", "residual": False},
        },
        {"num_prototypes": 7, "separation_weight": 0.0},
        {"extractor.sparse.": "prototypes.", "aggregator.fusion.": "fusion."},
    ),
}
"""Model, the composition that it is, its own settings, and the names of its parameters."""


@pytest.mark.parametrize("name", list(SAME))
@pytest.mark.parametrize("normalize", [False, True])
def test_a_composition_is_the_model_it_names(name: str, normalize: bool, planted: Dataset, spec: DataSpec) -> None:
    """Equal parameters give equal interests, masks, losses and gradients, up to rounding."""
    parts, own, names = SAME[name]
    composed = build(spec, **merge(parts, {"loss": {"normalize": normalize}}))
    model = build(spec, name, **merge(own, {"loss": {"normalize": normalize}}))
    shake(composed)

    def renamed(key: str) -> str:
        for prefix, other in names.items():
            if key.startswith(prefix):
                return other + key.removeprefix(prefix)
        return key

    state = {renamed(key): value for key, value in composed.state_dict().items()}
    state.pop("extractor.logit_KL", None)  # zero logits are no state of ComiRec-DR
    model.load_state_dict(state)
    histories = held_out(planted, 6)
    one, two = composed.eval().interests(histories), model.eval().interests(histories)
    torch.testing.assert_close(one.vector_BKD, two.vector_BKD)
    assert torch.equal(one.mask_BK, two.mask_BK)
    losses = [loss_of(each.train(), train_batch(planted, 6)) for each in (composed, model)]
    torch.testing.assert_close(losses[0], losses[1])
    for loss in losses:
        loss.backward()  # type: ignore[no-untyped-call]
    expected = dict(model.named_parameters())
    for key, parameter in composed.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[renamed(key)].grad)


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_builds_trains_and_round_trips(preset: str, planted: Dataset, spec: DataSpec) -> None:
    values = load_profile("composed", preset)["model"]
    config = from_dict(ComposedConfig, values)
    assert from_dict(ComposedConfig, to_dict(config)) == config
    model = build_model("composed", merge(values, {"dim": 8, "max_length": 6}), spec)
    assert isinstance(model, Composed)
    batch = train_batch(planted, 6)
    terms = model.losses(batch, "train")
    assert set(terms.terms) == {"retrieval", *(part["kind"] for part in values.get("regularizers", ()))}
    terms.total().backward()  # type: ignore[no-untyped-call]
    still = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert still == []
    served = model.eval().interests(held_out(planted, 6))
    assert served.vector_BKD.shape[1] == (1 if preset in {"sine", "concat"} else 4)
    assert served.mask_BK[:, 0].all()


def test_regularisers_read_the_interests_before_they_are_merged(planted: Dataset, spec: DataSpec) -> None:
    parts: dict[str, Any] = {"aggregator": {"kind": "concat"}, "regularizers": [{"kind": "cosine", "weight": 2.0}]}
    model = build(spec, **parts)
    assert isinstance(model, Composed)
    batch = train_batch(planted, 6)
    terms = model.losses(batch, "train")
    found, _ = model.extract(batch)
    torch.testing.assert_close(terms.terms["cosine"], cosine_penalty(found.interest_BKD))
    assert terms.weights["cosine"] == 2.0
    assert found.interest_BKD.shape[1] == 3


def test_calibrated_weights_are_in_the_served_vectors(planted: Dataset, spec: DataSpec) -> None:
    """Behind the normalisation, which would take them out again; plain search then ranks by ``pi_k h_k . v``."""
    model = build(spec, aggregator={"kind": "calibrated", "rescale": False}, loss={"normalize": True}).eval()
    shake(model)
    served = model.interests(held_out(planted, 6))
    assert served.weight_BK is not None
    torch.testing.assert_close(served.vector_BKD.norm(dim=2), served.weight_BK)
    torch.testing.assert_close(served.weight_BK.sum(1), torch.ones(len(served.weight_BK)))


@pytest.mark.parametrize("kind", ["log", "mass", "silhouette", "density"])
def test_adaptive_k_masks_and_zeroes(kind: str, planted: Dataset, spec: DataSpec) -> None:
    rule = {"kind": kind, "mass": 0.5, "radius": 0.9, "min_points": 3}
    for extractor in ("attention", "routing", "one_pass", "prototypes", "graph"):
        model = build(spec, extractor={"kind": extractor}, adaptive_k=rule).eval()
        shake(model)
        served = model.interests(held_out(planted, 6))
        assert (served.mask_BK.sum(1) >= 1).all()
        assert not served.mask_BK.all()
        assert (served.vector_BKD[~served.mask_BK] == 0).all()


def test_attribution_sums_to_one(planted: Dataset, spec: DataSpec) -> None:
    histories = held_out(planted, 6)
    model = build(spec, extractor={"kind": "routing"}).eval()
    assert isinstance(model, Composed)
    weight_BKL = model.attribution(histories)
    assert weight_BKL is not None
    torch.testing.assert_close(weight_BKL.sum(2), torch.ones(weight_BKL.shape[:2]))
    merged = build(spec, aggregator={"kind": "concat"})
    assert isinstance(merged, Composed)
    assert merged.attribution(histories) is None


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "a regulariser without weights to read": (
        {"extractor": {"kind": "transform"}, "regularizers": [{"kind": "covariance"}]},
        r"(?s)regularizer 'covariance' needs routing weights, extractor 'transform' has none.*fix: take extractor",
    ),
    "a regulariser without parameters to read": (
        {"extractor": {"kind": "routing"}, "regularizers": [{"kind": "elementwise"}]},
        r"(?s)'elementwise' needs parameters of each interest's own, extractor 'routing'.*fix: give the extractor maps",
    ),
    "an aggregator that needs the target": (
        {"aggregator": {"kind": "target"}},
        r"(?s)aggregator 'target'.*serving by nearest neighbours does not know.*fix: set aggregator.serving: max",
    ),
    "an aggregator that needs prototypes": (
        {"aggregator": {"kind": "intent"}},
        r"(?s)aggregator 'intent'.*extractor 'attention' has none.*fix: take extractor prototypes",
    ),
    "a rule that needs weights": (
        {"extractor": {"kind": "transform"}, "adaptive_k": {"kind": "mass"}},
        r"(?s)adaptive_k 'mass' needs routing weights, extractor 'transform' has none.*fix: choose adaptive_k log",
    ),
    "a gate that nothing reads": (
        {"extractor": {"kind": "prototypes", "gate": "aggregator"}},
        r"(?s)extractor 'prototypes' with gate 'aggregator'.*fix: set extractor.gate: assignment",
    ),
    "fewer prototypes than interests": (
        {"extractor": {"kind": "prototypes", "num_prototypes": 2}},
        r"(?s)fewer prototypes than the model has interests.*got: num_prototypes 2, num_interests 3",
    ),
    "a regulariser twice": ({"regularizers": [{"kind": "cosine"}, {"kind": "cosine"}]}, "stands twice"),
    "an unknown regulariser": ({"regularizers": [{"kind": "cosin"}]}, "did you mean 'cosine'"),
    "an unknown field": (
        {"aggregator": {"kind": "pool", "pol": "max"}},
        r"(?s)unknown key in aggregator 'pool'.*'pool'",
    ),
    "a part without a kind": ({"extractor": {"rounds": 2}}, "the extractor has no kind"),
}


@pytest.mark.parametrize("case", list(REFUSED))
def test_what_does_not_fit_is_refused_at_construction(case: str, spec: DataSpec) -> None:
    over, message = REFUSED[case]
    with pytest.raises(ConfigError, match=message):
        build(spec, **over)


def test_target_attention_trains_by_the_target_and_serves_all_interests(planted: Dataset, spec: DataSpec) -> None:
    model = build(spec, aggregator={"kind": "target", "serving": "max"})
    assert isinstance(model, Composed)
    loss_of(model, train_batch(planted, 6)).backward()  # type: ignore[no-untyped-call]
    gradient = model.aggregator.get_parameter("key.weight").grad
    assert gradient is not None
    assert (gradient != 0).any()
    assert model.eval().interests(held_out(planted, 6)).vector_BKD.shape[1] == 3


PAGE = Path(__file__).parents[2] / "docs" / "framework.md"


def test_the_page_has_every_kind_field_and_preset() -> None:
    """A row for each kind, with its fields and their defaults."""
    text = PAGE.read_text()
    for table in (EXTRACTORS, AGGREGATORS, PENALTIES):
        for kind, (config, _) in table.items():
            rows = [row for row in text.splitlines() if row.startswith(f"| `{kind}` |")]
            assert rows, kind
            own = set(config.__struct_fields__) - {"weight"}
            if kind == "graph":
                own -= set(RoutingConfig.__struct_fields__) - {"maps"}
            for field in own:
                default = getattr(config(), field)
                shown = yaml.safe_dump(default).split("\n")[0] if not isinstance(default, float) else f"{default:g}"
                assert any(f"`{field}` ({shown}" in row for row in rows), f"{kind}: {field} ({shown})"
    for field in set(AdaptiveConfig.__struct_fields__) - {"kind"}:
        assert f"`{field}` ({getattr(AdaptiveConfig(), field):g})" in text
    section = text.partition("## Presets")[2].partition("\n## ")[0]
    assert set(re.findall(r"^\| `(\w+)` \|", section, flags=re.MULTILINE)) == set(PRESETS)


def test_the_page_s_file_trains(planted: Dataset, spec: DataSpec) -> None:
    (block,) = re.findall(r"```yaml\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    model = build_model("composed", merge(yaml.safe_load(block)["model"], {"dim": 8, "max_length": 6}), spec)
    assert set(model.losses(train_batch(planted, 6), "train").terms) == {"retrieval", "orthogonality", "covariance"}


def test_the_page_s_error_is_the_one_that_comes(spec: DataSpec) -> None:
    (block,) = re.findall(r"```text\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    with pytest.raises(ConfigError) as error:
        build(spec, extractor={"kind": "transform"}, regularizers=[{"kind": "covariance"}])
    assert str(error.value) == block.strip()


def test_an_extractor_of_one_s_own(planted: Dataset, spec: DataSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    """The page's, as it is written there."""
    (block,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    monkeypatch.setattr("gemirec.components.extractors.EXTRACTORS", dict(EXTRACTORS))
    exec(compile(block, str(PAGE), "exec"), {"__name__": "page"})
    model = build(spec, extractor={"kind": "last_items"}).eval()
    histories = held_out(planted, 6)
    served = model.interests(histories)
    last_B = histories.item_BL.gather(1, histories.length_B[:, None] - 1)[:, 0]
    torch.testing.assert_close(served.vector_BKD[:, 0], model.item_vectors(last_B))
