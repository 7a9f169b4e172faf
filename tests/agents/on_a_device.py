"""Both stages of every algorithm with the learner on a device and the simulator on the CPU.

``python -m tests.agents.on_a_device bridge|update|training`` checks it on a simulated one.
"""

from __future__ import annotations

import sys
import tempfile
from itertools import product
from pathlib import Path

import torch
from torchrl.envs import RewardSum, TransformedEnv

from dsrl_torchrl import LatentActionEnv, make_macro_env
from dsrl_torchrl.agents import DSRLNA, ResidualSAC
from dsrl_torchrl.collect.rollouts import collect_rollouts
from dsrl_torchrl.envs.toy import PointReachEnv
from dsrl_torchrl.latent_env.base_chunk import BaseChunk, ResidualPolicy
from dsrl_torchrl.latent_env.noise_layout import knot_weights
from dsrl_torchrl.latent_env.noise_subspace import NoiseSubspace
from dsrl_torchrl.latent_env.prior_noise import PriorNoise
from dsrl_torchrl.policies import FlowPolicy
from dsrl_torchrl.training.metrics_log import MetricsLog
from dsrl_torchrl.training.offline import OfflineConfig, train_offline
from dsrl_torchrl.training.online import OnlineConfig, train_online
from tests.agents.cases import AGENTS, GAMMA, Leaning, every_part, make_agent, make_batch
from tests.steerability.bases import CameraPolicy, CoinCameraEnv


def state_env(device):
    """An env that says that it is on the CPU."""
    return LatentActionEnv(PointReachEnv(num_envs=4, max_episode_steps=5, seed=0), Leaning().to(device), gamma=GAMMA)


def pixel_env(device):
    """Images and a nested float64 state, from an env that has no device."""
    return LatentActionEnv(CoinCameraEnv(4), CameraPolicy().to(device), act_horizon=2, gamma=GAMMA)


class IndexedEnv(PointReachEnv):
    """Resets by index, as many envs of other people do."""

    def _start(self, seeds, env_idx, asked):
        chosen = None if env_idx is None else torch.arange(len(seeds))[env_idx]
        return super()._start(seeds, chosen, asked)


def residual_env(device):
    """The base policy's chunk is an entry, drawn where the policy is."""
    base = Leaning().to(device)
    macro = make_macro_env(PointReachEnv(num_envs=4, max_episode_steps=5, seed=0), act_horizon=2, gamma=GAMMA)
    env = TransformedEnv(macro, BaseChunk(base, 2), auto_unwrap=False)
    return LatentActionEnv(env, ResidualPolicy(base, 2, 0.25), gamma=GAMMA, action_magnitude=1.0)


def subspace_env(device):
    """Half of the noise's dimensions are steered."""
    env = PointReachEnv(num_envs=4, max_episode_steps=5, seed=0)
    return LatentActionEnv(env, Leaning().to(device), gamma=GAMMA, subspace=NoiseSubspace(torch.eye(4)[:, :2]))


def knots_env(device):
    """The noise is interpolated."""
    env = IndexedEnv(num_envs=4, max_episode_steps=6, seed=0)
    torch.manual_seed(0)
    policy = FlowPolicy(2, 2, 6).freeze().to(device)
    return LatentActionEnv(env, policy, act_horizon=2, gamma=GAMMA, noise_layout="interpolated", knots=3)


CASES = [
    *product(AGENTS, (state_env, pixel_env)), (ResidualSAC, residual_env), (DSRLNA, subspace_env), (DSRLNA, knots_env)
]  # fmt: skip


def devices(tensors):
    return {tensor.device.type for tensor in tensors}


