"""Data that several files learn from."""

from __future__ import annotations

import pytest
import torch

from dsrl_torchrl.data.macro_transitions import to_macro_transitions
from dsrl_torchrl.latent_env.prior_noise import PriorNoise
from tests.training.toy import make_env


@pytest.fixture(scope="module")
def offline():
    """Transitions of the prior, with their noise."""
    env = make_env()
    env.set_seed(1)
    torch.manual_seed(1)
    return to_macro_transitions(env.rollout(8, PriorNoise(2), break_when_any_done=False), ["observation"])
