"""The comparison is fair: DSRL-SAC by hand makes the same updates; DSRL-NA is the single-file example's."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from benchmarks.bare_loop import BareNA, BareSAC
from benchmarks.setting import random_transitions
from tests.examples.same_updates import PLAIN, SHIPPED, assert_same_updates

SETTINGS = pytest.mark.parametrize("setting", [SHIPPED, PLAIN], ids=["shipped", "plain"])


@SETTINGS
@pytest.mark.parametrize("num_critics", [2, 3])
def test_sac_updates_are_the_same(setting, num_critics):
    assert_same_updates(replace(setting, num_critics=num_critics), "dsrl_sac", BareSAC)


@SETTINGS
@pytest.mark.parametrize("bare_class", [BareSAC, BareNA])
def test_the_loops_run_on_their_own_batches(setting, bare_class):
    agent, data = setting.agent("dsrl_na"), random_transitions(setting, 64)
    loop = bare_class(setting, agent.config, data, setting.base_policy())
    before = loop.actor.head.weight.detach().clone()
    loop.run(2)
    assert not torch.equal(before, loop.actor.head.weight)
