"""A ManiSkill trajectory written down by hand: h5 and json."""

from __future__ import annotations

import json

import h5py
import numpy as np

MODE = "pd_ee_delta_pos"


def write(path, lengths=(3, 2), success=(True, True), *, edit=None, episodes=None):
    """A ManiSkill trajectory: observations of 5 numbers, actions of 2; ``edit(file)`` before closing."""
    with h5py.File(path, "w") as file:
        for i, length in enumerate(lengths):
            group = file.create_group(f"traj_{i}")
            group["obs"] = np.arange((length + 1) * 5, dtype=np.float32).reshape(-1, 5) + 100 * i
            group["actions"] = np.arange(length * 2, dtype=np.float32).reshape(-1, 2) / 10 + i
            group["success"] = np.arange(length) == (length - 1 if success[i] else length)
            group["terminated"] = group["success"][:]
            group["truncated"] = np.zeros(length, dtype=bool)
        if edit is not None:
            edit(file)
    if episodes is None:
        episodes = [{"episode_id": i, "control_mode": MODE, "success": s} for i, s in enumerate(success)]
    described = {"env_info": {"env_kwargs": {"control_mode": MODE}}, "episodes": episodes}
    path.with_suffix(".json").write_text(json.dumps(described))
    return path
