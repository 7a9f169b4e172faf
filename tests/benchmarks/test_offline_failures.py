"""The methods are what they say, and what is measured of them is right."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule

from benchmarks.offline_failures import COMMON, METHODS, SIZES, chunk_errors, pull_of_q
from benchmarks.offline_figure import draw
from dsrl_torchrl.agents import TD3BC
from dsrl_torchrl.cli.compose import compose
from tests.agents.cases import make_agent, make_transitions
from tests.policies.test_identity import make as make_identity


@pytest.mark.parametrize("name", METHODS)
def test_a_method_learns_raw_chunks_offline(name):
    config = compose([*COMMON, *SIZES, *METHODS[name]])
    assert config.latent.action == "chunk" and config.stage2.total_env_steps == 0
    assert config.task.act_horizon == 8 and config.networks.num_cells == (256, 256, 256)


def test_the_error_of_a_chunk_is_in_half_ranges():
    policy = make_identity()
    wanted = torch.randn(500, 6).clamp(-0.9, 0.9)
    data = TensorDict({"observation": wanted, "next": {"action_chunk": policy(wanted, wanted.unflatten(-1, (3, 2)))}})
    data.batch_size = [500]
    right = TensorDictModule(torch.nn.Identity(), ["observation"], ["action"])
    off = TensorDictModule(lambda w: w + 0.1, ["observation"], ["action"])
    errors = chunk_errors(off, right, data, policy)
    assert errors["mode"] < 1e-10 and errors["sampled"] == pytest.approx(0.01, rel=1e-4)
    assert errors["variance"] == pytest.approx(float(wanted.var(0).mean()), rel=1e-4)


def test_the_pull_of_q_does_not_depend_on_its_size():
    agent = make_agent(TD3BC)
    data = make_transitions(agent)
    pull = pull_of_q(agent, data)
    with torch.no_grad():
        for name, p in agent.loss.qvalue_network_params.flatten_keys(".").items():
            if "mlp.6" in name or p.shape[-2:-1] == (1,) or p.shape[-1:] == (1,):
                p.mul_(50.0)
    assert pull > 0 and pull_of_q(agent, data) == pytest.approx(pull, rel=1e-3)


def test_it_is_drawn(tmp_path):
    rate = {"success_once": {"value": 0.5, "low": 0.4, "high": 0.6, "n": 10}}
    curves = {"updates": [50, 100], "actor/lam": [1.0, None], "actor/q_mean": [1.0, 2.0]}
    result = {"sampled": rate, "mode": rate, "chunk_error": {"sampled": 0.1, "mode": 0.05}, "curves": curves}
    draw({"flow cloning": {**result, "curves": {}}, "TD3+BC": result}, tmp_path / "x.png")
    assert (tmp_path / "x.png").stat().st_size > 10_000
