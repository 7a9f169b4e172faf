"""Small policies of every kind, with scales that are not the identity."""

from __future__ import annotations

import pytest
import torch

from dsrl_torchrl.policies import DiffusionPolicy, FlowPolicy, ShortcutPolicy

POLICIES = {"flow": FlowPolicy, "diffusion": DiffusionPolicy, "shortcut": ShortcutPolicy}
NETWORKS = {"mlp": {"kind": "mlp", "width": 32, "depth": 2}, "unet": {"kind": "unet", "channels": (8, 16)}}
OBSERVATION_DIM, ACTION_DIM, PRED_HORIZON = 6, 3, 5


def make_policy(policy_type: str, network: str = "mlp", **kwargs):
    torch.manual_seed(0)
    policy = POLICIES[policy_type](
        OBSERVATION_DIM, ACTION_DIM, PRED_HORIZON, obs_horizon=2, network=NETWORKS[network], **kwargs
    )
    observations = 3 + 2 * torch.randn(200, OBSERVATION_DIM)
    actions = torch.tensor([0.5, 2.0, 4.0]) * (2 * torch.rand(200, PRED_HORIZON, ACTION_DIM) - 1) + 1
    return policy.fit_scales(observations, actions)


@pytest.fixture(params=[(p, n) for p in POLICIES for n in NETWORKS], ids="-".join)
def policy(request):
    """Each of (flow, diffusion, shortcut) x (mlp, unet), frozen."""
    return make_policy(*request.param, control_mode="pd_ee_delta_pos").freeze()


@pytest.fixture(params=POLICIES)
def trainable(request):
    """A flow, a diffusion and a shortcut policy, not frozen."""
    return make_policy(request.param)


def random_inputs(policy, *batch: int):
    observation = 3 + 2 * torch.randn(*batch, policy.observation_dim)
    return observation, torch.randn(*batch, policy.pred_horizon, policy.action_dim)
