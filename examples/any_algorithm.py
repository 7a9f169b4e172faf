"""Any TorchRL algorithm steers: its own SAC, unchanged, on the latent env, in one visible loop.

    python -m examples.any_algorithm

A latent env is an env. What its macro steps ask of a loss is one call, ``use_macro_discount``: a macro step takes k
primitive steps, so the bootstrap is discounted by γ^k. ``TD3Loss``, ``REDQLoss`` and the others go in the same place; a
PPO script calls it on its ``GAE``.
"""

from __future__ import annotations

import torch
from tensordict.nn import NormalParamExtractor, TensorDictModule
from torch import nn
from torchrl.collectors import Collector
from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer
from torchrl.modules import MLP, ProbabilisticActor, TanhNormal, ValueOperator
from torchrl.objectives import SACLoss, SoftUpdate

from dsrl_torchrl import LatentActionEnv
from dsrl_torchrl.envs.toy import PointReachEnv
from dsrl_torchrl.objectives.macro_discount import use_macro_discount
from examples.own_policy import WalkPolicy

GAMMA = 0.98  # per primitive step
SIZES = {"num_cells": [64, 64], "activation_class": nn.ReLU}
NORM = {"norm_class": nn.LayerNorm, "norm_kwargs": [{"normalized_shape": 64}] * 2}  # keeps critics in check at high UTD


def main(env_steps: int = 6_000, warmup_env_steps: int = 1_000, utd: int = 2) -> list[float]:
    """Trains; returns the mean reward of a macro step (0 at best) in every tenth of the run."""
    torch.manual_seed(0)
    env = LatentActionEnv(PointReachEnv(num_envs=8, seed=0), WalkPolicy().freeze(), gamma=GAMMA)
    observation_dim, latent_dim = env.observation_spec["observation"].shape[-1], env.latent_dim
    bound = env.decoder.action_magnitude
    network = nn.Sequential(MLP(observation_dim, 2 * latent_dim, **SIZES), NormalParamExtractor("biased_softplus_0.5"))
    actor = ProbabilisticActor(
        TensorDictModule(network, in_keys=["observation"], out_keys=["loc", "scale"]),
        in_keys=["loc", "scale"],
        distribution_class=TanhNormal,
        distribution_kwargs={"low": -bound, "high": bound, "tanh_loc": True},
        spec=env.action_spec_unbatched,
    )
    critic = ValueOperator(MLP(observation_dim + latent_dim, 1, **SIZES, **NORM), in_keys=["observation", "action"])
    target_entropy = -0.5 * latent_dim  # of one env: "auto" from env.action_spec would count all eight
    loss = SACLoss(actor, critic, loss_function="l2", alpha_init=0.03, target_entropy=target_entropy)
    use_macro_discount(loss, GAMMA)
    targets = SoftUpdate(loss, tau=0.01)
    optimiser = torch.optim.Adam(loss.parameters(), lr=5e-4)
    replay = TensorDictReplayBuffer(storage=LazyTensorStorage(env_steps), batch_size=128)
    collector = Collector(env, actor, frames_per_batch=32, total_frames=-1, auto_register_policy_transforms=False)

    taken, rewards, curve = 0, [], []
    for batch in collector:
        replay.extend(batch.reshape(-1))
        before, taken = taken, taken + int(batch["next", "chunk_steps"].sum())
        rewards.append(batch["next", "reward"].mean().item())
        for _ in range(utd * batch.numel() if taken >= warmup_env_steps else 0):
            losses = loss(replay.sample())
            optimiser.zero_grad()
            (losses["loss_actor"] + losses["loss_qvalue"] + losses["loss_alpha"]).backward()
            optimiser.step()
            targets.step()
        if taken * 10 // env_steps > before * 10 // env_steps:
            curve.append(sum(rewards) / len(rewards))
            rewards.clear()
            print(f"{taken} env steps: mean reward of a macro step {curve[-1]:.2f}", flush=True)
        if taken >= env_steps:
            break
    collector.shutdown()
    return curve


if __name__ == "__main__":
    main()
