"""Stage 2, online: SAC on the latent action, a loop to be read from top to bottom (SPEC §2)."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from torchrl.checkpoint import Checkpoint, CheckpointRotation, GlobalRNGState
from torchrl.collectors import Collector
from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer
from torchrl.modules import ProbabilisticActor
from tqdm import tqdm

from dsrl_torchrl.data.transitions import check_finite, to_macro_transitions
from dsrl_torchrl.errors import CheckpointError, NonFiniteError, UserError
from dsrl_torchrl.latent_env.latent_action_env import LatentActionEnv
from dsrl_torchrl.modules.latent_actor import make_latent_actor
from dsrl_torchrl.modules.latent_critic import make_latent_critic
from dsrl_torchrl.modules.prior_noise import PriorNoise
from dsrl_torchrl.objectives.sac import LatentSACLoss, make_sac_loss
from dsrl_torchrl.training.episodes import EpisodeTracker
from dsrl_torchrl.training.update import SACUpdate

ACTIVATIONS = {"tanh": nn.Tanh, "relu": nn.ReLU, "silu": nn.SiLU}


@dataclass(frozen=True)
class Stage2Config:
    """Hyper-parameters of DSRL-SAC; the values that a run uses are in ``conf/algorithm``."""

    total_env_steps: int = 40_000  # primitive env steps, warm-up included
    warmup_env_steps: int = 4_000  # collected with the base policy's prior noise
    macro_steps_per_round: int = 8  # macro steps collected, over all envs, between two rounds of updates
    utd: float = 20  # gradient updates per collected macro step
    critic_only_updates: int = 2_000  # first updates that leave the actor alone
    actor_interval: int = 1  # critic updates per actor update
    batch_size: int = 256
    replay_size: int = 200_000  # macro transitions
    gamma: float = 0.99  # per primitive step
    tau: float = 0.005  # Polyak rate of the targets
    actor_lr: float = 1e-4
    critic_lr: float = 3e-4
    alpha_lr: float = 3e-4
    max_grad_norm: float | None = None
    num_critics: int = 2
    backup: str = "min"  # over the ensemble, in targets and actor
    alpha_init: float = 0.01
    alpha_parameterisation: str = "log"
    fixed_alpha: bool = False
    target_entropy_per_dim: float = -0.5  # for noise scaled to [-1, 1]
    num_cells: tuple[int, ...] = (256, 256, 256)
    activation: str = "tanh"
    layer_norm: bool = True  # critic
    initial_std: float = 0.5  # of the actor, before the squashing
    checkpoint_env_steps: int = 5_000
    log_env_steps: int = 250
    success_window: int = 50  # episodes in the running success

    def __post_init__(self) -> None:
        for name, kind in self.__annotations__.items():
            value = getattr(self, name)
            if kind in ("int", "float") and (isinstance(value, bool) or not isinstance(value, (int, float))):
                raise UserError(f"{name} must be a number, got {value!r}")
        if self.utd < 1:
            raise UserError(f"utd (gradient updates per macro step) must be at least 1, got {self.utd}")
        positive = (
            "total_env_steps", "macro_steps_per_round", "actor_interval", "batch_size", "replay_size",
            "actor_lr", "critic_lr", "alpha_lr", "checkpoint_env_steps", "log_env_steps", "success_window",
            "initial_std",
        )  # fmt: skip
        for name in positive:
            if not getattr(self, name) > 0:
                raise UserError(f"{name} must be positive, got {getattr(self, name)}")
        for name in ("warmup_env_steps", "critic_only_updates"):
            if getattr(self, name) < 0:
                raise UserError(f"{name} must not be negative, got {getattr(self, name)}")
        if not 0 < self.tau <= 1:
            raise UserError(f"tau must lie in (0, 1], got {self.tau}")
        if self.warmup_env_steps >= self.total_env_steps:
            raise UserError(
                f"warmup_env_steps ({self.warmup_env_steps}) must be below total_env_steps ({self.total_env_steps})"
            )
        if self.activation not in ACTIVATIONS:
            raise UserError(f"activation must be one of {', '.join(ACTIVATIONS)}; got {self.activation!r}")


def make_actor(env: LatentActionEnv, config: Stage2Config) -> ProbabilisticActor:
    """The latent policy for ``env``, with the base policy's observation statistics."""
    decoder, scales = env.decoder, env.decoder.base_policy.normalisation
    return make_latent_actor(
        observation_mean=scales.observation_mean,
        observation_std=scales.observation_std,
        latent_dim=decoder.layout.dim,
        action_magnitude=decoder.action_magnitude,
        num_cells=config.num_cells,
        activation=ACTIVATIONS[config.activation],
        initial_std=config.initial_std,
    )


def make_loss(env: LatentActionEnv, actor: ProbabilisticActor, config: Stage2Config) -> LatentSACLoss:
    """The SAC loss for ``env`` with a fresh critic ensemble."""
    decoder, scales = env.decoder, env.decoder.base_policy.normalisation
    critic = make_latent_critic(
        observation_mean=scales.observation_mean,
        observation_std=scales.observation_std,
        latent_dim=decoder.layout.dim,
        action_magnitude=decoder.action_magnitude,
        num_cells=config.num_cells,
        activation=ACTIVATIONS[config.activation],
        layer_norm=config.layer_norm,
    )
    return make_sac_loss(
        actor,
        critic,
        latent_dim=decoder.layout.dim,
        action_magnitude=decoder.action_magnitude,
        gamma=config.gamma,
        num_critics=config.num_critics,
        backup=config.backup,
        alpha_init=config.alpha_init,
        alpha_parameterisation=config.alpha_parameterisation,
        fixed_alpha=config.fixed_alpha,
        target_entropy_per_dim=config.target_entropy_per_dim,
    )


