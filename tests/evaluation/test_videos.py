from __future__ import annotations

import imageio.v2 as imageio
import torch

from dsrl_torchrl import make_macro_env
from dsrl_torchrl.evaluation.videos import FrameRecorder, record_videos
from tests.collect.test_episodes import zero_actions
from tests.scripted_env import ScriptedEnv


class RenderedEnv(ScriptedEnv):
    def render(self):
        return torch.full((1, 32, 32, 3), 10 * int(self.t), dtype=torch.uint8)


def test_a_frame_for_every_primitive_step(tmp_path):
    recorder = FrameRecorder()
    env = make_macro_env(RenderedEnv([7], [False]), act_horizon=3, gamma=1.0, below=[recorder])
    record_videos(env, recorder, zero_actions((3, 1)), [5, 6], tmp_path, "base")
    assert [int(frame[0, 0, 0]) for frame in recorder.frames] == [0, 10, 20, 30, 40, 50, 60, 70]
    for index in range(2):
        assert len(imageio.mimread(tmp_path / f"base-{index}.mp4")) == 8
