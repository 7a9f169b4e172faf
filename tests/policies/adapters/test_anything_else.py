"""The page's example: diffusers' own DDIM around a network of one's own, which is also what ours is held against."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from tensordict import TensorDict

from dsrl_torchrl.policies import probe
from dsrl_torchrl.policies.adapters.ddim import DDIM, betas

PAGE = Path(__file__).parents[3] / "docs" / "foreign-policies.md"


class Network(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.linear = torch.nn.Linear(8 + 1 + 3, 8)

    def forward(self, x, t, observation):
        step = torch.full((*x.shape[:-2], 1), float(t) / 100)
        return self.linear(torch.cat([x.flatten(-2), step, observation], -1)).view_as(x)


def test_diffusers_in_fifteen_lines():
    pytest.importorskip("diffusers")
    (block,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    exec(block, namespace := {})
    policy = namespace["Wrapped"](Network()).freeze()
    observation, noise = torch.randn(6, 3), torch.randn(6, 4, 2)
    probe(policy, TensorDict({"observation": observation}, [6]))
    ours = DDIM(betas("squaredcos_cap_v2", 100), 10)
    chunk = ours(lambda x, t: policy.network(x, t, observation), noise)
    torch.testing.assert_close(policy(observation, noise), chunk, atol=1e-6, rtol=1e-5)
    assert len(block[block.index("class ") :].splitlines()) < 15
    assert policy.content_hash() != namespace["Wrapped"](Network(), 20).freeze().content_hash()
