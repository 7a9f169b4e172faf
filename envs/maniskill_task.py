"""How a ManiSkill task is made: with a GPU, batched on the CPU, or as it comes; what is wrong is one line."""

from __future__ import annotations

import difflib
import gc
import inspect
import warnings
from functools import cache
from typing import Any
from zipfile import BadZipFile

import torch

from dsrl_torchrl.envs.batched_maniskill import batched_class
from dsrl_torchrl.envs.cameras import Cameras
from dsrl_torchrl.envs.headless import import_mani_skill, keep_renderer_open, rendering_available
from dsrl_torchrl.envs.proprioception import hide_privileged_state
from dsrl_torchrl.envs.serial_maniskill import SerialTasks
from dsrl_torchrl.errors import UserError

#: Whose internals the batched CPU simulation is written for.
BATCHED_VERSION = "3.0"


def make_gym_env(
    env_id: str,
    *,
    control_mode: str,
    num_envs: int = 1,
    max_episode_steps: int | None = None,
    reward_mode: str = "none",
    sim_backend: str = "auto",
    batched: bool = True,
    render_mode: str | None = None,
    obs_mode: str = "state",
    cameras: Cameras | None = None,
    state: str = "full",
) -> Any:
    """``gym.make`` for ManiSkill: quiet, renderer only if something is to be seen, several envs on the CPU, too.

    Arguments are those of :class:`~dsrl_torchrl.envs.maniskill.ManiSkillEnv`, with ManiSkill's own ``reward_mode`` and
    ``obs_mode``. What the cameras see is not in the observation: ``cameras.pictures(env.unwrapped, ...)`` looks.

    Raises:
        UserError: as there.
    """
    if sim_backend == "physx_cuda" and not torch.cuda.is_available():
        raise UserError("sim_backend=physx_cuda needs a CUDA GPU, and torch sees none; physx_cpu works everywhere")
    if not import_mani_skill() and (render_mode is not None or cameras is not None):
        wanted = f"render_mode={render_mode!r}" if cameras is None else f"image_size={cameras.image_size}"
        raise UserError(f"{wanted}: {rendering_available()[1]}")
    keep_renderer_open()
    _leave_imports_alone()
    from mani_skill.utils.registration import REGISTERED_ENVS

    if env_id not in REGISTERED_ENVS:
        near = difflib.get_close_matches(env_id, REGISTERED_ENVS, n=3) or sorted(REGISTERED_ENVS)[:5]
        raise UserError(f"unknown ManiSkill task {env_id!r}; near it: {', '.join(near)}")
    _check_assets(env_id, REGISTERED_ENVS[env_id].asset_download_ids or [])
    kwargs: dict[str, Any] = {
        "obs_mode": obs_mode,
        "control_mode": control_mode,
        "reward_mode": reward_mode,
        "render_mode": render_mode,
    }
    if cameras is not None:
        kwargs["sensor_configs"] = cameras.sensor_configs()
    elif render_mode is None:
        # State needs no renderer even where there is one: less GPU memory, and the same physics everywhere.
        kwargs["render_backend"] = "none"
    try:
        env = _make(env_id, num_envs, max_episode_steps, sim_backend, batched, kwargs)
    except AssertionError as error:
        if "not in supported modes" in str(error):
            raise UserError(f"unknown control_mode for {env_id}: {error}") from None
        raise
    except NotImplementedError as error:
        raise UserError(
            f"{env_id} does not support reward_mode={reward_mode!r} or obs_mode={obs_mode!r}: {error}"
        ) from None
    except AttributeError as error:
        if cameras is None or "CameraConfig" not in str(error):
            raise
        # ManiSkill takes the name of a camera that it doesn't know for an option of all; made without, it lists them.
        bare = _make(env_id, 1, max_episode_steps, "physx_cpu", batched, kwargs | {"sensor_configs": {}})
        cameras.check(env_id, bare.unwrapped)
        raise
    if cameras is not None:
        cameras.check(env_id, env.unwrapped)
    if state == "proprioception":
        sims = env.envs if isinstance(env, SerialTasks) else [env]
        for each in sims:
            hide_privileged_state(each.unwrapped)
        if isinstance(env, SerialTasks):
            env = SerialTasks(sims)  # of other sizes
    return env


