"""Wall time of an online run against its two parts: collecting alone, updating alone.

``train_online`` on PushCube with an untrained base policy (it costs the same, and episodes run to their limit), from
random networks. Collecting alone makes the same env steps through the same collector and stores them; updating alone
makes the same updates on stored transitions. The run updates while its workers simulate: at best it takes as long as
the longer of the two, if there are cores for both. Checkpoints and log are part of it.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch
from torchrl.collectors import Collector

from benchmarks.chart import draw
from benchmarks.latent_update import LatentUpdateLoop
from benchmarks.ratios import Report, interleave, ratio, statistic
from dsrl_torchrl import LatentActionEnv
from dsrl_torchrl.cli.auto import settle_machine
from dsrl_torchrl.cli.compose import compose
from dsrl_torchrl.cli.config import RunConfig
from dsrl_torchrl.cli.latent_env import make_latent_env
from dsrl_torchrl.cli.steps.base import make_cloned
from dsrl_torchrl.cli.targets import make
from dsrl_torchrl.collect.episode_statistics import EpisodeTracker
from dsrl_torchrl.collect.rollouts import collect_rollouts
from dsrl_torchrl.data.macro_transitions import check_finite, to_macro_transitions
from dsrl_torchrl.latent_env.prior_noise import PriorNoise
from dsrl_torchrl.policies import GenerativePolicy
from dsrl_torchrl.training.online import SUCCESS_WINDOW, OnlineResult, train_online

SMOKE = {
    "env_steps": 150,
    "rollout_env_steps": 100,
    "repeats": 1,
    "overrides": [
        "task=toy",
        "collector.num_workers=1",
        "networks.num_cells=[8]",
        "algorithm.batch_size=16",
        "stage2.replay_size=500",
        "stage2.utd=1",
    ],
}

GOAL = "<= 1.1"
WARMUP_ENV_STEPS = 96


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--algorithms", nargs="+", default=["dsrl_sac", "dsrl_na", "dsrl_aw_mle"])
    parser.add_argument("--env-steps", type=int, default=4_000, help="of a turn")
    parser.add_argument("--rollout-env-steps", type=int, default=4_000, help="offline data where it is mixed in")
    parser.add_argument("--overrides", nargs="*", default=["task=push_cube"], help="Hydra overrides for every run")
    parser.set_defaults(repeats=5)


def main(arguments: argparse.Namespace) -> None:
    report = Report("end_to_end", arguments.out)
    for algorithm in arguments.algorithms:
        _measure(report, algorithm, arguments)
    report.write()
    draw(report, "Wall time of an online run")


def _measure(report: Report, algorithm: str, arguments: argparse.Namespace) -> None:
    options = [
        f"algorithm={algorithm}",
        "algorithm.critic_only_updates=0",
        f"stage2.total_env_steps={arguments.env_steps}",
        f"stage2.warmup_env_steps={WARMUP_ENV_STEPS}",
        f"collector.threads={arguments.threads}",
    ]
    config, _ = settle_machine(compose([*options, *arguments.overrides]), None)
    env = make_latent_env(config, _base_policy(config))
    parts = Parts(config, env, arguments.rollout_env_steps)
    try:
        times = interleave(
            {"run": parts.train, "collecting": parts.collect, "updating": parts.update}, arguments.repeats
        )
    finally:
        env.close()
    case = f"{algorithm}, {config.task.name}, {config.collector.num_workers} workers"
    for name, seconds in times.items():
        report.value(f"{case}: {name}", statistic(seconds), "s")
    parts = list(zip(times["collecting"], times["updating"], strict=True))
    times |= {"longer part": [max(pair) for pair in parts], "both parts": [sum(pair) for pair in parts]}
    report.ratio(f"{case}: run / max(collecting, updating)", ratio(times, "run", "longer part"), GOAL)
    report.ratio(f"{case}: run / (collecting + updating)", ratio(times, "run", "both parts"))
    report.ratio(f"{case}: updating / collecting", ratio(times, "updating", "collecting"))


def _base_policy(config: RunConfig) -> GenerativePolicy:
    """The configured one, untrained."""
    task = config.task
    env = make(task.env)
    sizes = env.observation_spec["observation"].shape[-1], env.action_spec.shape[-1]
    env.close()
    shapes = {"observation": (task.obs_horizon * sizes[0],)}
    return make_cloned(config.base_policy.policy, task, shapes, sizes[1], seed=0).freeze()


class Parts:
    """The run and its two parts, on one latent env."""

    def __init__(self, config: RunConfig, env: LatentActionEnv, rollout_env_steps: int) -> None:
        self.run, self.config, self.env = config, config.stage2, env
        agent = self._agent()
        prior, keys = PriorNoise(env.latent_dim), agent.in_keys
        rollouts, _ = collect_rollouts(env, prior, rollout_env_steps, seed=1, observation_keys=keys, progress=False)
        self.offline = rollouts if self.config.offline_fraction else None
        offline = None if self.offline is None else agent.store(self.offline.copy(), online=False)
        stored = agent.store(rollouts.copy(), online=True)
        self.loop = LatentUpdateLoop(agent, stored, offline, self.config.offline_fraction)
        self.result: OnlineResult | None = None

    def _agent(self):
        torch.manual_seed(0)
        return self.run.agent(self.env, self.run.algorithm, self.run.networks)

    def train(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            self.result = train_online(
                self.env,
                self._agent(),
                self.config,
                seed=0,
                folder=Path(folder),
                offline=self.offline,
                progress=False,
            )

    def collect(self) -> None:
        """The env steps of :meth:`train`: by the prior until the warm-up's end, then by the actor."""
        config, env_steps = self.config, 0
        episodes = EpisodeTracker(SUCCESS_WINDOW)
        segments = (
            (PriorNoise(self.env.latent_dim), config.warmup_env_steps),
            (self.loop.agent.policy, config.total_env_steps),
        )
        for policy, end in segments:
            self.env.set_seed(0)
            collector = Collector(
                self.env,
                policy,
                frames_per_batch=config.macro_steps_per_round,
                total_frames=-1,
                auto_register_policy_transforms=False,
            )
            episodes.restart()
            for batch in collector:
                transitions = to_macro_transitions(batch, self.loop.agent.in_keys)
                check_finite(transitions, env_steps)
                self.loop.collected(transitions)
                episodes.update(batch)
                env_steps += int(transitions["next", "chunk_steps"].sum())
                if env_steps >= end:
                    break
            collector.shutdown(close_env=False)

    def update(self) -> None:
        """The updates of :meth:`train`, round by round."""
        assert self.result is not None  # the warm-up turn of `train` came first
        owed = self.result.updates
        per_round = int(self.config.utd * self.config.macro_steps_per_round)
        while owed > 0:
            self.loop.run(min(per_round, owed))
            owed -= per_round
