"""What the latent env costs: collector + LatentActionEnv against a bare loop of the same decodes and ManiSkill steps.

Both sides run in one process, in turns; the result is a ratio of times, which other load on the machine hits alike.

    python -m benchmarks.latent_env                 # PickCube-v1, flow policy 3x256, chunks of 8
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import torch
from torchrl.collectors import Collector

from dsrl_torchrl import LatentActionEnv
from dsrl_torchrl.modules.prior_noise import PriorNoise
from dsrl_torchrl.policies import FlowPolicy
from envs.maniskill import ManiSkillEnv, make_gym_env

HORIZON = 8
LIMIT = 96  # a multiple of the chunk: both sides make whole chunks only


def make_policy(observation_dim: int, action_dim: int) -> FlowPolicy:
    torch.manual_seed(0)
    return FlowPolicy(observation_dim, action_dim, HORIZON, network={"kind": "mlp", "width": 256, "depth": 3}).freeze()


class BareLoop:
    """Reset, decode, step the raw gym env action by action: no TorchRL, no TensorDict."""

    def __init__(self, env_id: str) -> None:
        self.env = make_gym_env(env_id, control_mode="pd_ee_delta_pos", max_episode_steps=LIMIT)
        self.observation, _ = self.env.reset(seed=0)
        action_dim = self.env.unwrapped.single_action_space.shape[-1]
        self.policy = make_policy(self.observation.shape[-1], action_dim)
        self.noise_shape = (1, HORIZON, action_dim)

    @torch.no_grad()
    def run(self, macro_steps: int) -> None:
        for _ in range(macro_steps):
            chunk = self.policy(self.observation, torch.randn(self.noise_shape))
            for j in range(HORIZON):
                self.observation, _, _, truncated, _ = self.env.step(chunk[:, j])
            if truncated.item():
                self.observation, _ = self.env.reset()


class Collected:
    """The same work through ``Collector`` and ``LatentActionEnv``."""

    def __init__(self, env_id: str, macro_steps: int) -> None:
        base = ManiSkillEnv(env_id, max_episode_steps=LIMIT, terminate_on_success=False, seed=0)
        sizes = base.observation_spec["observation"].shape[-1], base.action_spec.shape[-1]
        env = LatentActionEnv(base, make_policy(*sizes), gamma=0.98)
        self.collector = Collector(
            env,
            PriorNoise(env.noise_layout.dim),
            frames_per_batch=macro_steps,
            total_frames=-1,
            auto_register_policy_transforms=False,
        )
        self.batches = iter(self.collector)

    def run(self, macro_steps: int) -> None:
        batch = next(self.batches)
        assert batch["next", "macro_steps"].sum() == macro_steps * HORIZON


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env-id", default="PickCube-v1")
    parser.add_argument("--macro-steps", type=int, default=120, help="per turn")
    parser.add_argument("--turns", type=int, default=12)
    parser.add_argument("--out", type=Path, default=None, help="write the ratio as JSON")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    sides = {"bare": BareLoop(arguments.env_id), "latent": Collected(arguments.env_id, arguments.macro_steps)}
    for side in sides.values():  # the first turn pays for imports and caches
        side.run(arguments.macro_steps)
    ratios = []
    for turn in range(arguments.turns):
        seconds = {}
        for name in sorted(sides, reverse=bool(turn % 2)):
            start = time.perf_counter()
            sides[name].run(arguments.macro_steps)
            seconds[name] = time.perf_counter() - start
        ratios.append(seconds["latent"] / seconds["bare"])
        steps = arguments.macro_steps * HORIZON
        print(
            f"turn {turn}: bare {steps / seconds['bare']:.0f}, latent {steps / seconds['latent']:.0f} env steps/s, "
            f"ratio {ratios[-1]:.3f}"
        )
    result = {"median": statistics.median(ratios), "low": min(ratios), "high": max(ratios), "repeats": len(ratios)}
    print(
        f"collector + LatentActionEnv / bare loop: {result['median']:.3f} [{result['low']:.3f}, {result['high']:.3f}]"
    )
    if arguments.out is not None:
        arguments.out.write_text(json.dumps({f"latent_env/{arguments.env_id}": result}, indent=2) + "\n")


if __name__ == "__main__":
    main()
