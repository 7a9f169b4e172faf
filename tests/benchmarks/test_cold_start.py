"""Every variant of the cold start can be made, and changes what it says."""

from __future__ import annotations

import json

import pytest

from benchmarks.cold_start import BASE, PRIOR_CANDIDATES, SHIPPED, VARIANTS, _variant, add_base
from benchmarks.setting import Setting
from dsrl_torchrl.agents import DSRLAWMLE, DSRLNA
from dsrl_torchrl.errors import UserError
from dsrl_torchrl.evaluation.rates import make_rate

ENV = Setting(observation=3, action=1, horizon=2, base_width=4).env()


@pytest.mark.parametrize("name", [*VARIANTS, *PRIOR_CANDIDATES])
def test_a_variant_changes_what_it_says(name):
    agent, loop, changes = _variant(name, ENV, seed=0)
    assert type(agent) is (DSRLNA if name in VARIANTS else DSRLAWMLE)
    for option, value in changes.items():
        places = [part for part in (agent.config, agent.networks, loop) if option in type(part).model_fields]
        assert [getattr(place, option) for place in places] == [value]
    if name == "naive":
        assert not agent.networks.layer_norm and agent.encoder.out_features == 3 and loop.offline_fraction == 0


def test_the_shipped_variant_is_the_default():
    agent, loop, _ = _variant(SHIPPED, ENV, seed=0)
    assert agent.config == DSRLAWMLE.Config() and loop.offline_fraction > 0


def test_results_of_another_base_policy_are_not_joined(tmp_path):
    file, rate = tmp_path / "results.json", make_rate([True, False]).__dict__
    assert add_base(file, rate) == {BASE: rate}
    file.write_text(json.dumps({BASE: rate, "naive, seed 0": {}}))
    assert add_base(file, rate) == {BASE: rate, "naive, seed 0": {}}
    with pytest.raises(UserError, match=r"another base policy \(0\.500 of 2 rollouts, here 1\.000 of 2\).*--results"):
        add_base(file, make_rate([True, True]).__dict__)
