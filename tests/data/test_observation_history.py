"""The history that is cut offline is the one that CatFrames makes in an env."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict
from torchrl.data import Bounded, Composite, Unbounded
from torchrl.envs import EnvBase
from torchrl.envs.transforms import CatFrames, Compose, TransformedEnv

from dsrl_torchrl.data.episode import stack_history

PIXELS, STATE = "pixels", ("robot", "qpos")
T = 6


class Replayed(EnvBase):
    """Plays recorded observations ``[T + 1]``."""

    def __init__(self, observations: TensorDict) -> None:
        super().__init__()
        self.recorded, self.t = observations, 0
        self.observation_spec = Composite()
        self.observation_spec[PIXELS] = Bounded(0, 255, shape=observations[PIXELS].shape[1:], dtype=torch.uint8)
        self.observation_spec[STATE] = Unbounded(observations[STATE].shape[1:], dtype=observations[STATE].dtype)
        self.action_spec = Unbounded((1,))
        self.reward_spec = Unbounded((1,))

    def _reset(self, tensordict, **kwargs):
        self.t = 0
        return self.recorded[0].clone()

    def _step(self, tensordict):
        self.t += 1
        return self.recorded[self.t].clone().update({"reward": torch.zeros(1), "done": torch.zeros(1).bool()})

    def _set_seed(self, seed):
        pass


def recorded(dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    return TensorDict(
        {
            PIXELS: torch.randint(256, (T + 1, 3, 4, 5), dtype=torch.uint8, generator=generator),
            STATE: torch.randn(T + 1, 7, generator=generator).to(dtype),
        },
        [T + 1],
    )


@pytest.mark.parametrize("obs_horizon", [2, 3, 9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_it_is_catframes(obs_horizon, dtype):
    observations = recorded(dtype)
    frames = Compose(
        CatFrames(N=obs_horizon, dim=-3, in_keys=[PIXELS], padding="same"),
        CatFrames(N=obs_horizon, dim=-1, in_keys=[STATE], padding="same"),
    )
    rollout = TransformedEnv(Replayed(observations), frames).rollout(T)
    cut = stack_history(observations, torch.arange(T + 1), obs_horizon)
    for key in (PIXELS, STATE):
        played = torch.cat([rollout[key], rollout["next"][key][-1:]])
        assert torch.equal(cut[key], played) and cut[key].dtype == played.dtype


def test_one_observation_is_itself():
    observations = recorded()
    cut = stack_history(observations, torch.arange(T + 1), 1)
    assert (cut == observations).all()


def test_any_steps_of_any_shape():
    observations = recorded()
    steps = torch.tensor([[0, 3, 6], [1, 1, 2]])
    cut = stack_history(observations, steps, 2)
    assert cut.batch_size == (2, 3) and cut[PIXELS].shape == (2, 3, 6, 4, 5)
    assert torch.equal(cut[STATE][0, 1], torch.cat([observations[STATE][2], observations[STATE][3]]))
    assert torch.equal(cut[STATE][0, 0], observations[STATE][0].repeat(2))
