"""The base policy that another env of the run is made of: what the latent env puts around it is put around it again."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from dsrl_torchrl.cli.steps.stage2 import run_policy
from dsrl_torchrl.latent_env.base_chunk import ResidualPolicy
from dsrl_torchrl.policies import FlowPolicy, IdentityPolicy


@pytest.mark.parametrize(
    "around",
    [
        lambda base: base,
        lambda base: IdentityPolicy(base, 4),
        lambda base: ResidualPolicy(base, 4, 0.1),
    ],
)
def test_it_is_the_policy_of_the_run(around):
    base = FlowPolicy(2, 2, pred_horizon=4).freeze()
    agent = SimpleNamespace(decoder=SimpleNamespace(base_policy=around(base)))
    assert run_policy(agent) is base
