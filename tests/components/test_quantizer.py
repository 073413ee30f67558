"""The interest dictionary against plain NumPy: the residual chain, its gradients, its first codes, its dead codes."""

from __future__ import annotations

import copy
from typing import Any, Literal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gemirec.components.codes import health
from gemirec.components.kmeans import nearest
from gemirec.components.quantizer import QuantizerConfig, ResidualQuantizer
from gemirec.config import from_dict, to_dict
from gemirec.errors import ConfigError, DataError

D, W, N = 6, 4, 40
SIZES = (5, 3, 2)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def vectors(number: int = N, dim: int = D, seed: int = 0) -> Tensor:
    return torch.randn(number, dim, generator=generator(seed))


def build(vector_ND: Tensor | None = None, **fields: Any) -> ResidualQuantizer:
    """A quantiser whose codes lie among the latent vectors of ``vector_ND``."""
    torch.manual_seed(0)
    config = from_dict(QuantizerConfig, {"sizes": SIZES, "code_dim": W, "hidden": 7} | fields)
    module = ResidualQuantizer(config, D)
    module.initialise(vectors() if vector_ND is None else vector_ND, generator=generator())
    return module


def numpy_mlp(module: Any, x: Any) -> Any:
    w1, b1, w2, b2 = (p.detach().numpy().astype(np.float64) for p in module.parameters())
    return np.maximum(x @ w1.T + b1, 0) @ w2.T + b2


def numpy_chain(module: ResidualQuantizer, latent: Any) -> tuple[Any, Any, Any]:
    """Row by row and level by level: codes ``[N, C]``, chosen codes and residuals ``[N, C, W]``."""
    books = [book.detach().numpy().astype(np.float64) for book in module.codebooks]
    codes, chosen, residuals = [], [], []
    for row in latent:
        r, code, vector, residual = row, [], [], []
        for book in books:
            m = int(((r - book) ** 2).sum(1).argmin())
            residual.append(r)
            code.append(m)
            vector.append(book[m])
            r = r - book[m]
        codes.append(code)
        chosen.append(vector)
        residuals.append(residual)
    return np.array(codes), np.array(chosen), np.array(residuals)


@pytest.mark.parametrize("encoder", ["mlp", "identity"])
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("straight_through", [False, True])
def test_forward_equals_numpy(encoder: Literal["mlp", "identity"], normalize: bool, straight_through: bool) -> None:
    width = D if encoder == "identity" else W
    module = build(encoder=encoder, normalize=normalize, straight_through=straight_through, code_dim=width)
    vector_ND = vectors(seed=1)
    x = vector_ND.numpy().astype(np.float64)
    if normalize:
        x = x / np.linalg.norm(x, axis=1, keepdims=True)
    latent = x if encoder == "identity" else numpy_mlp(module.encoder, x)
    code, chosen, residual = numpy_chain(module, latent)
    got = module(vector_ND)
    np.testing.assert_array_equal(got.code_BC.numpy(), code)
    np.testing.assert_allclose(got.embedding_BE.detach().numpy(), chosen.reshape(N, -1), atol=1e-6)
    np.testing.assert_allclose(got.residual_BCW.numpy(), residual, atol=1e-5)
    decoded = chosen.sum(1) if encoder == "identity" else numpy_mlp(module.decoder, chosen.reshape(N, -1))
    gap = ((residual - chosen) ** 2).sum((1, 2))
    want = [((x - decoded) ** 2).sum(1), gap, gap]
    for name, value in zip(("reconstruction_B", "codebook_B", "commitment_B"), want, strict=True):
        np.testing.assert_allclose(getattr(got, name).detach().numpy(), value, rtol=1e-4, atol=1e-5, err_msg=name)
    weight = np.random.default_rng(0).uniform(0.5, 2, N)
    total = want[0] + want[1] + module.config.beta * want[2]
    assert module.loss(got).item() == pytest.approx(total.mean(), rel=1e-5)
    assert module.loss(got, torch.from_numpy(weight)).item() == pytest.approx(np.average(total, weights=weight), 1e-5)
    assert torch.equal(module.assign(vector_ND), got.code_BC)
    assert torch.equal(module.embed(got.code_BC), got.embedding_BE)


@pytest.mark.parametrize("straight_through", [False, True])
def test_code_gradients_equal_the_formula(straight_through: bool) -> None:
    """Identity encoder: ``2 (e - r)`` from the codebook term; ``2 (sum e - v)`` more where the decoder reads codes."""
    module = build(encoder="identity", code_dim=D, straight_through=straight_through)
    x = vectors(seed=1)
    module.loss(module(x)).backward()  # type: ignore[no-untyped-call]
    code, chosen, residual = numpy_chain(module, x.numpy().astype(np.float64))
    for level, book in enumerate(module.codebooks):
        row_gradient = 2 * (chosen - residual)[:, level] / N
        if not straight_through:
            row_gradient = row_gradient + 2 * (chosen.sum(1) - x.numpy()) / N
        want = np.zeros(book.shape)
        np.add.at(want, code[:, level], row_gradient)
        assert book.grad is not None
        np.testing.assert_allclose(book.grad.numpy(), want, atol=1e-5)


