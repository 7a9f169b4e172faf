"""Stage 2, online: the latent policy by DSRL-SAC or DSRL-NA, a loop to be read from top to bottom (SPEC §2, §3)."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from tensordict import TensorDictBase
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torchrl.checkpoint import Checkpoint, CheckpointRotation, GlobalRNGState
from torchrl.modules import ProbabilisticActor
from tqdm import tqdm

from dsrl_torchrl.data.decoded_pairs import draw_alias_pairs, refresh_alias_pairs
from dsrl_torchrl.data.macro_transitions import check_finite, to_macro_transitions
from dsrl_torchrl.errors import NonFiniteError
from dsrl_torchrl.latent_env.latent_action_env import LatentActionEnv
from dsrl_torchrl.networks.behaviour_policy import BehaviourPolicy
from dsrl_torchrl.latent_env.prior_noise import PriorNoise
from dsrl_torchrl.training.accelerated_update import AcceleratedUpdate
from dsrl_torchrl.training.checkpoints import Counters, load_newest
from dsrl_torchrl.collect.collection import Collection, CollectionInTurn, OverlappedCollection
from dsrl_torchrl.collect.episode_statistics import EpisodeTracker
from dsrl_torchrl.training.latent_networks import load_actor, make_actor
from dsrl_torchrl.training.learner import load_learned_critics, make_update
from dsrl_torchrl.training.network_config import NetworkConfig
from dsrl_torchrl.data.replay import MixedReplay
from dsrl_torchrl.training.rounds import make_updates
from dsrl_torchrl.training.stage2_config import Stage2Config


@dataclass(frozen=True)
class Stage2Result:
    """The learned latent policy (averaged over the last updates) and what it cost."""

    actor: ProbabilisticActor
    env_steps: int
    macro_steps: int
    updates: int
    wall_seconds: float


def train_stage2(
    env: LatentActionEnv,
    config: Stage2Config,
    networks: NetworkConfig,
    *,
    seed: int,
    folder: Path,
    stage1: Path | None = None,
    offline: TensorDictBase | None = None,
    make_worker_env: Callable[[], LatentActionEnv] | None = None,
    resume: bool = False,
    make_log: Callable[[int], Callable[[int, dict[str, float]], None]] = lambda env_steps: lambda step, metrics: None,
    progress: bool = True,
) -> Stage2Result:
    """Trains the latent policy online and returns it.

    The run is cut into segments that end with a checkpoint. At the start of a segment the envs are reset from a seed
    that depends on ``seed`` and the segment alone, so a killed run that resumes makes the same segments again, bit for
    bit where the simulator is deterministic.

    What is returned is an exponential moving average of the actor's parameters over its updates
    (``config.actor_average``). Late in a run the critics' errors outweigh what is left to gain, and the actor wanders:
    its average does not. The actor itself collects.

    With ``make_worker_env`` another process collects the next batch while this one makes the updates that are owed for
    the last. The counts are as exact, and a killed run loses nothing that its last checkpoint holds, but two runs
    differ: the policy that collects is one round old, and the envs go on through the checkpoints, so that only a
    resumed run resets them.

    Args:
        env: the latent env; the base policy's observation statistics standardise the networks' input. It is stepped
            only where ``make_worker_env`` is not given.
        config: hyper-parameters.
        networks: sizes; those of stage 1 where that is loaded.
        seed: seeds networks, noise and env resets.
        folder: checkpoints go to ``folder/checkpoints``.
        stage1: folder of stage 1's networks, read where ``config.init_actor`` or ``config.init_critics`` ask for them.
        offline: macro transitions ``[n]`` that ``config.offline_fraction`` of every batch is drawn from.
        make_worker_env: makes the same env for a process of its own, which collects beside the updates; it must be
            picklable by :mod:`cloudpickle`.
        resume: continue from the newest checkpoint there, if any.
        make_log: called once with the env steps that the run (re)starts from; returns a function that is called
            with the number of env steps and a dict of floats.
        progress: show a progress bar.

    Raises:
        NonFiniteError: an observation, reward or loss became NaN or infinite; the last checkpoint stays.
        CollectionError: the collecting process failed; the last checkpoint stays.
    """
    torch.manual_seed(seed)
    actor = make_actor(env, networks)
    if stage1 is not None and config.init_actor:
        actor.load_state_dict(load_actor(env, networks, stage1).state_dict())
    update = make_update(env, actor, config, networks, noise_aliasing=config.noise_aliasing)
    if stage1 is not None and config.init_critics:
        load_learned_critics(update, stage1)
    alias_samples = config.alias_samples if config.noise_aliasing else 0
    add_alias_pairs = partial(
        draw_alias_pairs, decode=env.decoder.decode, latent_dim=env.noise_layout.dim, samples=alias_samples
    )
    add_online_alias_pairs = partial(add_alias_pairs, behaviour_fraction=config.behaviour_fraction)
    if offline is not None:
        offline = add_alias_pairs(offline.copy())
    replay = MixedReplay(
        min(config.replay_size, config.total_env_steps),  # a macro step is at least one env step
        config.batch_size,
        offline,
        config.offline_fraction,
        device=next(actor.parameters()).device,
    )
    # A policy that has learned offline collects its own warm-up; an untrained one would be worse than the prior.
    behaviour = BehaviourPolicy(actor, warm_up=None if config.init_actor else PriorNoise(env.noise_layout.dim))
    fast_update = AcceleratedUpdate(update, config.compile)
    averaged = AveragedModel(actor, multi_avg_fn=get_ema_multi_avg_fn(config.actor_average))
    episodes = EpisodeTracker(config.success_window)
    counters = Counters()
    checkpoint = Checkpoint(
        losses=update,
        averaged_actor=averaged,
        optimisers=update.optimiser_state(),
        replay=replay,
        episodes=episodes,
        counters=counters,
        rng=GlobalRNGState(),
    )
    rotation = CheckpointRotation(folder / "checkpoints", keep_last=2)
    if resume:
        load_newest(checkpoint, rotation)
    log = make_log(counters.env_steps)
    metrics: dict[str, torch.Tensor] = {}

    collection: Collection = (
        CollectionInTurn(env, behaviour, config.macro_steps_per_round)
        if make_worker_env is None
        else OverlappedCollection(make_worker_env, behaviour, config.macro_steps_per_round)
    )
    bar = tqdm(
        total=config.total_env_steps, initial=counters.env_steps, unit="step", mininterval=1.0, disable=not progress
    )
    bar.set_description("stage 2", refresh=False)
    with closing(collection), bar:
        while counters.env_steps < config.total_env_steps:
            started = time.monotonic()
            warming_up = counters.env_steps < config.warmup_env_steps
            segment_end = (
                config.warmup_env_steps
                if warming_up
                else min(counters.env_steps + config.checkpoint_env_steps, config.total_env_steps)
            )
            behaviour.warming_up = warming_up
            if collection.begin_segment(_segment_seed(seed, counters.segments)):
                episodes.restart()
            for batch in collection:
                transitions = to_macro_transitions(batch)
                check_finite(transitions, counters.env_steps)
                replay.online.extend(add_online_alias_pairs(transitions))
                before = counters.env_steps
                counters.env_steps += int(transitions["next", "macro_steps"].sum())
                counters.macro_steps += len(transitions)
                episodes.update(batch)
                if alias_samples and config.alias_refresh:
                    refresh_alias_pairs(replay.online, config.alias_refresh, add_online_alias_pairs)
                if not warming_up:
                    _update_round(
                        fast_update, partial(averaged.update_parameters, actor), replay, config, counters, metrics, bar
                    )
                bar.update(counters.env_steps - before)
                if counters.env_steps // config.log_env_steps > before // config.log_env_steps:
                    log(counters.env_steps, _log_values(metrics, episodes, counters, len(replay.online), config))
                if counters.env_steps >= segment_end:
                    break
            counters.segments += 1
            counters.wall_seconds += time.monotonic() - started
            rotation.save(checkpoint, step=counters.env_steps)
    return Stage2Result(
        averaged.module, counters.env_steps, counters.macro_steps, counters.updates, counters.wall_seconds
    )


def _update_round(
    update: AcceleratedUpdate,
    average: Callable[[], None],
    replay: MixedReplay,
    config: Stage2Config,
    counters: Counters,
    metrics: dict[str, torch.Tensor],
    bar: tqdm,
) -> None:
    """Makes the updates that the UTD ratio owes for the macro steps collected so far; the newest metrics stay."""
    owed = int(config.utd * counters.macro_steps) - counters.updates
    metrics |= make_updates(update, replay.sample, config, first=counters.updates, updates=owed, after_actor=average)
    counters.updates += owed
    bar.set_postfix(updates=counters.updates, refresh=False)
    for name, value in metrics.items():
        if not torch.isfinite(value):
            raise NonFiniteError(name, counters.updates, "update", "lower the learning rates or alpha_init")


def _log_values(
    metrics: dict[str, torch.Tensor],
    episodes: EpisodeTracker,
    counters: Counters,
    replay_size: int,
    config: Stage2Config,
) -> dict[str, float]:
    return {
        **{name: float(value) for name, value in metrics.items()},
        **episodes.metrics(),
        "train/updates": counters.updates,
        "train/utd": counters.updates / max(counters.macro_steps, 1),
        "replay_buffer/size": replay_size,
        "replay_buffer/utilization": replay_size / config.replay_size,
    }


def _segment_seed(seed: int, segment: int) -> int:
    # Well below the held-out evaluation seeds (evaluation.py).
    return (seed * 1_000 + segment) * 100 % 1_000_000_000
