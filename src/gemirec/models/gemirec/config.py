"""Configuration of GemiRec (arXiv 2510.14626). Every value that the paper does not give says so."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from gemirec.components.decoder import DecoderConfig, Positions
from gemirec.components.losses import MultiInterestLossConfig
from gemirec.components.quantizer import QuantizerConfig
from gemirec.config import Config
from gemirec.models.common import Count, PositiveFloat, Probability, TableModelConfig

CountOrZero = Annotated[int, Meta(ge=0)]
Weight = Annotated[float, Meta(ge=0)]
Share = Annotated[float, Meta(gt=0, le=1)]


class TowerConfig(Config, frozen=True, kw_only=True):
    """The user tower: history and profile to one vector. Its shape is not published: all is inferred."""

    kind: Literal["mean", "causal"] = "mean"
    """``mean``: the history's mean and the profile through a two-layer network, as in a two-tower model. ``causal``:
    SASRec's encoder over the history, the profile added to its input."""
    hidden: Count = 128
    """Hidden width of ``kind: mean``."""
    layers: Count = 2
    """Blocks of ``kind: causal``."""
    heads: Count = 1
    """Attention heads of ``kind: causal``; must divide ``dim``."""
    dropout: Probability = 0.2
    """Probability of dropping a unit in ``kind: causal``."""
    pooled: Weight = 0.0
    """Start of the learned weight with which the L2-normalised mean of the history's item vectors is added to the
    tower's L2-normalised vector (ours): on short histories that mean is hard to beat. 0 leaves it out."""


class FusionConfig(Config, frozen=True, kw_only=True):
    """``z_fusion``: interest and user to one vector. The paper gives its input, ``concat(e, u)``, and no more."""

    kind: Literal["mlp", "residual"] = "mlp"
    """``mlp``: a two-layer network of the concatenation (inferred). ``residual`` (ours): the user's vector plus a gated
    interest, ``u + g (P e + network(e, u))``, the network starting at zero."""
    hidden: Count = 128
    """Hidden width of the network."""
    gate: PositiveFloat = 0.3
    """Start of the learned gate g of ``residual``."""
    attend: Weight = 0.0
    """Start of the learned weight with which ``residual`` adds the L2-normalised mean of the history's items, weighted
    by a softmax of their similarity to the interest (ours): what the user's one vector has mixed, the interest picks
    out again. 0 leaves it out."""
    sharpness: PositiveFloat = 5.0
    """Start of the learned factor on those cosine similarities. With ``attend``."""