@pytest.mark.parametrize("straight_through", [False, True])
@pytest.mark.parametrize("beta", [0.0, 0.25])
def test_encoder_gradients_equal_the_formula(straight_through: bool, beta: float) -> None:
    """The gradient of ``r_1`` is seen at the encoder's last bias: ``2 beta sum_c (r_c - e_c)`` from the commitment
    (``r_c`` is ``r_1`` minus constants), and straight through the decoder's gradient of every level."""
    module = build(straight_through=straight_through, beta=beta)
    x = vectors(seed=1)
    module.loss(module(x)).backward()  # type: ignore[no-untyped-call]
    _, chosen, residual = numpy_chain(module, numpy_mlp(module.encoder, x.numpy().astype(np.float64)))
    gradient = 2 * beta * (residual - chosen).sum(1)
    z = chosen.reshape(N, -1)
    w1, b1, w2, _ = (p.detach().numpy().astype(np.float64) for p in module.decoder.parameters())
    through = ((2 * (numpy_mlp(module.decoder, z) - x.numpy())) @ w2 * (z @ w1.T + b1 > 0)) @ w1
    if straight_through:
        gradient = gradient + through.reshape(N, len(SIZES), W).sum(1)
    bias = list(module.encoder.parameters())[-1]
    got = np.zeros(W) if bias.grad is None else bias.grad.numpy()
    np.testing.assert_allclose(got, gradient.mean(0), rtol=1e-4, atol=1e-5)


def test_no_gradient_reaches_the_item_table() -> None:
    table = vectors().requires_grad_()
    module = build()
    quantized = module(table)
    total = module.loss(quantized) + quantized.embedding_BE.sum()
    total.backward()
    assert table.grad is None


def test_the_embeddings_gradient_goes_to_the_chosen_codes_alone() -> None:
    module = build()
    code_XC = torch.tensor([[[0, 1, 1], [4, 1, 0]], [[0, 2, 1], [0, 1, 1]]])
    embedding = module.embed(code_XC)
    assert embedding.shape == (2, 2, module.width)
    for level, book in enumerate(module.codebooks):
        assert torch.equal(embedding[..., level * W : (level + 1) * W], book[code_XC[..., level]])
    embedding.sum().backward()  # type: ignore[no-untyped-call]
    for level, book in enumerate(module.codebooks):
        count = torch.bincount(code_XC[..., level].flatten(), minlength=len(book)).float()
        assert torch.equal(book.grad, count[:, None].expand(-1, W))
    assert all(parameter.grad is None for parameter in module.encoder.parameters())


def test_equal_codes_tie_to_the_lowest() -> None:
    module = build()
    with torch.no_grad():
        for book in module.codebooks:
            book.copy_(book[:1].expand_as(book).clone())
    assert (module.assign(vectors()) == 0).all()
    assert (module(vectors()).code_BC == 0).all()


@settings(max_examples=25)
@given(seed=st.integers(0, 999), chunk=st.integers(1, 50))
def test_codes_do_not_depend_on_the_chunk(seed: int, chunk: int) -> None:
    module = build(encoder="identity", code_dim=D)
    vector_ND = vectors(seed=seed)
    assert torch.equal(module.assign(vector_ND, chunk), module.assign(vector_ND))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_changes_nothing(dtype: torch.dtype) -> None:
    module = build()
    plain = module(vectors(seed=1))
    with torch.autocast("cpu", dtype=dtype):
        cast, codes = module(vectors(seed=1)), module.assign(vectors(seed=1))
    assert all(torch.equal(a, b) for a, b in zip(plain, cast, strict=True))
    assert torch.equal(codes, plain.code_BC)


def test_it_compiles_as_one_graph() -> None:
    module = build()
    compiled = torch.compile(module, backend="eager", fullgraph=True)
    assert all(torch.equal(a, b) for a, b in zip(compiled(vectors()), module(vectors()), strict=True))


@pytest.mark.parametrize("sizes", [(1,), (4,), (1, 1), (3, 1, 2)])
def test_small_dictionaries_and_an_empty_batch(sizes: tuple[int, ...]) -> None:
    module = build(sizes=sizes)
    quantized = module(vectors())
    assert torch.isfinite(module.loss(quantized))
    assert (quantized.code_BC < torch.tensor(sizes)).all()
    if sizes == (1,):  # one code: the mean
        torch.testing.assert_close(module.codebooks[0][0], module.encode(vectors()).mean(0))
    empty = module(vectors(0))
    assert empty.code_BC.shape == module.assign(vectors(0)).shape == (0, len(sizes))
    loss = module.loss(empty)
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss.item() == 0