def make_replay_buffer(config: Stage2Config) -> TensorDictReplayBuffer:
    """Uniform replay of macro transitions."""
    return TensorDictReplayBuffer(storage=LazyTensorStorage(config.replay_size), batch_size=config.batch_size)


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
    counters = {"env_steps": 0, "macro_steps": 0, "updates": 0, "segments": 0, "wall_seconds": 0.0}
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
    log = make_log(counters["env_steps"])
    metrics: dict[str, torch.Tensor] = {}

    bar = tqdm(total=config.total_env_steps, initial=counters["env_steps"], unit="step", disable=not progress)
    bar.set_description("stage 2")
    while counters["env_steps"] < config.total_env_steps:
        started = time.monotonic()
        warming_up = counters["env_steps"] < config.warmup_env_steps
        segment_end = (
            config.warmup_env_steps
            if warming_up
            else min(counters["env_steps"] + config.checkpoint_env_steps, config.total_env_steps)
        )
        env.set_seed(_segment_seed(seed, counters["segments"]))
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
            check_finite(transitions, counters["env_steps"])
            buffer.extend(transitions)
            before = counters["env_steps"]
            counters["env_steps"] += int(transitions["next", "macro_steps"].sum())
            counters["macro_steps"] += len(transitions)
            episodes.update(batch)
            if not warming_up:
                _update_round(update, buffer, config, counters, metrics, bar)
            bar.update(counters["env_steps"] - before)
            if counters["env_steps"] // config.log_env_steps > before // config.log_env_steps:
                log(counters["env_steps"], _log_values(metrics, episodes, counters, buffer, config))
            if counters["env_steps"] >= segment_end:
                break
        collector.shutdown(close_env=False)
        counters["segments"] += 1
        counters["wall_seconds"] += time.monotonic() - started
        rotation.save(checkpoint, step=counters["env_steps"])
    bar.close()
    return Stage2Result(actor, counters["env_steps"], counters["updates"], counters["wall_seconds"])


def _load_newest(checkpoint: Checkpoint, rotation: CheckpointRotation) -> None:
    newest = rotation.latest()
    if newest is None:
        if any(rotation.directory.glob("checkpoint*")):
            raise CheckpointError(f"no readable checkpoint is left in {rotation.directory}; start anew with another name=")
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
    counters: dict,
    metrics: dict[str, torch.Tensor],
    bar: tqdm,
) -> None:
    """Makes the updates that the UTD ratio owes for the macro steps collected so far; the newest metrics stay."""
    owed = int(config.utd * counters["macro_steps"]) - counters["updates"]
    for _ in range(owed):
        step = counters["updates"]
        update_actor = step >= config.critic_only_updates and step % config.actor_interval == 0
        metrics.update(update(buffer.sample(), update_actor=update_actor).items())
        counters["updates"] += 1
        if counters["updates"] % 100 == 0:
            bar.set_postfix(updates=counters["updates"])
    for name, value in metrics.items():
        if not torch.isfinite(value):
            raise NonFiniteError(name, counters["updates"], "update", "lower the learning rates or alpha_init")


def _log_values(
    metrics: dict[str, torch.Tensor],
    episodes: EpisodeTracker,
    counters: dict,
    buffer: TensorDictReplayBuffer,
    config: Stage2Config,
) -> dict[str, float]:
    return {
        **{name: float(value) for name, value in metrics.items()},
        **episodes.metrics(),
        "train/updates": counters["updates"],
        "train/utd": counters["updates"] / max(counters["macro_steps"], 1),
        "replay_buffer/size": len(buffer),
        "replay_buffer/utilization": len(buffer) / config.replay_size,
    }


def _segment_seed(seed: int, segment: int) -> int:
    # Well below the held-out evaluation seeds (evaluation.py).
    return (seed * 1_000 + segment) * 100 % 1_000_000_000


def save_actor(actor: ProbabilisticActor, folder: Path) -> None:
    """Writes the latent policy's weights to ``folder/actor.safetensors``, atomically."""
    temporary = folder / "actor.safetensors.tmp"
    save_file({name: tensor.contiguous() for name, tensor in actor.state_dict().items()}, temporary)
    os.replace(temporary, folder / "actor.safetensors")


def load_actor(env: LatentActionEnv, config: Stage2Config, folder: Path) -> ProbabilisticActor:
    """Reads what :func:`save_actor` wrote, for the same env and configuration.

    Raises:
        CheckpointError: the file is missing, truncated, foreign, or of another size.
    """
    path = folder / "actor.safetensors"
    actor = make_actor(env, config)
    try:
        actor.load_state_dict(load_file(path))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise CheckpointError(f"{path} is no latent policy for this run: {str(error).splitlines()[0]}") from None
    return actor.eval()