class GemiRecConfig(TableModelConfig, frozen=True, kw_only=True):
    """Fields of GemiRec. The defaults follow the paper where it is known."""

    num_interests: Count = 5
    """K, interests of a user at serving (paper: 5)."""
    epsilon: CountOrZero = 3
    """Most interests of one user that share a code of one sub-dictionary (paper: 3); 0 for no limit."""
    limit_levels: Literal["all", "first"] = "all"
    """Sub-dictionaries under that limit: ``all`` (paper), or the first, coarsest one alone (ours)."""
    keep_user_vector: bool = False
    """Let the user's own vector, fused with no interest, be the first of the K (ours)."""
    cells: Literal["none", "own", "apart"] = "none"
    """Which items an interest stands for (ours; :mod:`gemirec.components.cells`). ``none``: all, whatever their
    code. ``own``: those of its own first-level code score ``cell_bonus`` more, and all items do for the user's own
    vector. ``apart``: the same, but that vector gives way in the cells of the others. Item vectors grow by one
    coordinate for each code of the first level."""
    cell_bonus: PositiveFloat = 1.0
    """What ``cells`` adds to the score; with normalised vectors 2 and more parts the catalogue strictly."""
    cell_prior: Weight = 0.0
    """Start of the learned weight a with which ``cells`` adds the log-probability of the interest to the score; the
    user's own vector has what the others leave. 0 leaves it out."""
    dictionary: Literal["learned", "categories"] = "learned"
    """``learned``: the residual quantiser of ``quantizer``. ``categories``: the items' preset categories as the only
    codes (the paper's variant -I)."""
    quantizer: QuantizerConfig = QuantizerConfig()
    """The interest dictionary (IDMM)."""
    generator: Literal["decoder", "history"] = "decoder"
    """Where a user's distribution over interests comes from: the ``decoder``, or how often each interest occurs in the
    ``history`` (the paper's variant -M)."""
    history_share: Probability = 0.0
    """Share of the history's own distribution over interests (that of ``generator: history``) in the one that users are
    served from; the decoder has the rest (ours). The decoder learns the next item's interest, and a user comes back to
    more of the old interests than to that one. Serving alone: training with it costs recall. With a flat head."""
    decoder: DecoderConfig = DecoderConfig()
    """The generator of future interests (MIPDM)."""
    beam: Count = 64
    """Prefixes kept per level in the search over a factorised head's interests (ours)."""
    generator_features: bool = True
    """Give the generator the user's features, where the data have any (without: the paper's variant -U)."""
    tower: TowerConfig = TowerConfig()
    """The user tower of the retriever (MIRM)."""
    tower_features: bool = True
    """Give the user tower the user's features, where the data have any."""
    feature_dim: Count = 16
    """Width of each user feature's embedding (inferred)."""
    fusion: FusionConfig = FusionConfig()
    """How interest and user become one vector."""
    item_categories: bool = False
    """Add a vector of the item's category to every item vector, where the data have categories (ours)."""
    placeholder: Literal["zero", "learned", "category"] = "learned"
    """What stands for the interest before there is a dictionary (not given by the paper): nothing, one learned vector,
    or a vector of the category: in training the target's, at serving that of the history's last item."""
    train_interests: Literal["label", "served"] = "label"
    """Interests that the retriever trains with. ``label``: the target's own, with interest negatives (paper).
    ``served`` (ours): those that the generator would serve, each candidate scored as ``loss.readout`` says, so that
    training and serving see the same."""
    positions: Positions = "last"
    """Train the retriever on the target of each window alone (inferred), or on the next item of ``all`` positions."""
    interest_positions: Share = 1.0
    """Share of the labelled positions, drawn anew at each step, that the interests' loss uses in the joint stage
    (ours): with K interests a position costs K times as much there as elsewhere."""
    hard_negatives: CountOrZero = 10
    """Interest negatives: the generator's most probable ones (number inferred). With ``train_interests: label``."""
    easy_negatives: CountOrZero = 10
    """Interest negatives: uniformly drawn ones (number inferred). With ``train_interests: label``."""
    dictionary_weight: Weight = 0.2
    """lambda_1, weight of the dictionary's loss (paper: 0.2)."""
    generator_weight: Weight = 1.0
    """lambda_2, weight of the generator's loss (paper: 1)."""
    retrieval_weight: Weight = 1.0
    """lambda_3, weight of the retriever's loss (paper: 1)."""
    user_weight: Weight = 0.0
    """Weight, in the joint stage, of the retrieval loss of the user's own vector (ours): it keeps that vector good."""
    refresh_every: CountOrZero = 1
    """Joint steps between two assignments of the items to interests. 1: each step's items are assigned with the
    dictionary of the step (inferred); 0: once, when the joint stage starts."""
    joint: bool = True
    """Train the dictionary together with the retriever in the last stage; otherwise it stays as the second stage left
    it (the paper's variant -J)."""
    retrieval_share: Weight = 0.5
    """Length of stage 1, the retriever alone, relative to the other stages (lengths are not published)."""
    dictionary_share: Weight = 0.1
    """Length of stage 2, the dictionary alone."""
    joint_share: PositiveFloat = 0.4
    """Length of stage 3, everything jointly."""
    loss: MultiInterestLossConfig = MultiInterestLossConfig(negatives="in_batch", log_q=False, readout="best")
    """The retrieval loss; in-batch negatives without correction, as the paper's formula has them."""
