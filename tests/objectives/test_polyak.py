"""Polyak averaging moves what TorchRL's moves, as far."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from torchrl.objectives import SoftUpdate

from dsrl_torchrl.objectives.polyak import PolyakAverage, PolyakUpdate

from .test_sac import make_loss


def test_two_steps_equal_torchrls_soft_update():
    loss = make_loss()
    twin = deepcopy(loss)
    before = loss.target_qvalue_network_params.data.clone()
    updaters = PolyakUpdate(loss, tau=0.25), SoftUpdate(twin, tau=0.25)
    for _ in range(2):
        for module, updater in zip((loss, twin), updaters, strict=True):
            module.qvalue_network_params.data.add_(1.0)
            updater.step()
    moved, expected = loss.target_qvalue_network_params, twin.target_qvalue_network_params
    assert (moved == expected).all() and not (moved == before).all()
    assert not any(value.requires_grad for value in moved.values(True, True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_average_is_its_closed_form_in_16_bits_too(dtype):
    """``w + (1 - τ)^n (w0 - w)`` after n steps towards a fixed w; up to one rounding."""
    torch.manual_seed(0)
    start, goal = torch.rand(100) + 1, torch.rand(100) + 1
    target, source = start.to(dtype), goal.to(dtype)
    expected = source.float() + 0.995**300 * (target.float() - source.float())
    average = PolyakAverage([target], [source], 0.005)
    for _ in range(300):
        average.step()
    torch.testing.assert_close(target.float(), expected, rtol=torch.finfo(dtype).eps + 1e-5, atol=1e-5)


def test_without_it_bfloat16_does_not_move():
    """What the average is for: the next number above 1 is 1.0078, and a step towards 1.5 is 0.0025."""
    target, source = torch.ones(1, dtype=torch.bfloat16), torch.full((1,), 1.5, dtype=torch.bfloat16)
    rounded = target.clone()
    average = PolyakAverage([target], [source], 0.005)
    for _ in range(1_000):
        rounded.lerp_(source, 0.005)
        average.step()
    assert rounded == 1 and abs(target - 1.5) < 0.01


def test_a_target_that_was_loaded_is_where_the_average_goes_on():
    target, source = torch.ones(1, dtype=torch.bfloat16), torch.full((1,), 1.5, dtype=torch.bfloat16)
    average = PolyakAverage([target], [source], 0.005)
    average.step()
    target.fill_(8.0)
    average.step()
    assert target > 7.9
    for _ in range(1_000):
        average.step()
    assert abs(target - 1.5 - 6.5 * 0.995**1001) < 0.02


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_loss_in_any_dtype_moves_its_targets(dtype):
    loss = make_loss().to(dtype)
    updater = PolyakUpdate(loss, tau=0.005)
    before, towards = (
        {key: value.detach().double().clone() for key, value in params.items(True, True)}
        for params in (loss.target_qvalue_network_params, loss.qvalue_network_params)
    )
    for _ in range(100):
        updater.step()
    for key, value in loss.target_qvalue_network_params.items(True, True):
        expected = towards[key] + 0.995**100 * (before[key] - towards[key])
        torch.testing.assert_close(value.double(), expected, rtol=2 * torch.finfo(dtype).eps, atol=1e-5)
