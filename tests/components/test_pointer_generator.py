"""The pointer-generator against plain NumPy, one row at a time."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gemirec.components.pointer_generator import PointerGenerator


@pytest.fixture
def network() -> PointerGenerator:
    torch.manual_seed(0)
    network = PointerGenerator(6, torch.tensor([False, True, True, True, False])).double()
    for parameter in network.parameters():
        parameter.data.normal_()
    return network


def test_mixture_of_copying_and_generating(network: PointerGenerator) -> None:
    rng = np.random.default_rng(0)
    state, key = rng.normal(size=(4, 6)), rng.normal(size=(4, 5, 6))
    classes, length = rng.integers(1, 4, (4, 5)), np.array([5, 3, 1, 0])
    mask = np.arange(5) < length[:, None]
    found = network(*(torch.from_numpy(a) for a in (state, key, classes, mask))).numpy(force=True)
    weight, generator, bias = (
        p.numpy(force=True) for p in (network.pointer.weight, network.generator.weight, network.generator.bias)
    )
    for b, n in enumerate(length):
        logit = (generator @ state[b] + bias)[1:4]
        chance = np.zeros(5)
        chance[1:4] = np.exp(logit) / np.exp(logit).sum()
        if n:
            place = np.exp(key[b, :n] @ weight @ state[b] / np.sqrt(6))
            place /= place.sum()
            both = np.concatenate([state[b], place @ key[b, :n]])
            gate = 1 / (1 + np.exp(-(network.gate.weight.numpy(force=True)[0] @ both + network.gate.bias.item())))
            chance *= gate
            for where in range(n):
                chance[classes[b, where]] += (1 - gate) * place[where]
        np.testing.assert_allclose(found[b], chance, rtol=1e-5, atol=1e-9)
    np.testing.assert_allclose(found.sum(1), 1, rtol=1e-6)


def test_a_class_without_items_is_copied_but_never_generated(network: PointerGenerator) -> None:
    state_BD, key_BLD = torch.zeros(1, 6).double(), torch.zeros(1, 2, 6).double()
    mask_BL = torch.tensor([[True, True]])
    chance_M = network(state_BD, key_BLD, torch.tensor([[4, 1]]), mask_BL)[0]
    assert chance_M[0] == 0
    assert chance_M[4] > 0
