"""Wall time of an online run against the larger of its two parts: collecting alone, updating alone.

``train_stage2`` on PushCube with an untrained base policy (it costs the same, and episodes run to their limit), from
random networks. Collecting alone makes the same env steps through the same collector and stores them; updating alone
makes the same updates on stored transitions. What runs one after the other takes the sum of the two at best; their
maximum is what a perfect overlap would reach. Checkpoints and log are part of the run.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from hydra.utils import instantiate
from tensordict import TensorDictBase
from torchrl.collectors import Collector

from benchmarks.chart import draw
from benchmarks.latent_update import LatentUpdateLoop
from benchmarks.ratios import Report, interleave, ratio, statistic
from dsrl_torchrl import LatentActionEnv
from dsrl_torchrl.cli.main import compose
from dsrl_torchrl.cli.configured import make_latent_env
from dsrl_torchrl.data.decoded_pairs import draw_alias_pairs
from dsrl_torchrl.data.macro_transitions import check_finite, to_macro_transitions
from dsrl_torchrl.latent_env.prior_noise import PriorNoise
from dsrl_torchrl.policies import FlowPolicy
from dsrl_torchrl.cli.run import Run
from dsrl_torchrl.collect.episode_statistics import EpisodeTracker
from dsrl_torchrl.collect.rollouts import collect_rollouts
from dsrl_torchrl.training.online import Stage2Result, train_stage2

SMOKE = {
    "env_steps": 150,
    "rollout_env_steps": 100,
    "repeats": 1,
    "overrides": [
        "task=toy",
        "collector.num_workers=1",
        "networks.num_cells=[8]",
        "algorithm.batch_size=16",
        "algorithm.replay_size=500",
        "algorithm.utd=1",
    ],
}

GOAL = "<= 1.15"
WARMUP_ENV_STEPS = 96

#: How collecting and updating go together, as Hydra overrides.
MODES: dict[str, list[str]] = {"in turn": [], "overlapped": ["collector.overlap=true"]}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--algorithms", nargs="+", default=["dsrl_sac", "dsrl_na"])
    parser.add_argument("--modes", nargs="+", default=list(MODES), choices=list(MODES))
    parser.add_argument("--env-steps", type=int, default=4_000, help="of a turn")
    parser.add_argument("--rollout-env-steps", type=int, default=4_000, help="offline data of DSRL-NA")
    parser.add_argument("--overrides", nargs="*", default=["task=push_cube"], help="Hydra overrides for every run")
    parser.set_defaults(repeats=5)


def main(arguments: argparse.Namespace) -> None:
    report = Report("end_to_end", arguments.out)
    for algorithm in arguments.algorithms:
        for mode in arguments.modes:
            _measure(report, algorithm, mode, arguments)
    report.write()
    draw(report, "Wall time of an online run")


def _measure(report: Report, algorithm: str, mode: str, arguments: argparse.Namespace) -> None:
    run = Run(
        compose(
            [
                f"algorithm={algorithm}",
                "algorithm.init_actor=false",
                "algorithm.init_critics=false",
                "algorithm.critic_only_updates=0",
                f"algorithm.total_env_steps={arguments.env_steps}",
                f"algorithm.warmup_env_steps={WARMUP_ENV_STEPS}",
                f"collector.threads={arguments.threads}",
                *arguments.overrides,
                *MODES[mode],
            ]
        )
    )
    policy = _base_policy(run)
    overlap = run.cfg.collector.overlap
    workers = max(1, run.cfg.collector.num_workers - overlap)  # as in `dsrl stage2`
    env = make_latent_env(run.cfg, policy, workers=workers)
    make_worker_env = partial(make_latent_env, run.cfg, policy, workers=workers) if overlap else None
    parts = Parts(run, env, arguments.rollout_env_steps, make_worker_env)
    try:
        times = interleave(
            {"run": parts.train, "collecting": parts.collect, "updating": parts.update}, arguments.repeats
        )
    finally:
        env.close()
    case = f"{algorithm}, {run.cfg.task.name}, {workers} workers, {mode}"
    for name, seconds in times.items():
        report.value(f"{case}: {name}", statistic(seconds), "s")
    times["longer part"] = [max(pair) for pair in zip(times["collecting"], times["updating"], strict=True)]
    times["both parts"] = [sum(pair) for pair in zip(times["collecting"], times["updating"], strict=True)]
    report.ratio(f"{case}: run / max(collecting, updating)", ratio(times, "run", "longer part"), GOAL)
    report.ratio(f"{case}: run / (collecting + updating)", ratio(times, "run", "both parts"))
    report.ratio(f"{case}: updating / collecting", ratio(times, "updating", "collecting"))


def _base_policy(run: Run) -> FlowPolicy:
    """The configured one, untrained."""
    task = run.cfg.task
    env = instantiate(task.env)()
    sizes = env.observation_spec["observation"].shape[-1], env.action_spec.shape[-1]
    env.close()
    torch.manual_seed(0)
    policy = instantiate(run.cfg.base_policy.policy, _convert_="all")(
        observation_dim=task.obs_horizon * sizes[0],
        action_dim=sizes[1],
        pred_horizon=task.pred_horizon,
        obs_horizon=task.obs_horizon,
    )
    return policy.freeze()


class Parts:
    """The run and its two parts, on one latent env."""

    def __init__(
        self,
        run: Run,
        env: LatentActionEnv,
        rollout_env_steps: int,
        make_worker_env: Callable[[], LatentActionEnv] | None,
    ) -> None:
        self.make_worker_env = make_worker_env
        self.config, self.networks, self.env = run.algorithm, run.networks, env
        rollouts, _ = collect_rollouts(env, PriorNoise(env.noise_layout.dim), rollout_env_steps, seed=1, progress=False)
        self.offline = rollouts.exclude("action") if self.config.offline_fraction else None
        stored = self._with_alias_pairs(rollouts.copy(), self.config.behaviour_fraction)
        offline = None if self.offline is None else self._with_alias_pairs(self.offline.copy(), 0.0)
        self.loop = LatentUpdateLoop(env, self.config, self.networks, stored, offline)
        self.result: Stage2Result | None = None

    def train(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            self.result = train_stage2(
                self.env,
                self.config,
                self.networks,
                seed=0,
                folder=Path(folder),
                offline=self.offline,
                make_worker_env=self.make_worker_env,
                progress=False,
            )

    def collect(self) -> None:
        """The env steps of :meth:`train`: by the prior until the warm-up's end, then by the actor."""
        config, env_steps = self.config, 0
        episodes = EpisodeTracker(config.success_window)
        segments = (
            (PriorNoise(self.env.noise_layout.dim), config.warmup_env_steps),
            (self.loop.actor, config.total_env_steps),
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
                transitions = to_macro_transitions(batch)
                check_finite(transitions, env_steps)
                self.loop.collected(transitions)
                episodes.update(batch)
                env_steps += int(transitions["next", "macro_steps"].sum())
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

    def _with_alias_pairs(self, transitions: TensorDictBase, behaviour_fraction: float) -> TensorDictBase:
        samples = self.config.alias_samples if self.config.noise_aliasing else 0
        dim = self.env.noise_layout.dim
        return draw_alias_pairs(transitions, self.env.decoder.decode, dim, samples, behaviour_fraction)
