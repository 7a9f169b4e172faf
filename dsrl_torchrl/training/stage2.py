"""Stage 2, online: SAC on the latent action, a loop to be read from top to bottom (SPEC §2)."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torchrl.checkpoint import Checkpoint, CheckpointRotation, GlobalRNGState
from torchrl.collectors import Collector
from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer
from torchrl.modules import ProbabilisticActor
from tqdm import tqdm

from dsrl_torchrl.data.transitions import check_finite, to_macro_transitions
from dsrl_torchrl.errors import CheckpointError, NonFiniteError
from dsrl_torchrl.latent_env.latent_action_env import LatentActionEnv
from dsrl_torchrl.modules.prior_noise import PriorNoise
from dsrl_torchrl.training.episodes import EpisodeTracker
from dsrl_torchrl.training.stage2_config import Stage2Config
from dsrl_torchrl.training.stage2_networks import make_actor, make_loss
from dsrl_torchrl.training.update import SACUpdate


def make_replay_buffer(config: Stage2Config) -> TensorDictReplayBuffer:
    """Uniform replay of macro transitions."""
    return TensorDictReplayBuffer(storage=LazyTensorStorage(config.replay_size), batch_size=config.batch_size)


@dataclass
class Counters:
    """How far a run is, as one checkpoint component."""

    env_steps: int = 0
    macro_steps: int = 0
    updates: int = 0
    segments: int = 0
    wall_seconds: float = 0.0

    def state_dict(self) -> dict:
        """The counters by name."""
        return asdict(self)

    def load_state_dict(self, state: dict) -> None:
        """Restores :meth:`state_dict`."""
        for name, value in state.items():
            setattr(self, name, value)


@dataclass(frozen=True)
class Stage2Result:
    """The learned latent policy and what it cost."""

    actor: ProbabilisticActor
    env_steps: int
    updates: int
    wall_seconds: float


def train_stage2(
    env: LatentActionEnv,
    config: Stage2Config,
    *,
    seed: int,
    folder: Path,
    resume: bool = False,
    make_log: Callable[[int], Callable[[int, dict[str, float]], None]] = lambda env_steps: lambda step, metrics: None,
    progress: bool = True,
) -> Stage2Result:
    """Trains the latent policy online and returns it.

    The run is cut into segments that end with a checkpoint. At the start of a segment the envs are reset from a seed
    that depends on ``seed`` and the segment alone, so a killed run that resumes makes the same segments again, bit for
    bit where the simulator is deterministic.

    Args:
        env: the latent env; the base policy's observation statistics standardise the networks' input.
        config: hyper-parameters.
        seed: seeds networks, noise and env resets.
        folder: checkpoints go to ``folder/checkpoints``.
        resume: continue from the newest checkpoint there, if any.
        make_log: called once with the env steps that the run (re)starts from; returns a function that is called
            with the number of env steps and a dict of floats.
        progress: show a progress bar.

    Raises:
        NonFiniteError: an observation, reward or loss became NaN or infinite; the last checkpoint stays.
    """
    torch.manual_seed(seed)
    actor = make_actor(env, config)
    loss = make_loss(env, actor, config)
    update = SACUpdate(
        loss,
        actor_lr=config.actor_lr,
        critic_lr=config.critic_lr,
        alpha_lr=config.alpha_lr,
        tau=config.tau,
        max_grad_norm=config.max_grad_norm,
    )
    buffer = make_replay_buffer(config)
    prior = PriorNoise(env.noise_layout.dim)
    episodes = EpisodeTracker(config.success_window)
    counters = Counters()
    checkpoint = Checkpoint(
        loss=loss,
        optimisers=update.optimiser_state(),
        replay=buffer,
        episodes=episodes,
        counters=counters,
        rng=GlobalRNGState(),
    )
    rotation = CheckpointRotation(folder / "checkpoints", keep_last=2)
    if resume:
        _load_newest(checkpoint, rotation)
    log = make_log(counters.env_steps)
    metrics: dict[str, torch.Tensor] = {}

    bar = tqdm(
        total=config.total_env_steps, initial=counters.env_steps, unit="step", mininterval=1.0, disable=not progress
    )
    bar.set_description("stage 2", refresh=False)
    while counters.env_steps < config.total_env_steps:
        started = time.monotonic()
        warming_up = counters.env_steps < config.warmup_env_steps
        segment_end = (
            config.warmup_env_steps
            if warming_up
            else min(counters.env_steps + config.checkpoint_env_steps, config.total_env_steps)
        )
        env.set_seed(_segment_seed(seed, counters.segments))
        collector = Collector(
            env,
            prior if warming_up else actor,
            frames_per_batch=config.macro_steps_per_round,
            total_frames=-1,
            auto_register_policy_transforms=False,  # neither policy is recurrent
        )
        episodes.restart()
        for batch in collector:
            transitions = to_macro_transitions(batch)
            check_finite(transitions, counters.env_steps)
            buffer.extend(transitions)
            before = counters.env_steps
            counters.env_steps += int(transitions["next", "macro_steps"].sum())
            counters.macro_steps += len(transitions)
            episodes.update(batch)
            if not warming_up:
                _update_round(update, buffer, config, counters, metrics, bar)
            bar.update(counters.env_steps - before)
            if counters.env_steps // config.log_env_steps > before // config.log_env_steps:
                log(counters.env_steps, _log_values(metrics, episodes, counters, buffer, config))
            if counters.env_steps >= segment_end:
                break
        collector.shutdown(close_env=False)
        counters.segments += 1
        counters.wall_seconds += time.monotonic() - started
        rotation.save(checkpoint, step=counters.env_steps)
    bar.close()
    return Stage2Result(actor, counters.env_steps, counters.updates, counters.wall_seconds)


def _load_newest(checkpoint: Checkpoint, rotation: CheckpointRotation) -> None:
    newest = rotation.latest()
    if newest is None:
        if any(rotation.directory.glob("checkpoint*")):
            raise CheckpointError(
                f"no readable checkpoint is left in {rotation.directory}; start anew with another name="
            )
        return
    try:
        checkpoint.load(newest)
    # TorchRL reports damage by whatever its readers raise: KeyError, RuntimeError, OSError, JSONDecodeError...
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise CheckpointError(
            f"{newest} is damaged or belongs to another run ({reason}); remove it to resume from the one before it"
        ) from error


def _update_round(
    update: SACUpdate,
    buffer: TensorDictReplayBuffer,
    config: Stage2Config,
    counters: Counters,
    metrics: dict[str, torch.Tensor],
    bar: tqdm,
) -> None:
    """Makes the updates that the UTD ratio owes for the macro steps collected so far; the newest metrics stay."""
    owed = int(config.utd * counters.macro_steps) - counters.updates
    for _ in range(owed):
        step = counters.updates
        update_actor = step >= config.critic_only_updates and step % config.actor_interval == 0
        metrics.update(update(buffer.sample(), update_actor=update_actor).items())
        counters.updates += 1
        if counters.updates % 100 == 0:
            bar.set_postfix(updates=counters.updates, refresh=counters.updates % 500 == 0)
    for name, value in metrics.items():
        if not torch.isfinite(value):
            raise NonFiniteError(name, counters.updates, "update", "lower the learning rates or alpha_init")


def _log_values(
    metrics: dict[str, torch.Tensor],
    episodes: EpisodeTracker,
    counters: Counters,
    buffer: TensorDictReplayBuffer,
    config: Stage2Config,
) -> dict[str, float]:
    return {
        **{name: float(value) for name, value in metrics.items()},
        **episodes.metrics(),
        "train/updates": counters.updates,
        "train/utd": counters.updates / max(counters.macro_steps, 1),
        "replay_buffer/size": len(buffer),
        "replay_buffer/utilization": len(buffer) / config.replay_size,
    }


def _segment_seed(seed: int, segment: int) -> int:
    # Well below the held-out evaluation seeds (evaluation.py).
    return (seed * 1_000 + segment) * 100 % 1_000_000_000
