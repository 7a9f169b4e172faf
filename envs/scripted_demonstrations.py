"""Demonstrations of a scripted expert with noise, in any env of ours, as ManiSkill's h5 and json."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tensordict import TensorDict

from dsrl_torchrl.data.macro_transitions import entry_name
from dsrl_torchrl.data.readers.maniskill import STATE_DATASET
from dsrl_torchrl.envs.episodic import EpisodicEnv
from dsrl_torchrl.envs.trajectory_file import STEM, publishing, written_at_once
from dsrl_torchrl.errors import UserError
from dsrl_torchrl.seeds import demonstration_seeds

FLAGS = ("success", "terminated", "truncated")


def record_scripted(
    path: str | Path,
    env: EpisodicEnv,
    make_expert: Callable[[], Callable[[], np.ndarray]],
    count: int,
    *,
    env_info: Mapping[str, Any],
    seed: int,
    action_noise: float,
    noisy: Sequence[int],
    progress: bool,
) -> Path:
    """Records ``count`` successful episodes, each ended by its first success.

    The expert is closed loop, and so corrects for Gaussian noise on its actions, which is executed *and* recorded. An
    episode depends on the run's seed and its own alone: the same arguments give the same bytes.

    The state is the data set ``obs`` ``[T + 1, d]``. Where there are images it is ``obs/state``, and they are
    ``obs/<entry>``, uint8 ``[T + 1, H, W, C]``, compressed.

    Args:
        path: the ``.h5`` to write; the ``.json`` goes beside it.
        env: one env, which ends episodes on success; closed at the end.
        make_expert: makes the expert of one episode, which says its action ``[action_dim]`` for the env's state.
        count: number of episodes.
        env_info: about the env, for the json.
        seed: the run's: its episodes start from :func:`~dsrl_torchrl.seeds.demonstration_seeds`; seeds the noise, too.
        action_noise: standard deviation, in units of the action (its range is [-1, 1]; the sum is clipped to it).
        noisy: the dimensions of the action that get it.
        progress: show a progress bar.

    Returns:
        The path of the ``.h5``.

    Raises:
        UserError: fewer than ``count`` successes in ``10 * count + 10`` episodes.
    """
    from tqdm import tqdm  # the env itself needs the core's dependencies alone

    path = Path(path)
    name = str(env_info["env_id"])
    provenance: dict[str, float] = {"seed": seed, "action_noise": action_noise, "attempts": 0}
    episodes: list[dict] = []
    bar = tqdm(total=count, desc=f"{name} demonstrations", unit="ep", disable=not progress)
    try:
        with publishing(path, provenance) as folder, bar, written_at_once(folder / f"{STEM}.h5") as file:
            for episode_seed in demonstration_seeds(seed)[: 10 * count + 10]:
                provenance["attempts"] += 1
                random = np.random.default_rng([seed, episode_seed])
                episode = _play(env, make_expert(), episode_seed, action_noise, noisy, random)
                bar.set_postfix(attempts=provenance["attempts"])
                if not episode["success"][-1]:
                    continue
                group = file.create_group(f"traj_{len(episodes)}")
                for key, value in episode.items():
                    group.create_dataset(key, data=value, compression="gzip" if value.ndim == 4 else None)
                steps = len(episode["actions"])
                episodes.append(
                    {
                        "episode_id": len(episodes),
                        "episode_seed": episode_seed,
                        "elapsed_steps": steps,
                        "success": True,
                    }
                )
                bar.update()
                if len(episodes) == count:
                    break
            if len(episodes) < count:
                raise UserError(
                    f"only {len(episodes)} of {count} demonstrations of {name} in {provenance['attempts']} attempts "
                    f"with action_noise={action_noise}: lower action_noise, or raise max_episode_steps"
                )
            (folder / f"{STEM}.json").write_text(json.dumps({"env_info": dict(env_info), "episodes": episodes}))
    finally:
        env.close()
    return path


def _play(
    env: EpisodicEnv,
    expert: Callable[[], np.ndarray],
    seed: int,
    action_noise: float,
    noisy: Sequence[int],
    random: np.random.Generator,
) -> dict[str, np.ndarray]:
    """One episode, by the names of a ManiSkill h5."""
    names = {env.observation_key: f"{STATE_DATASET}/state" if env.image_keys else STATE_DATASET}
    names |= {key: f"{STATE_DATASET}/{entry_name(key)}" for key in env.image_keys}
    now = env.reset(seed=[seed])
    seen, steps = [now.select(*names)], []
    while not now["done"].any():
        wanted = np.clip(expert(), -1, 1)
        wanted[list(noisy)] += action_noise * random.standard_normal(len(noisy))
        action = torch.from_numpy(wanted.clip(-1, 1).astype(np.float32)).to(env.device)
        now = env.step(now.set("action", action.unsqueeze(0)))
        steps.append(now.select("action", *(("next", flag) for flag in FLAGS)))
        now = now["next"]
        seen.append(now.select(*names))
    observations, episode = TensorDict.cat(seen).cpu(), TensorDict.cat(steps).cpu()
    recorded = {"actions": episode["action"].numpy()}
    recorded |= {flag: episode["next", flag].squeeze(-1).numpy() for flag in FLAGS}
    for key, name in names.items():
        values = observations[key]
        recorded[name] = (values.permute(0, 2, 3, 1) if key in env.image_keys else values).numpy()
    return recorded
