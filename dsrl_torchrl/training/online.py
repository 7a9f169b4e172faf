"""Stage 2, online: any agent in the latent env, a loop to be read from top to bottom."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from pydantic import model_validator
from tensordict import TensorDictBase
from tqdm import tqdm

from dsrl_torchrl import seeds
from dsrl_torchrl.agents.agent import Agent
from dsrl_torchrl.collect.episode_statistics import EpisodeTracker
from dsrl_torchrl.collect.macro_steps import macro_steps_of
from dsrl_torchrl.data.macro_transitions import check_finite, to_macro_transitions
from dsrl_torchrl.data.replay import Replay
from dsrl_torchrl.data.rollout import Rollout
from dsrl_torchrl.errors import UserError
from dsrl_torchrl.latent_env.latent_action_env import LatentActionEnv
from dsrl_torchrl.latent_env.macro_step import STEPS_KEY
from dsrl_torchrl.latent_env.prior_noise import PriorNoise, make_prior
from dsrl_torchrl.options import Options, option
from dsrl_torchrl.training.checkpoints import Checkpoints
from dsrl_torchrl.training.metrics_log import MetricsLog
from dsrl_torchrl.training.run_state import Counters, OptimiserState, RNGState
from dsrl_torchrl.training.update_rounds import AcceleratedUpdate, OwedUpdates, check_metrics

if TYPE_CHECKING:
    from dsrl_torchrl.collect.ray_workers import RayWorkers

#: Episodes in the running success.
SUCCESS_WINDOW = 50
#: Options that change nothing in what is learned: a checkpoint of others is as good.
WITHOUT_EFFECT = {"log_env_steps", "replay_memmap", "eval_env_steps", "eval_episodes"}


class OnlineConfig(Options):
    """The online loop."""

    total_env_steps: int = option(60_000, "primitive env steps, warm-up included; 0: `dsrl run` ends offline", ge=0)
    warmup_env_steps: int = option(2_000, "collected before the first update; on-policy agents have none", ge=0)
    macro_steps_per_round: int = option(8, "collected between two rounds of updates; at least one of every env", ge=1)
    utd: float = option(1.0, "gradient updates per macro step; those of the warm-up come at its end", gt=0)
    replay_size: int = option(200_000, "macro transitions", ge=1)
    replay_memmap: bool = option(False, "keep the replay on disk (TMPDIR), e.g. for images")
    offline_fraction: float | None = option(
        0.25, "of every batch, from stage 1's data; null: prefilled, their share of all that is stored", ge=0, lt=1
    )
    checkpoint_env_steps: int = option(
        5_000, "env steps between two checkpoints, at which all envs are reset; the warm-up has one, at its end", ge=1
    )
    log_env_steps: int = option(250, "env steps between two rows of metrics", ge=1)
    eval_env_steps: int | None = option(
        None, "env steps between two evaluations during training, each at the next checkpoint; null: none", ge=1
    )
    eval_episodes: int = option(
        50, "sampled, and as many by the mode, on resets of their own; in no budget", ge=1, le=len(seeds.PROGRESS)
    )

    @model_validator(mode="after")
    def _learns(self) -> OnlineConfig:
        if 0 < self.total_env_steps <= self.warmup_env_steps:
            raise ValueError(
                f"warmup_env_steps ({self.warmup_env_steps}) must be below total_env_steps ({self.total_env_steps})"
            )
        return self


@dataclass(frozen=True)
class OnlineResult:
    """What the online stage cost; the policy is ``agent.kept_policy``."""

    env_steps: int
    macro_steps: int
    updates: int
    wall_seconds: float


def train_online(
    env: LatentActionEnv,
    agent: Agent,
    config: OnlineConfig,
    *,
    seed: int,
    folder: Path,
    offline: TensorDictBase | None = None,
    warm_up_by_prior: bool = True,
    resume: bool = False,
    key: str = "",
    log: MetricsLog | None = None,
    progress: bool = True,
    say: Callable[[str], None] = warnings.warn,
    workers: RayWorkers | None = None,
    evaluation: Callable[[Agent], dict[str, float]] | None = None,
) -> OnlineResult:
    """Trains ``agent`` online.

    The run is cut into segments that end with a checkpoint. At the start of a segment the envs are reset from a seed
    that depends on ``seed`` and the segment alone, so a killed run that resumes makes the same segments again, bit for
    bit where the simulator is deterministic.

    The policy is one round old: all envs make a macro step, then the updates for the round before are made, then what
    the envs gave is stored. Envs in worker processes simulate during these updates; it's the same run without them. An
    on-policy agent gets the first macro step of a round so, too, with the log-density of the policy that drew it.

    Args:
        env: the latent env.
        agent: trained in place, on the env's device.
        config: of the loop.
        seed: seeds noise and env resets.
        folder: checkpoints go to ``folder/checkpoints``.
        offline: macro transitions ``[n]`` that ``config.offline_fraction`` of every batch is drawn from.
        warm_up_by_prior: collect the warm-up with the base policy's prior noise: an untrained agent would be worse. One
            that has learned offline collects its own.
        resume: continue from the newest checkpoint there, if any; one of a finished run with a smaller
            ``total_env_steps`` too.
        key: whatever else the run depends on: a checkpoint of another key is not resumed.
        log: takes the metrics.
        progress: show a progress bar.
        say: prints one line to the user.
        workers: collect, in place of ``env``.
        evaluation: makes metrics of the agent before the first step and then every ``config.eval_env_steps``, which
            needs it. It must leave agent and random number generators as they are
            (:class:`~dsrl_torchrl.evaluation.progress.ProgressEvaluation`), and is in no budget, of steps nor seconds.

    Raises:
        UserError: the env's discount is not the agent's, an on-policy agent is to get offline data, or the checkpoint
            is beyond ``config.total_env_steps``.
        CheckpointError: none of the checkpoints there can be used, or there are some and ``resume`` is False.
        NonFiniteError: an observation, reward or metric became NaN or infinite; the last checkpoint stays.
    """
    if env.gamma is not None and env.gamma != agent.config.gamma:
        raise UserError(f"the env sums rewards with gamma {env.gamma}, the agent bootstraps with {agent.config.gamma}")
    check_on_policy(type(agent), config)
    if (line := _actor_waits(agent, config)) is not None:
        say(line)
    torch.manual_seed(seed)
    replay = make_replay(agent, config, offline)
    prior = make_prior(agent.decoder) if workers is None else PriorNoise(agent.decoder.latent_dim)
    updates = OwedUpdates(AcceleratedUpdate(agent), replay.sample, config.utd)
    episodes, counters = EpisodeTracker(SUCCESS_WINDOW), Counters()
    log = MetricsLog() if log is None else log
    loop = config.model_dump(mode="json", include=set(OnlineConfig.model_fields) - {"total_env_steps", *WITHOUT_EFFECT})
    checkpoints = Checkpoints(
        folder / "checkpoints",
        identity={"stage": "online", "seed": seed, "key": key, "loop": loop, **agent.identity()},
        components={
            "agent": agent,
            "optimisers": OptimiserState(agent.optimisers),
            "replay": replay,
            "episodes": episodes,
            "counters": counters,
            "log": log,
            "rng": RNGState(),
        },
        say=say,
    )
    checkpoints.start(resume)
    at_once = env.batch_size.numel() * env.decoder.act_horizon * (1 if workers is None else workers.num_workers)
    if counters.env_steps >= config.total_env_steps + at_once:  # no run of that budget gets there
        raise UserError(
            f"{checkpoints.folder} goes on from {counters.env_steps} env steps, more than "
            f"stage2.total_env_steps={config.total_env_steps}: give it as many or more, or choose another name="
        )
    bar = tqdm(
        total=config.total_env_steps, initial=counters.env_steps, unit="step", mininterval=1.0, disable=not progress
    )
    bar.set_description("stage 2", refresh=False)
    with bar:
        if counters.env_steps == 0 and evaluation is not None and _due(-1, 0, config.eval_env_steps):
            log(0, evaluation(agent))
        while counters.env_steps < config.total_env_steps:
            started, begin = time.monotonic(), counters.env_steps
            updates.metrics = {}  # a resumed run has none from before
            warming_up = counters.env_steps < config.warmup_env_steps and not agent.on_policy
            end = config.warmup_env_steps if warming_up else counters.env_steps + config.checkpoint_env_steps
            policy = prior if warming_up and warm_up_by_prior else agent.policy
            stream = seeds.segment_stream(seed, counters.segments)
            episodes.restart()
            if isinstance(replay, Rollout):
                replay.restart()
            collecting = partial(macro_steps_of, env) if workers is None else workers.collecting
            with collecting(policy, stream, updates.make) as batches:
                for batch in batches:
                    updates.make()
                    transitions = to_macro_transitions(batch, agent.in_keys).to(agent.device)
                    check_finite(transitions, counters.env_steps)
                    replay.extend(agent.store(transitions, online=True))
                    before = counters.env_steps
                    counters.env_steps += int(transitions["next", STEPS_KEY].sum())
                    agent.advance(min(1.0, counters.env_steps / config.total_env_steps))
                    counters.macro_steps += len(transitions)
                    episodes.update(batch)
                    ended = counters.env_steps >= min(end, config.total_env_steps)
                    if not warming_up:
                        round_ended = counters.macro_steps % config.macro_steps_per_round < len(transitions)
                        if round_ended or ended:
                            updates.owe(counters)
                        bar.set_postfix(updates=counters.updates, refresh=False)
                    if ended:
                        updates.make()
                    bar.update(counters.env_steps - before)
                    values = check_metrics(updates.metrics, counters.updates)
                    if counters.env_steps // config.log_env_steps > before // config.log_env_steps:
                        log(counters.env_steps, values | _run_values(episodes, counters, replay))
                    if ended:
                        break
            counters.segments += 1
            counters.wall_seconds += time.monotonic() - started
            if evaluation is not None and _due(begin, counters.env_steps, config.eval_env_steps):
                log(counters.env_steps, evaluation(agent))
            checkpoints.save(counters.env_steps)
    return OnlineResult(counters.env_steps, counters.macro_steps, counters.updates, counters.wall_seconds)


def _due(before: int, now: int, every: int | None) -> bool:
    """Whether a multiple of ``every`` lies in ``(before, now]``."""
    return every is not None and now // every > before // every


def check_on_policy(agent: type[Agent], config: OnlineConfig) -> None:
    """Raises :class:`UserError` for an on-policy agent that would get offline transitions."""
    if agent.on_policy and config.offline_fraction != 0:
        raise UserError(
            f"{agent.__name__} learns from its own newest macro steps alone: set stage2.offline_fraction=0, got "
            f"{config.offline_fraction}"
        )


def _actor_waits(agent: Agent, config: OnlineConfig) -> str | None:
    """What to say of a run that probably ends before its actor's first update; ``None`` for all others."""
    waits = getattr(agent.config, "critic_only_updates", 0)  # algorithms without an actor have no such option
    expected = int(config.utd * config.total_env_steps / agent.decoder.act_horizon)
    if not 0 < expected <= waits:
        return None
    return (
        f"total_env_steps={config.total_env_steps} with utd={config.utd:g} make about {expected} updates, the first "
        f"{waits} of which leave the actor alone: it hardly learns; raise total_env_steps or utd, or lower "
        "critic_only_updates"
    )


def make_replay(agent: Agent, config: OnlineConfig, offline: TensorDictBase | None = None) -> Replay | Rollout:
    """Where macro steps are kept for ``agent``, with the offline transitions ``[n]`` that it mixes in."""
    batch_size = agent.config.batch_size
    if agent.on_policy:
        return Rollout(config.macro_steps_per_round, batch_size, agent.finish_rollout)
    if offline is not None:
        offline = agent.store(offline.copy(), online=False)
    size = min(config.replay_size, config.total_env_steps)  # a macro step is at least one env step
    return Replay(size, batch_size, offline, config.offline_fraction, agent.device, config.replay_memmap)


def _run_values(episodes: EpisodeTracker, counters: Counters, replay: Replay | Rollout) -> dict[str, float]:
    return {
        **episodes.metrics(),
        "train/updates": counters.updates,
        "train/utd": counters.updates / max(counters.macro_steps, 1),
        "replay_buffer/size": len(replay),
        "replay_buffer/utilization": len(replay) / replay.size,
        "replay_buffer/megabytes": replay.nbytes / 2**20,
    }