def test_kmeans_starts_each_level_from_the_residuals_of_the_last() -> None:
    """Converged: every code is the mean of the residuals that choose it."""
    module = build(kmeans_iterations=100)
    residual = module.encode(vectors()).detach()
    for book in module.codebooks:
        code, _ = nearest(residual, book)
        for m in range(len(book)):
            torch.testing.assert_close(book[m].detach(), residual[code == m].mean(0), rtol=1e-4, atol=1e-6)
        residual = residual - book.detach()[code]


def test_kmeans_uses_far_more_of_the_dictionary_than_random_codes() -> None:
    """METHODS 1.3: utilisation 93.3 % against 21.6 %; small item vectors and the encoder's bias make random worse."""
    vector_ND, used = 0.1 * vectors(2000), {}
    for init in ("kmeans", "random"):
        module = build(vector_ND, init=init, sizes=(32, 16, 8, 4), code_dim=16, hidden=64)
        used[init] = health(module.assign(vector_ND), module.codebooks, module.sizes)["utilisation"]
    assert used["kmeans"] > 0.9
    assert used["random"] < 0.5


def test_kmeans_sees_at_most_the_sample() -> None:
    vector_ND = torch.cat([vectors(10), torch.full((2000, D), 1e6)])
    module = build(vector_ND, encoder="identity", code_dim=D, sizes=(4,), kmeans_sample=8)
    torch.testing.assert_close(module.codebooks[0].detach(), torch.full((4, D), 1e6))  # all eight come from the crowd


@pytest.mark.parametrize("categories", [2, 5, 9])
def test_category_codes_are_the_means_of_the_most_frequent_categories(categories: int) -> None:
    vector_ND = vectors()
    category_N = torch.randint(0, categories + 1, (N,), generator=generator(2), dtype=torch.int32)
    torch.manual_seed(0)
    module = ResidualQuantizer(QuantizerConfig(sizes=SIZES, code_dim=W, init="category"), D)
    module.initialise(vector_ND, category_N, generator())
    latent, category = module.encode(vector_ND).detach().numpy(), category_N.numpy()
    order = sorted(range(1, categories + 1), key=lambda k: (-(category == k).sum(), k))[: SIZES[0]]
    want = np.array([latent[category == k].mean(0) for k in order])
    first = module.codebooks[0].detach().numpy()
    np.testing.assert_allclose(first[: len(want)], want, rtol=1e-5, atol=1e-6)
    assert len(np.unique(first, axis=0)) == SIZES[0]  # what the categories leave open is filled
    assert health(module.assign(vector_ND), module.codebooks, SIZES)["utilisation"] == 1


def test_initialisation_is_deterministic_and_random_leaves_the_codes() -> None:
    assert all(torch.equal(a, b) for a, b in zip(build().codebooks, build().codebooks, strict=True))
    torch.manual_seed(0)
    untouched = ResidualQuantizer(QuantizerConfig(sizes=SIZES, code_dim=W, hidden=7, init="random"), D)
    drawn = build(vectors(2), init="random")  # fewer items than codes do not matter
    for size, a, b in zip(SIZES, untouched.codebooks, drawn.codebooks, strict=True):
        assert torch.equal(a, b)
        assert a.abs().max() <= 1 / size


def test_initialisation_names_what_is_missing() -> None:
    with pytest.raises(ConfigError, match=r"quantizer\.init=kmeans"):
        build(init="category")
    with pytest.raises(ConfigError, match=r"level 2 has 9 codes; 8 items[\s\S]*quantizer\.sizes to at most 8"):
        build(vectors(8), sizes=(4, 9))
    with pytest.raises(ConfigError, match=r"kmeans_sample 4[\s\S]*quantizer\.kmeans_sample"):
        build(kmeans_sample=4)
    with pytest.raises(DataError, match="1 of 40 vectors"):
        build(vectors().index_fill(0, torch.tensor([3]), torch.nan))
    module = ResidualQuantizer(QuantizerConfig(sizes=SIZES, code_dim=W, init="category"), D)
    with pytest.raises(DataError, match="39 categories, 40 vectors"):
        module.initialise(vectors(), torch.ones(N - 1, dtype=torch.int64))


