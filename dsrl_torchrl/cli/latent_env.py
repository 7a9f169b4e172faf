"""The latent env that a configuration describes, and what its images will take in memory."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torchrl.envs import EnvBase, TransformedEnv
from torchrl.envs.transforms import Transform

from dsrl_torchrl.cli.config import RunConfig
from dsrl_torchrl.cli.targets import Target, find_target, make, parameters
from dsrl_torchrl.cli.values import AUTO
from dsrl_torchrl.collect.control_group import memory_of_group
from dsrl_torchrl.collect.worker_processes import WorkerEnvs
from dsrl_torchrl.data.frame_pool import is_image
from dsrl_torchrl.errors import UserError
from dsrl_torchrl.latent_env.base_chunk import BASE_CHUNK_KEY, BaseChunk, ResidualPolicy
from dsrl_torchrl.latent_env.base_features import BASE_FEATURES_KEY
from dsrl_torchrl.latent_env.latent_action_env import LatentActionEnv
from dsrl_torchrl.latent_env.macro_step import make_macro_env
from dsrl_torchrl.latent_env.noise_subspace import NoiseSubspace
from dsrl_torchrl.networks.config import check_entries, observation_keys
from dsrl_torchrl.policies import BasePolicy, IdentityPolicy
from dsrl_torchrl.steerability.action_magnitude import DEFAULT_MAGNITUDE

#: Sub-envs of a process of which a task's env can have several.
SIDE_BY_SIDE = 8
#: Entries that the env of the task does not have.
MADE_ABOVE = (BASE_FEATURES_KEY, BASE_CHUNK_KEY)
#: Offline data hold s and s' in full, beside the frames that the replay keeps of them.
COPIES_OFFLINE = 3
GB = 1e9


def make_latent_env(
    config: RunConfig,
    policy: BasePolicy,
    *,
    gamma: float | None = None,
    workers: int | None = None,
    subspace: NoiseSubspace | None = None,
    below: Sequence[Transform] = (),
    **env_options: Any,
) -> LatentActionEnv:
    """Macro steps inside of the worker processes, one batched decode outside, on the base policy's device.

    Args:
        config: settled; an ``action_magnitude`` that is still ``auto`` counts as the default.
        policy: the frozen base policy.
        gamma: discount per primitive step; the algorithm's if ``None``.
        workers: number of processes; ``collector.num_workers`` if ``None``; 1 stays in this process.
        subspace: of the noise; ``None``: all of it is the latent action, whatever ``latent.subspace_dim``.
        below: transforms below the macro step.
        env_options: arguments of the task's env that differ from the configuration.
    """
    task, latent = config.task, config.latent
    make_env = partial(
        _make_macro_env,
        task.env | env_options,
        act_horizon=task.act_horizon,
        gamma=config.algorithm.gamma if gamma is None else gamma,
        obs_horizon=policy.obs_horizon,
        history_keys=[key for key in observation_keys(policy, config.networks) if key not in MADE_ABOVE],
        below=below,
    )
    workers = config.collector.num_workers if workers is None else workers
    env = make_env() if workers == 1 else WorkerEnvs(workers, make_env)
    steered: BasePolicy = policy
    if latent.action == "chunk":
        steered = IdentityPolicy(policy, task.act_horizon)
    elif latent.action == "residual":
        env = TransformedEnv(env, BaseChunk(policy, task.act_horizon), auto_unwrap=False)
        steered = ResidualPolicy(policy, task.act_horizon, latent.residual_scale)
    latent_env = LatentActionEnv(
        env,
        steered,
        act_horizon=task.act_horizon,
        noise_layout=latent.noise_layout,
        knots=latent.knots,
        action_magnitude=DEFAULT_MAGNITUDE if latent.action_magnitude == AUTO else latent.action_magnitude,
        base_features=latent.base_features,
        subspace=subspace,
    )
    try:
        check_entries(latent_env, config.networks)
    except UserError:
        latent_env.close(raise_if_closed=False)
        raise
    return latent_env


def make_side_env(config: RunConfig, policy: BasePolicy, gamma: float, **env_options: Any) -> LatentActionEnv:
    """A latent env beside the one of training: in this process, with several sub-envs where the task's has them."""
    spec = config.task.env
    if "num_envs" in parameters(find_target(spec, "task.env")):
        env_options["num_envs"] = max(SIDE_BY_SIDE, spec.get("num_envs", 1))
    return make_latent_env(config, policy, gamma=gamma, workers=1, **env_options)


def _make_macro_env(env: Target, **macro: Any) -> EnvBase:
    return make_macro_env(make(env), **macro)


def image_memory_line(env: LatentActionEnv, config: RunConfig) -> str | None:
    """What a run's images will take, in a line; ``None`` where it keeps none.

    Raises:
        UserError: more than there is.
    """
    spec, keys = env.observation_spec, observation_keys(env.decoder.base_policy, config.networks)
    shapes = [tuple(spec[key].shape[env.batch_dims :]) for key in keys if is_image(spec[key].zero(), env.batch_dims)]
    if not shapes:
        return None
    stage2, steps = config.stage2, config.task.act_horizon
    online = 0 if stage2.replay_memmap else min(stage2.replay_size, -(-stage2.total_env_steps // steps))
    offline = config.stage1.rollout_env_steps + config.latent.centre_env_steps
    needed = image_memory(shapes, offline=-(-offline // steps), online=online)
    return check_image_memory(needed, available_memory())


def image_memory(shapes: Iterable[tuple[int, ...]], *, offline: int, online: int) -> int:
    """Bytes of the images of ``offline`` and ``online`` macro transitions.

    Args:
        shapes: ``[C, H, W]`` of each image entry that is kept, history included: as many new frames per transition.
        offline, online: macro transitions.
    """
    return sum(math.prod(shape) for shape in shapes) * (COPIES_OFFLINE * offline + online)


def check_image_memory(needed: int, available: int | None) -> str:
    """A line that says how much; :class:`UserError` where there is less."""
    line = f"images: about {needed / GB:.2f} GB of memory"
    if available is not None and needed > available:
        raise UserError(
            f"{line}, but {available / GB:.2f} GB are available: lower stage1.rollout_env_steps, "
            "latent.centre_env_steps, stage2.replay_size or the image size, set stage2.replay_memmap=true, or let the "
            "policy's encoder make latent.base_features"
        )
    return line


def available_memory(meminfo: Path = Path("/proc/meminfo")) -> int | None:
    """Bytes that new data can take without swapping, nor more than a container or a job may have.

    ``None`` where the system does not tell (macOS).
    """
    try:
        fields = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
        free = int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return None
    limit = memory_of_group()
    return free if limit is None else min(free, limit)