def _make(
    env_id: str, num_envs: int, max_episode_steps: int | None, sim_backend: str, batched: bool, kwargs: dict[str, Any]
) -> Any:
    import gymnasium

    limit: dict[str, Any] = {} if max_episode_steps is None else {"max_episode_steps": max_episode_steps}
    if sim_backend == "physx_cuda" or (sim_backend == "auto" and num_envs > 1 and torch.cuda.is_available()):
        _enable_gpu_simulation()
    if num_envs == 1 or (sim_backend != "physx_cpu" and torch.cuda.is_available()):
        return gymnasium.make(env_id, num_envs=num_envs, sim_backend=sim_backend, **kwargs, **limit)
    if batched and kwargs["render_mode"] is None and _can_be_batched(env_id):
        return _make_batched(env_id, num_envs, max_episode_steps, kwargs)
    return SerialTasks([gymnasium.make(env_id, sim_backend="physx_cpu", **kwargs, **limit) for _ in range(num_envs)])


@cache
def _leave_imports_alone() -> None:
    """Lets a scene be rebuilt in a tenth of the time.

    ManiSkill collects garbage at every rebuild, and Python looks for it in everything that was ever imported. Once in
    the life of a process, after the imports, what is there is left out of that from now on.
    """
    gc.collect()
    gc.freeze()


def _can_be_batched(env_id: str) -> bool:
    """Whether the batched CPU simulation is right for a task here; says in one line why it isn't."""
    import mani_skill
    from mani_skill.utils.registration import REGISTERED_ENVS

    version = mani_skill.__version__
    if version.split(".")[:2] != BATCHED_VERSION.split("."):
        why = f"mani_skill {version}, not {BATCHED_VERSION}"
    elif "reconfiguration_freq" in inspect.signature(REGISTERED_ENVS[env_id].cls.__init__).parameters:
        why = "it changes its objects at every reset"
    else:
        return True
    warnings.warn(f"{env_id}: several envs on the CPU are stepped one by one here, slowly ({why})", stacklevel=2)
    return False


def _enable_gpu_simulation() -> None:
    """As ManiSkill does it. SAPIEN fetches PhysX's GPU library when it is first asked for: without a network, not."""
    from sapien import physx

    try:
        physx.enable_gpu()
    except (OSError, BadZipFile) as error:  # requests' errors are OSErrors, and a proxy's page is no archive
        version = physx.version()
        raise UserError(
            "sim_backend=physx_cuda: SAPIEN fetches PhysX's GPU library when it is first asked for, and cannot. Unzip "
            f"https://github.com/sapien-sim/physx-precompiled/releases/download/{version}/linux-so.zip into "
            f"~/.sapien/physx/{version}, or take sim_backend=physx_cpu. It says: {error}"
        ) from None


def _make_batched(env_id: str, num_envs: int, max_episode_steps: int | None, kwargs: dict[str, Any]) -> Any:
    from mani_skill.utils.registration import REGISTERED_ENVS, TimeLimitWrapper

    spec = REGISTERED_ENVS[env_id]
    kwargs = spec.default_kwargs | kwargs
    env = batched_class(spec.cls)(num_envs=num_envs, sim_backend="physx_cpu", **kwargs)
    return TimeLimitWrapper(env, spec.max_episode_steps if max_episode_steps is None else max_episode_steps)


def _check_assets(env_id: str, asset_ids: list[str]) -> None:
    """ManiSkill asks on the terminal whether to download what is missing, which hangs a worker process for ever."""
    from mani_skill.utils import assets

    for asset in asset_ids:
        in_group = asset in assets.DATA_GROUPS
        sources = assets.expand_data_group_into_individual_data_source_ids(asset) if in_group else [asset]
        if not all(assets.is_data_source_downloaded(source) for source in sources):
            raise UserError(f"{env_id} needs assets: python -m mani_skill.utils.download_asset {asset}")
