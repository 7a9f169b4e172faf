"""A policy of one's own, with tiny numbers; and it keeps the contract."""

from __future__ import annotations

import torch
from tensordict import TensorDict

from dsrl_torchrl.policies import probe
from examples.own_policy import WalkPolicy, main


def test_it_is_steered():
    lengths = main(env_steps=200, episodes=8)
    assert lengths.keys() == {"base", "steered"} and all(1 <= length <= 40 for length in lengths.values())


def test_it_keeps_the_contract():
    observations = TensorDict({"observation": torch.rand(64, 2) * 2 - 1}, [64])
    probe(WalkPolicy().freeze(), observations)
