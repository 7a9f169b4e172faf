"""What the latent env costs: collector + LatentActionEnv against a bare loop of the same decodes and ManiSkill steps.

The bare sides have no TorchRL and no TensorDict: they decode all envs' chunks in one batch and step the gym envs action
by action, in this process for one worker, in processes of their own behind pipes for more. ``plain`` is ManiSkill as it
comes, one env a process; ``raw`` has as many envs in a process as the latent env, batched as there. All sides make the
same number of macro steps in a turn, over all workers.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, multiprocessing
from torchrl.collectors import Collector
from torchrl.envs import ParallelEnv

from benchmarks.chart import draw
from benchmarks.ratios import Report, interleave, ratio, statistic
from dsrl_torchrl import LatentActionEnv
from dsrl_torchrl.envs.maniskill import ManiSkillEnv
from dsrl_torchrl.envs.maniskill_task import make_gym_env
from dsrl_torchrl.latent_env.macro_step import make_macro_env
from dsrl_torchrl.latent_env.prior_noise import PriorNoise
from dsrl_torchrl.policies import FlowPolicy

SMOKE = {"workers": [1], "envs": 2, "macro_steps": 4, "repeats": 1}

HORIZON = 8
LIMIT = 96  # a multiple of the chunk: both sides make whole chunks only
GAMMA = 0.98
CONTROL_MODE = "pd_ee_delta_pos"
ACTION_DIM = 4  # of this controller


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--env-id", default="PickCube-v1")
    parser.add_argument("--workers", nargs="+", type=int, default=[1, 2], help="numbers of worker processes")
    parser.add_argument("--envs", type=int, default=8, help="in each process")
    parser.add_argument("--macro-steps", type=int, default=160, help="in a turn, over all workers")


def main(arguments: argparse.Namespace) -> None:
    report = Report("latent_env", arguments.out)
    env_id, envs, macro_steps = arguments.env_id, arguments.envs, arguments.macro_steps
    plain = make_raw_env(env_id, 1)
    one = Collected(env_id, 1, envs, macro_steps)
    for workers in arguments.workers:
        case = f"{workers} worker{'s' * (workers > 1)}"
        make = partial(make_raw_env, env_id, envs)
        raw = make() if workers == 1 else RawWorkers(make, workers)
        latent = one if workers == 1 else Collected(env_id, workers, envs, macro_steps)
        sides = {"raw": partial(bare_loop, raw, macro_steps // (workers * envs)), "latent": latent.run}
        sides |= {"plain": partial(bare_loop, plain, macro_steps)} if workers == 1 else {"one": one.run}
        times = interleave(sides, arguments.repeats)
        for name in sides:
            report.value(f"{case}: {name}", statistic([macro_steps / s for s in times[name]]), "macro steps/s")
        for clock, seconds in (("", times), (", CPU", times.cpu)):
            report.ratio(f"{case}: latent / raw{clock}", ratio(seconds, "latent", "raw"), "<= 1.08")
            if workers == 1:
                report.ratio(f"latent / plain{clock}", ratio(seconds, "latent", "plain"), "<= 0.5")
        if workers > 1:
            goal = ">= 1.7" if workers == 2 else None
            report.ratio(f"{case}: speed against one worker", ratio(times, "one", "latent"), goal)
            latent.close()
        raw.close()
    one.close()
    plain.close()
    report.write()
    draw(report, f"Macro steps through collector + LatentActionEnv, {env_id}")


def make_policy(observation_dim: int, action_dim: int) -> FlowPolicy:
    """A flow policy 3x256; decoding costs the same trained or not."""
    torch.manual_seed(0)
    return FlowPolicy(observation_dim, action_dim, HORIZON, network={"kind": "mlp", "width": 256, "depth": 3}).freeze()


class RawEnv:
    """A gym env with a batch ``[N]``, in this process."""

    def __init__(self, env: Any) -> None:
        self.env = env
        self.observation, _ = self.env.reset(seed=0)

    def step(self, chunks: Tensor) -> None:
        """Executes ``[N, HORIZON, action_dim]``."""
        for j in range(HORIZON):
            self.observation, _, _, truncated, _ = self.env.step(chunks[:, j])
        if truncated.all():  # the episodes begin together, and all end at the limit
            self.observation, _ = self.env.reset()

    def close(self) -> None:
        self.env.close()


class RawWorkers:
    """One such env in each of several processes: chunks go in, observations come out."""

    def __init__(self, make: Callable[[], RawEnv], workers: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipes, self.processes = [], []
        for _ in range(workers):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(make, theirs), daemon=True)
            process.start()
            self.pipes.append(ours)
            self.processes.append(process)
        self.observation = self._receive()

    def _receive(self) -> Tensor:
        return torch.stack([torch.from_numpy(pipe.recv()) for pipe in self.pipes])

    def step(self, chunks: Tensor) -> None:
        """Executes ``[workers, N, HORIZON, action_dim]``."""
        for pipe, chunk in zip(self.pipes, chunks.numpy(), strict=True):
            pipe.send(chunk)
        self.observation = self._receive()

    def close(self) -> None:
        for pipe, process in zip(self.pipes, self.processes, strict=True):
            pipe.send(None)
            process.join()


def make_raw_env(env_id: str, envs: int) -> RawEnv:
    return RawEnv(
        make_gym_env(env_id, control_mode=CONTROL_MODE, max_episode_steps=LIMIT, num_envs=envs, sim_backend="physx_cpu")
    )


def _serve(make: Callable[[], RawEnv], pipe: Any) -> None:
    torch.set_num_threads(1)
    env = make()
    while True:
        pipe.send(env.observation.numpy())
        chunk = pipe.recv()
        if chunk is None:
            return
        env.step(torch.from_numpy(chunk))


@torch.no_grad()
def bare_loop(envs: RawEnv | RawWorkers, macro_steps: int) -> None:
    """Draw noise, decode, step."""
    policy = make_policy(envs.observation.shape[-1], ACTION_DIM)
    for _ in range(macro_steps):
        noise = torch.randn(*envs.observation.shape[:-1], HORIZON, ACTION_DIM)
        envs.step(policy(envs.observation, noise))


class Collected:
    """The same work through ``Collector`` and ``LatentActionEnv``."""

    def __init__(self, env_id: str, workers: int, envs: int, macro_steps: int) -> None:
        make = partial(make_worker_env, env_id, envs)
        macro_env = make() if workers == 1 else ParallelEnv(workers, make, mp_start_method="spawn", use_buffers=False)
        observation_dim = macro_env.observation_spec["observation"].shape[-1]
        self.env = LatentActionEnv(macro_env, make_policy(observation_dim, ACTION_DIM))
        self.collector = Collector(
            self.env,
            PriorNoise(self.env.latent_dim),
            frames_per_batch=macro_steps // (workers * envs) * workers * envs,
            total_frames=-1,
            auto_register_policy_transforms=False,
        )
        self.batches = iter(self.collector)

    def run(self) -> None:
        batch = next(self.batches)
        assert batch["next", "chunk_steps"].sum() == batch.numel() * HORIZON

    def close(self) -> None:
        self.collector.shutdown()


def make_worker_env(env_id: str, envs: int):
    """What a worker process steps."""
    env = ManiSkillEnv(
        env_id,
        CONTROL_MODE,
        envs,
        sim_backend="physx_cpu",
        max_episode_steps=LIMIT,
        terminate_on_success=False,
        seed=0,
    )
    return make_macro_env(env, act_horizon=HORIZON, gamma=GAMMA)
