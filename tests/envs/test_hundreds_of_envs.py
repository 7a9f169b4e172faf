"""Hundreds of envs in one batch, as ``physx_cuda`` has them: latent env, collector, replay and updates, on the fake."""

from __future__ import annotations

import pytest
import torch

from dsrl_torchrl import LatentActionEnv
from dsrl_torchrl.agents import DSRLAWMLE, DSRLNA, DSRLSAC
from dsrl_torchrl.envs.maniskill import ManiSkillEnv
from dsrl_torchrl.policies import BasePolicy
from tests.envs.fake_maniskill import FakeManiSkill
from tests.training.toy import GAMMA, make_agent, run_online

ENVS, LIMIT = 256, 5


class Walk(BasePolicy):
    """``chunk = tanh(noise + x)``: the farther, the faster."""

    def __init__(self):
        super().__init__(action_dim=1, pred_horizon=2)
        self.freeze()

    def forward(self, observation, noise):
        return torch.tanh(noise + observation[..., None, :1])


@pytest.mark.parametrize("kind", [DSRLSAC, DSRLNA, DSRLAWMLE], ids=lambda kind: kind.__name__)
def test_stage_2_on_a_batch_of_envs(tmp_path, kind):
    simulation = FakeManiSkill(ENVS, LIMIT)
    env = LatentActionEnv(ManiSkillEnv(env=simulation, seed=0), Walk(), gamma=GAMMA)
    assert env.batch_size == (ENVS,)
    agent = make_agent(kind, env=env, critic_only_updates=2, actor_interval=1)
    before = {name: value.clone() for name, value in agent.state_dict().items()}
    result, rows = run_online(
        agent, tmp_path, env=env, total_env_steps=12 * ENVS, warmup_env_steps=4 * ENVS, macro_steps_per_round=2 * ENVS,
        checkpoint_env_steps=8 * ENVS, log_env_steps=1, utd=1 / 64, replay_size=10_000,
    )  # fmt: skip

    # A batch is a macro step of every env, of one or two env steps each.
    assert result.macro_steps % ENVS == 0
    assert 12 * ENVS <= result.env_steps < 12 * ENVS + 2 * ENVS
    assert result.macro_steps < result.env_steps <= 2 * result.macro_steps
    assert result.updates == result.macro_steps // 64 > agent.config.critic_only_updates
    # Episodes end at different times: each reset is of those that ended, and every env has had one.
    whole = list(range(ENVS))
    partial = [index for _, index in simulation.resets if index != whole]
    assert any(1 < len(index) < ENVS for index in partial)
    assert sorted(set().union(*partial)) == whole
    _, last = rows[-1]
    assert last["env/episodes"] > ENVS / 2 and 0 <= last["env/success_running"] <= 1
    assert last["replay_buffer/size"] == result.macro_steps
    moved = {name for name, value in agent.state_dict().items() if not torch.equal(value, before[name])}
    assert any("actor" in name for name in moved) and any("q" in name for name in moved)
