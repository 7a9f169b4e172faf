"""The floor counts the products that it should, and no other."""

from __future__ import annotations

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.floor import Floor, backward, forward, na_products, sac_products
from benchmarks.setting import Setting

TINY = Setting(
    observation=3, action=1, horizon=2, width=4, depth=1, num_critics=2, layer_norm=False, fourier_bands=(),
    batch_size=5, base_width=6, base_depth=1, sampler_steps=2,
)  # fmt: skip


def flops(products):
    return sum(product.flops for product in products)


def test_flops_of_sac_by_hand():
    # Actor 3 -> 4 -> 2 * 2 noise dimensions, critics 3 + 2 -> 4 -> 1; 2 operations per multiply-add, 5 rows.
    actor = 2 * 5 * (3 * 4 + 4 * 4)
    critics = 2 * 2 * 5 * (5 * 4 + 4 * 1)
    first_actor, first_critic = 2 * 5 * 3 * 4, 2 * 2 * 5 * 5 * 4
    critic_step = critics + critics + (critics - first_critic)  # forward, weights, inputs but the first
    actor_step = actor + critics + critics + actor + (actor - first_actor)
    assert flops(sac_products(TINY)) == (actor + critics) + critic_step + actor_step


def test_flops_of_na_by_hand():
    decode = 2 * (2 * 5 * ((3 + 2 + 32) * 6 + 6 * 2))  # two sampler steps of observation, noise and time -> 6 -> noise
    critics = 2 * 2 * 5 * (5 * 4 + 4 * 1)
    step = 3 * critics - 2 * 2 * 5 * 5 * 4
    # Q^A's step, with its target as SAC has one; then the distillation's: a value and a step of its own.
    assert flops(na_products(TINY)) == flops(sac_products(TINY)) + 2 * decode + critics + step


def test_products_are_those_that_autograd_makes():
    sizes, rows = [3, 4, 2], 5
    network = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
    with FlopCounterMode(display=False) as counter:
        network(torch.randn(rows, 3)).sum().backward()
    assert flops([*forward(sizes, rows), *backward(sizes, rows)]) == counter.get_total_flops()
    x = torch.randn(rows, 3, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        network.requires_grad_(False)(x).sum().backward()
    assert flops([*forward(sizes, rows), *backward(sizes, rows, weights=False, inputs=True)]) == (
        counter.get_total_flops()
    )


def test_it_runs():
    floor = Floor(na_products(TINY))
    floor.run(2)
    assert floor.flops == flops(na_products(TINY))
