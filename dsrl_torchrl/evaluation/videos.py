"""Videos of a policy, frame by primitive env step, where the simulator can render."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import imageio.v2 as imageio
import numpy as np
import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torchrl.envs import EnvBase
from torchrl.envs.transforms import Transform
from torchrl.envs.utils import ExplorationType, set_exploration_type

from dsrl_torchrl.collect.episodes import run_episodes

FRAMES_PER_SECOND = 20


class FrameRecorder(Transform):
    """Keeps ``env.render()`` after every reset and primitive step; goes below the macro step, on a batch of one."""

    def __init__(self) -> None:
        super().__init__()
        self.frames: list[np.ndarray] = []

    def _record(self) -> None:
        frame = torch.as_tensor(self.parent.base_env.render())  # ([1,] height, width, 3) uint8
        self.frames.append(frame.reshape(frame.shape[-3:]).cpu().numpy())

    def _step(self, tensordict: TensorDictBase, next_tensordict: TensorDictBase) -> TensorDictBase:
        self._record()
        return next_tensordict

    def _reset(self, tensordict: TensorDictBase, tensordict_reset: TensorDictBase) -> TensorDictBase:
        self._record()
        return tensordict_reset


def record_videos(
    env: EnvBase,
    recorder: FrameRecorder,
    policy: TensorDictModuleBase,
    seeds: Sequence[int],
    folder: Path,
    name: str,
    *,
    deterministic: bool = False,
) -> None:
    """Writes one mp4 per reset seed, ``folder/<name>-<seed index>.mp4``, up to the end of the episode.

    Args:
        env: macro env with a batch of one and ``recorder`` below its macro step.
        recorder: collects the frames.
        policy: writes ``action``.
        seeds: reset seeds.
        folder: made if missing.
        name: of the policy.
        deterministic: use the policy's mode.
    """
    folder.mkdir(parents=True, exist_ok=True)
    exploration = ExplorationType.DETERMINISTIC if deterministic else ExplorationType.RANDOM
    with set_exploration_type(exploration):
        for index, seed in enumerate(seeds):
            recorder.frames.clear()
            for _ in run_episodes(env, policy, [seed]):
                pass
            imageio.mimwrite(folder / f"{name}-{index}.mp4", [*recorder.frames], fps=FRAMES_PER_SECOND)