def test_config() -> None:
    config = QuantizerConfig(sizes=(8, 4), init="category")
    assert from_dict(QuantizerConfig, to_dict(config)) == config
    refused: list[dict[str, Any]] = [{"sizes": []}, {"sizes": [4, 0]}, {"code_dim": 0}, {"beta": -1.0}, {"init": "pca"}]
    for bad in refused:
        with pytest.raises(ConfigError):
            from_dict(QuantizerConfig, bad)
    assert ResidualQuantizer(QuantizerConfig(sizes=(3, 2), encoder="identity"), D).width == 2 * D
    with pytest.raises(ConfigError, match="a level or more"):
        ResidualQuantizer(QuantizerConfig(sizes=()), D)


@settings(max_examples=25)
@given(seed=st.integers(0, 999), steps=st.integers(1, 6), batch=st.integers(0, 4))
def test_idle_steps_are_counted_as_numpy_counts(seed: int, steps: int, batch: int) -> None:
    module, rng = build(), np.random.default_rng(seed)
    want = [np.zeros(size, dtype=np.int64) for size in SIZES]
    for _ in range(steps):
        code = np.stack([rng.integers(0, size, batch) for size in SIZES], axis=1)
        module.count_use(torch.from_numpy(code))
        for level, idle in enumerate(want):
            idle += 1
            idle[code[:, level]] = 0
    assert module.idle_M.tolist() == np.concatenate(want).tolist()


def test_dead_codes_move_to_distinct_residuals_of_their_level_and_others_stay() -> None:
    module = build(dead_after=3)
    used = torch.tensor([[0, 0, 0], [1, 1, 0]])
    before = [book.detach().clone() for book in module.codebooks]
    residual_BCW = module(vectors(seed=4)).residual_BCW
    for _ in range(2):
        module.count_use(used)
        assert module.revive(residual_BCW, generator()) == 0
    module.count_use(used)
    assert module.revive(residual_BCW, generator()) == 3 + 1 + 1
    for level, dead in enumerate([[2, 3, 4], [2], [1]]):
        alive = [m for m in range(SIZES[level]) if m not in dead]
        book = module.codebooks[level].detach()
        assert torch.equal(book[alive], before[level][alive])
        rows = [(residual_BCW[:, level] == book[m]).all(1).nonzero()[0, 0].item() for m in dead]
        assert len(set(rows)) == len(dead)
    assert module.idle_M.tolist() == [0] * sum(SIZES)
    assert module.revive(residual_BCW, generator()) == 0


def test_codes_wait_where_the_batch_has_too_few_distinct_residuals() -> None:
    module = build(dead_after=1, sizes=(5,))
    module.count_use(torch.tensor([[0]]))
    residual_BCW = torch.ones(9, 1, W)  # one distinct residual, nine times
    assert [module.revive(residual_BCW, generator()) for _ in range(2)] == [1, 1]
    off = build(dead_after=0)
    for _ in range(9):
        off.count_use(torch.zeros(1, 3, dtype=torch.int64))
    assert off.revive(off(vectors()).residual_BCW) == 0


def clustered(seed: int) -> Tensor:
    """Sixteen vectors, each near one of eight fixed points."""
    centre = vectors(8, seed=99)[torch.randint(8, (16,), generator=generator(seed))]
    return centre + 0.1 * vectors(16, seed=seed)


def train(module: ResidualQuantizer, optimizer: torch.optim.Optimizer, steps: range) -> list[float]:
    losses = []
    for step in steps:
        quantized = module(clustered(step % 8))
        loss = module.loss(quantized)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        module.count_use(quantized.code_BC)
        module.revive(quantized.residual_BCW, generator(step))
        losses.append(loss.item())
    return losses


def test_a_resumed_training_is_the_same_bit_for_bit_with_dead_codes_moved() -> None:
    def fresh() -> tuple[ResidualQuantizer, torch.optim.Optimizer]:
        module = build(init="random", dead_after=4, sizes=(12, 6))
        return module, torch.optim.Adam(module.parameters(), lr=0.01)

    module, optimizer = fresh()
    train(module, optimizer, range(10))
    saved = {name: value.clone() for name, value in module.state_dict().items()}
    state = copy.deepcopy(optimizer.state_dict())
    resumed, other = fresh()
    resumed.load_state_dict(saved)
    other.load_state_dict(state)
    assert train(module, optimizer, range(10, 30)) == train(resumed, other, range(10, 30))
    for name, value in module.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    assert module.idle_M.any()


def test_training_lowers_the_loss_and_reviving_raises_the_use() -> None:
    used = {}
    for dead_after in (0, 8):
        module = build(init="random", dead_after=dead_after, sizes=(16, 8))
        losses = train(module, torch.optim.Adam(module.parameters(), lr=0.01), range(200))
        assert np.mean(losses[-8:]) < 0.5 * np.mean(losses[:8])
        codes = torch.cat([module.assign(clustered(s)) for s in range(8)])
        used[dead_after] = health(codes, module.codebooks, module.sizes)["utilisation"]
    assert used[8] > used[0] + 0.1