def check_bridge(make_env, device):
    """Everything above the simulator is on the learner's device, and the simulator is not."""
    env, kind = make_env(device), torch.device(device).type
    assert env.device.type == env.decoder.device.type == env.action_spec.device.type == kind
    assert devices(env.decoder.state_dict().values()) == {kind}
    simulator = env.base_env.base_env.base_env
    assert simulator.device.type == "cpu"
    rollout = env.rollout(3, break_when_any_done=False)
    assert rollout.device.type == kind and devices(rollout.values(True, True)) == {kind}
    # The numbers are those of a latent env that is on the CPU altogether.
    reference = make_env("cpu")
    td = reference.reset()
    for step in range(3):
        out, td = reference.step_and_maybe_reset(td.set("action", rollout["action"][:, step].cpu()))
        chunk = rollout["next", "action_chunk"][:, step].cpu()
        torch.testing.assert_close(chunk, out["next", "action_chunk"], rtol=1e-4, atol=1e-5)
    # What an appended transform has for its env draws an action, too, for its statistics.
    env = make_env(device)
    env.append_transform(RewardSum())
    assert env.transform[-1].parent.rand_action()["action"].device.type == torch.device(device).type


def check_training(kind, make_env, device, folder, updates=4, **options):
    """Rollouts, stage 1 but for who learns on-policy, stage 2, a resumed stage 2; the files are read on the CPU."""
    env = make_env(device)
    assert env.decoder.device.type == torch.device(device).type
    agent = make_agent(kind, env, **options)
    prior = PriorNoise(env.latent_dim, device=device)
    data, _ = collect_rollouts(env, prior, 16, seed=0, observation_keys=agent.in_keys, progress=False)
    assert devices(data.values(True, True)) == {"cpu"}
    if not kind.on_policy:
        train_offline(agent, data, OfflineConfig(updates=updates), seed=0, folder=folder / "stage1", progress=False)
    for total in (48, 64):
        config = OnlineConfig(
            total_env_steps=total, warmup_env_steps=16, macro_steps_per_round=8, checkpoint_env_steps=16,
            utd=updates / 8, offline_fraction=0.0 if kind.on_policy else 0.25, log_env_steps=1,
        )  # fmt: skip
        log = MetricsLog()
        result = train_online(
            env, agent, config, seed=0, folder=folder / "stage2", offline=data, resume=True, progress=False,
            log=log,
        )  # fmt: skip
        assert result.env_steps >= total and result.updates > 0 and log.rows
        steps = [row["env_steps"] for row in log.rows]
    assert steps[0] <= 48 < steps[-1]  # resumed: the rows before are there
    # A number may stay on the CPU, as the discount of TorchRL's estimators does until it is first used.
    learned = [value for value in agent.state_dict().values() if torch.is_tensor(value) and value.ndim]
    assert devices(learned) == {env.device.type}

    agent.save(folder / "saved")
    on_cpu = make_agent(kind, make_env("cpu"), seed=1, **options)
    on_cpu.load(folder / "saved")
    observations = data[:8].select(*agent.in_keys)
    noise = torch.randn(8, env.latent_dim)
    expected = agent.noise_values(observations.to(device), noise.to(device)).cpu()
    torch.testing.assert_close(on_cpu.noise_values(observations, noise), expected, rtol=1e-3, atol=1e-4)


def check_update(kind, make_env, traffic):
    """An update asks the host for nothing, as in a CUDA graph, and its metrics stay on the device."""
    env = make_env("sim")
    agent = make_agent(kind, env)
    batch, parts = make_batch(agent, env), every_part(agent)
    agent.update(batch, parts)  # the optimisers make their state
    knot_weights.cache_clear()  # a compiler traces it without its cache
    del traffic[:]
    metrics = agent.update(batch, parts)
    assert not traffic, f"{kind.__name__}: {traffic}"
    assert devices(metrics.values()) == {"sim"}


if __name__ == "__main__":
    from torchrl.modules.distributions import continuous

    from tests.agents.simulated_device import register, traffic

    device = register()
    (what,) = sys.argv[1:]
    if what == "bridge":
        for make_env in (state_env, pixel_env):
            check_bridge(make_env, "sim")
    for kind, make_env in CASES:
        if what == "training":
            with tempfile.TemporaryDirectory() as folder:
                check_training(kind, make_env, "sim", Path(folder))
        if what == "update":
            continuous.safe_is_current_stream_capturing = lambda: True  # TorchRL's distributions ask less then
            check_update(kind, make_env, traffic)
