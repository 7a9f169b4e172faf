"""Demonstrations for LIBERO-Spatial without a download, in LIBERO's own file format."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import h5py
import numpy as np
import torch
from pydantic import Field
from tqdm import tqdm

from dsrl_torchrl.envs.libero import CAMERAS, LiberoEnv
from dsrl_torchrl.envs.libero_expert import PickAndPlace
from dsrl_torchrl.envs.trajectory_file import STEM, publishing, written_at_once
from dsrl_torchrl.errors import UserError
from dsrl_torchrl.seeds import demonstration_seeds

#: LIBERO's names of its two cameras' data sets.
PICTURES = {"agentview": "agentview_rgb", "robot0_eye_in_hand": "eye_in_hand_rgb"}


def make_libero_demonstrations(
    path: str | Path,
    count: int,
    seed: int = 0,
    action_noise: float = 0.0,
    env_id: Annotated[int, Field(ge=0)] = 0,
    suite: str = "libero_spatial",
    image_size: Annotated[int, Field(ge=8, le=2048)] | None = None,
    cameras: Mapping[str, str] = CAMERAS,
    rotate_images: bool = True,
    fast_rendering: bool = True,
    starts: Literal["suite", "sampled"] = "suite",
    settling_steps: Annotated[int, Field(ge=0)] = 10,
    max_episode_steps: Annotated[int, Field(ge=1)] = 240,
    progress: bool = True,
) -> Path:
    """Records ``count`` successful episodes of :class:`~dsrl_torchrl.envs.libero_expert.PickAndPlace`.

    The file has robomimic's layout with LIBERO's names (https://arxiv.org/abs/2306.03310): ``data/demo_<i>`` holds
    ``actions`` ``[T, 7]``, ``states`` ``[T, 1 + nq + nv]``, ``rewards`` and ``dones`` ``[T]`` (1 on the last step), and
    under ``obs`` what was seen before each action: ``ee_states`` ``[T, 6]``, ``gripper_states`` ``[T, 2]``, ours beside
    them ``objects`` ``[T, 9 n]`` (as in :class:`~dsrl_torchrl.envs.libero.LiberoEnv`), and pictures as the env gives
    them: LIBERO's own are not rotated. It has no scene (``model_file``): the BDDL file's name is there.

    Args:
        path: the ``.h5`` to write; a ``.json`` with the episodes' seeds goes beside it.
        count: number of episodes.
        seed: the run's: its episodes start from :func:`~dsrl_torchrl.seeds.demonstration_seeds`; seeds the noise, too.
        action_noise: standard deviation on the three directions of the hand, executed and recorded, in units of the
            action (its range is [-1, 1]; the sum is clipped to it).
        env_id: number of the task.
        suite: of the task; the expert knows ``libero_spatial`` alone.
        image_size: as :class:`~dsrl_torchrl.envs.libero.LiberoEnv`'s, and the following, too.
        cameras: entry -> camera.
        rotate_images: pictures as openpi and LeRobot have them.
        fast_rendering: pictures without shadows.
        starts: recorded or sampled ones.
        settling_steps: before an episode.
        max_episode_steps: longest episode kept.
        progress: show a progress bar.

    Returns:
        The path of the ``.h5``.

    Raises:
        UserError: another suite, or fewer than ``count`` successes in ``3 * count + 10`` episodes.
    """
    if suite != "libero_spatial":
        raise UserError(
            f"the scripted expert knows libero_spatial alone, got {suite}: give task.demonstrations.path, such as "
            "LIBERO's own .hdf5 of the task"
        )
    path = Path(path)
    provenance: dict[str, Any] = {"seed": seed, "action_noise": action_noise, "attempts": 0}
    env = LiberoEnv(
        env_id,
        suite,
        image_size=image_size,
        cameras=cameras,
        rotate_images=rotate_images,
        fast_rendering=fast_rendering,
        starts=starts,
        settling_steps=settling_steps,
        max_episode_steps=max_episode_steps,
    )
    episodes: list[dict[str, Any]] = []
    shown = {"total": count, "desc": f"{suite} {env_id} demonstrations", "unit": "ep", "disable": not progress}
    try:
        with publishing(path, provenance) as folder, tqdm(**shown) as bar:
            with written_at_once(folder / f"{STEM}.h5") as file:
                group = file.create_group("data")
                for episode_seed in demonstration_seeds(seed)[: 3 * count + 10]:
                    if len(episodes) == count:
                        break
                    provenance["attempts"] += 1
                    recorded = record_episode(
                        env, episode_seed, action_noise, np.random.default_rng([seed, episode_seed])
                    )
                    bar.set_postfix(attempts=provenance["attempts"])
                    if recorded is None:
                        continue
                    length = _write(group.create_group(f"demo_{len(episodes)}"), recorded)
                    described = {"episode_id": len(episodes), "episode_seed": episode_seed, "elapsed_steps": length}
                    episodes.append(described | {"success": True})
                    bar.update()
                group.attrs["num_demos"] = len(episodes)
                group.attrs["total"] = sum(episode["elapsed_steps"] for episode in episodes)
                group.attrs["bddl_file_name"] = f"{suite}/{env.task.bddl.name}"
                group.attrs["problem_info"] = json.dumps({"language_instruction": env.instruction})
                group.attrs["macros_image_convention"] = "rotated" if rotate_images else "opengl"
            if len(episodes) < count:
                raise UserError(
                    f"only {len(episodes)} of {count} demonstrations of {suite} {env_id} in {provenance['attempts']} "
                    f"attempts: lower action_noise ({action_noise}) or raise max_episode_steps ({max_episode_steps})"
                )
            info = {"env_id": suite, "env_kwargs": {"task": env_id, "starts": starts}}
            (folder / f"{STEM}.json").write_text(json.dumps({"env_info": info, "episodes": episodes}))
    finally:
        env.close()
    return path


def record_episode(
    env: LiberoEnv, seed: int, action_noise: float, noise: np.random.Generator
) -> dict[str, np.ndarray] | None:
    """One episode by the names of its data sets; ``None`` if it fails.

    Args:
        env: of one simulation, with the state ``full``.
        seed: of the start.
        action_noise: see :func:`make_libero_demonstrations`.
        noise: draws it.
    """
    now = env.reset(seed=[seed])
    expert, simulation = PickAndPlace(env.simulations[0]), env.simulations[0]
    steps: list[dict[str, np.ndarray]] = []
    while not now["done"].any():
        action = expert.action()
        action[:3] += action_noise * noise.standard_normal(3)
        action = np.clip(action, -1, 1).astype(np.float32)
        state = now[env.observation_key][0].numpy()
        pictures = {
            f"obs/{PICTURES.get(camera, f'{camera}_rgb')}": now[entry][0].permute(1, 2, 0).numpy()
            for entry, camera in env.cameras.items()
        }
        observed = {"obs/ee_states": state[:6], "obs/gripper_states": state[6:8], "obs/objects": state[8:]}
        steps.append({"actions": action, "states": simulation.state(), **observed, **pictures})
        now = env.step(now.set("action", torch.from_numpy(action).unsqueeze(0)))["next"]
    if not now["success"].any():
        return None
    last = (np.arange(len(steps)) == len(steps) - 1).astype(np.uint8)
    return {name: np.stack([step[name] for step in steps]) for name in steps[0]} | {"rewards": last, "dones": last}


def _write(group: h5py.Group, recorded: Mapping[str, np.ndarray]) -> int:
    for name, value in recorded.items():
        group.create_dataset(name, data=value, compression="gzip" if value.dtype == np.uint8 else None)
    length = len(recorded["actions"])
    group.attrs["num_samples"] = length
    group.attrs["init_state"] = recorded["states"][0]
    return length
