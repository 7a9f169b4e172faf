"""Action chunks, against timelines written by hand."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict

from dsrl_torchrl.data.chunks import cut_chunks
from dsrl_torchrl.data.episode import Episode
from dsrl_torchrl.errors import UserError


def episode_of(length):
    flags = torch.zeros(length, dtype=torch.bool)
    observation = torch.arange(length + 1.0).unsqueeze(-1)
    observations = TensorDict({"observation": observation}, [length + 1])
    return Episode(observations, 10 + torch.arange(float(length)).unsqueeze(-1), flags, flags, flags)


def test_chunks_follow_the_timeline():
    chunks = cut_chunks([episode_of(6)], obs_horizon=2, pred_horizon=4)
    assert chunks.batch_size == (6,)
    assert chunks["observation"][[0, 1, 4]].tolist() == [[0, 0], [0, 1], [3, 4]]
    assert chunks["action"][[0, 1, 4], :, 0].tolist() == [[10, 11, 12, 13], [11, 12, 13, 14], [14, 15, 15, 15]]
    assert chunks["valid"][[0, 4]].tolist() == [[True] * 4, [True, True, False, False]]


def test_chunks_never_cross_episodes():
    chunks = cut_chunks([episode_of(3), episode_of(2)], obs_horizon=3, pred_horizon=2)
    assert len(chunks) == 5
    assert chunks["observation"][3].tolist() == [0, 0, 0]
    assert chunks["valid"].tolist() == [[True, True], [True, True], [True, False], [True, True], [True, False]]


def test_an_episode_shorter_than_a_chunk():
    chunks = cut_chunks([episode_of(2)], obs_horizon=1, pred_horizon=5)
    assert chunks["valid"].sum(-1).tolist() == [2, 1]


def test_every_entry_is_kept():
    flags = torch.zeros(3, dtype=torch.bool)
    pixels = torch.randint(256, (4, 3, 2, 2), dtype=torch.uint8)
    observations = TensorDict({"pixels": pixels, ("robot", "qpos"): torch.randn(4, 5).double()}, [4])
    chunks = cut_chunks([Episode(observations, torch.randn(3, 1), flags, flags, flags)], obs_horizon=2, pred_horizon=2)
    assert set(chunks.keys(True, True)) == {"pixels", ("robot", "qpos"), "action", "valid"}
    assert chunks["pixels"].dtype == torch.uint8 and chunks["robot", "qpos"].dtype == torch.float64
    assert torch.equal(chunks["pixels"][2], torch.cat([pixels[1], pixels[2]]))


def test_horizons_are_positive():
    with pytest.raises(UserError, match="at least 1, got 0 and 4"):
        cut_chunks([episode_of(2)], obs_horizon=0, pred_horizon=4)
