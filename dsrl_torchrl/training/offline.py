"""Stage 1, offline: the latent policy before any online step (SPEC §4)."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from tensordict import TensorDict, TensorDictBase
from torchrl.checkpoint import Checkpoint, CheckpointRotation, GlobalRNGState
from torchrl.envs.utils import ExplorationType, set_exploration_type
from torchrl.modules import ProbabilisticActor
from tqdm import tqdm

from dsrl_torchrl.data.decoded_pairs import draw_alias_pairs
from dsrl_torchrl.errors import NonFiniteError
from dsrl_torchrl.latent_env.latent_action_env import LatentActionEnv
from dsrl_torchrl.training.accelerated_update import AcceleratedUpdate
from dsrl_torchrl.training.checkpoints import Counters, load_newest
from dsrl_torchrl.training.latent_networks import make_actor
from dsrl_torchrl.training.learner import make_update, save_learner
from dsrl_torchrl.training.network_config import NetworkConfig
from dsrl_torchrl.data.replay import offline_buffer, sample_batches
from dsrl_torchrl.training.rounds import make_updates
from dsrl_torchrl.training.stage1_config import Stage1Config
from dsrl_torchrl.training.update import LatentUpdate

CHECK_OBSERVATIONS = 512


@dataclass(frozen=True)
class Stage1Result:
    """The offline latent policy and SPEC §5's check of it.

    Attributes:
        actor: ``π^W``.
        q_prior, q_policy: mean of ``min_i Q^W_i(s, w)`` over fixed observations of the data, for ``w`` of the prior
            and of the policy.
        q_gain, q_gain_stderr: mean of the difference per observation, and its standard error.
        updates: gradient updates made.
        wall_seconds: training time, without the collection of data.
    """

    actor: ProbabilisticActor
    q_prior: float
    q_policy: float
    q_gain: float
    q_gain_stderr: float
    updates: int
    wall_seconds: float


def train_stage1(
    env: LatentActionEnv,
    data: TensorDictBase,
    config: Stage1Config,
    networks: NetworkConfig,
    *,
    seed: int,
    folder: Path,
    resume: bool = False,
    make_log: Callable[[int], Callable[[int, dict[str, float]], None]] = lambda updates: lambda step, metrics: None,
    progress: bool = True,
) -> Stage1Result:
    """Trains ``Q^A``, ``Q^W`` and the latent policy on offline macro transitions; no env step is made.

    Args:
        env: the latent env, for its decoder and sizes.
        data: macro transitions ``[n]`` (:mod:`dsrl_torchrl.data.macro_transitions`). ``action`` is read with
            ``config.use_na=False`` only.
        config: hyper-parameters.
        networks: sizes.
        seed: of networks, batches and noise.
        folder: the networks go there, checkpoints to ``folder/checkpoints``.
        resume: continue from the newest checkpoint, if any.
        make_log: called once with the updates that the run (re)starts from; returns a function that is called with
            the number of updates and a dict of floats.
        progress: show a progress bar.

    Raises:
        NonFiniteError: a loss became NaN or infinite.
    """
    torch.manual_seed(seed)
    actor = make_actor(env, networks)
    update = make_update(env, actor, config, networks, noise_aliasing=config.use_na)
    if config.use_na:
        data = draw_alias_pairs(data.copy(), env.decoder.decode, env.noise_layout.dim, config.alias_samples)
    buffer = offline_buffer(data)
    fixed = data["observation"][torch.randint(len(data), (CHECK_OBSERVATIONS,))]
    fast_update = AcceleratedUpdate(update, config.compile)
    sample = partial(sample_batches, buffer, batch_size=config.batch_size)
    counters = Counters()
    checkpoint = Checkpoint(losses=update, optimisers=update.optimiser_state(), counters=counters, rng=GlobalRNGState())
    rotation = CheckpointRotation(folder / "checkpoints", keep_last=2)
    if resume:
        load_newest(checkpoint, rotation)
    log = make_log(counters.updates)
    started = time.monotonic()
    bar = tqdm(total=config.updates, initial=counters.updates, mininterval=1.0, desc="stage 1", disable=not progress)
    metrics: dict[str, torch.Tensor] = {}
    while counters.updates < config.updates:
        share = min(
            config.target_interval,
            config.updates - counters.updates,
            *(every - counters.updates % every for every in (config.log_updates, config.checkpoint_updates)),
        )
        metrics |= make_updates(fast_update, sample, config, first=counters.updates, updates=share)
        counters.updates += share
        bar.update(share)
        if counters.updates % config.log_updates == 0 or counters.updates == config.updates:
            for name, value in metrics.items():
                if not torch.isfinite(value):
                    raise NonFiniteError(name, counters.updates, "stage 1 update", "lower the learning rates")
            log(counters.updates, {name: float(value) for name, value in metrics.items()} | _check(update, env, fixed))
        if counters.updates % config.checkpoint_updates == 0:
            counters.wall_seconds += time.monotonic() - started
            started = time.monotonic()
            rotation.save(checkpoint, step=counters.updates)
    bar.close()
    counters.wall_seconds += time.monotonic() - started
    save_learner(update, actor, folder)
    check = _check(update, env, fixed)
    return Stage1Result(
        actor,
        q_prior=check["stage1/q_prior"],
        q_policy=check["stage1/q_policy"],
        q_gain=check["stage1/q_gain"],
        q_gain_stderr=check["stage1/q_gain_stderr"],
        updates=counters.updates,
        wall_seconds=counters.wall_seconds,
    )


@torch.no_grad()
def _check(update: LatentUpdate, env: LatentActionEnv, observation: torch.Tensor) -> dict[str, float]:
    """``E[Q^W(s, w)]`` for the prior and for the policy on fixed observations (SPEC §5)."""
    with torch.random.fork_rng(), set_exploration_type(ExplorationType.RANDOM):
        torch.manual_seed(0)  # the same noises at every check
        prior = torch.randn(len(observation), env.noise_layout.dim)
        chosen = update.sac.actor_network(TensorDict({"observation": observation}, [len(observation)]))["action"]
    q_prior = update.sac.noise_values(observation, prior).min(0)[0]
    q_policy = update.sac.noise_values(observation, chosen).min(0)[0]
    gain = q_policy - q_prior
    return {
        "stage1/q_prior": float(q_prior.mean()),
        "stage1/q_policy": float(q_policy.mean()),
        "stage1/q_gain": float(gain.mean()),
        "stage1/q_gain_stderr": float(gain.std() / len(gain) ** 0.5),
    }
