"""Base policies and an env whose diagnosis is known by hand."""

from __future__ import annotations

import torch
from tensordict import TensorDict
from torchrl.data import Bounded, Categorical, Composite, Unbounded
from torchrl.envs import EnvBase

from dsrl_torchrl import LatentActionEnv
from dsrl_torchrl.latent_env.noise_decoder import NoiseDecoder
from dsrl_torchrl.policies import BasePolicy


class Decoding(BasePolicy):
    """chunk = function(flat noise), whatever the observation."""

    def __init__(self, function, pred_horizon=4, action_dim=2, **kwargs):
        super().__init__(action_dim, pred_horizon, **kwargs)
        self.function = function
        self.freeze()

    def forward(self, observation, noise):
        return self.function(noise.flatten(-2)).unflatten(-1, (self.pred_horizon, self.action_dim))


class Server(Decoding):
    """A policy in another process: its chunks carry no gradient."""

    differentiable = False

    def forward(self, observation, noise):
        return super().forward(observation, noise).detach()


class CameraPolicy(BasePolicy):
    """Reads a picture and a nested state, has more noise than actions, and executes from action 1 on.

    ``chunk[t] = gain * noise[t, 0]``, plus what shows whether the entries came as the env gave them.
    """

    def __init__(self, gain=0.2):
        super().__init__(1, 4, in_keys=["pixels", ("agent", "state")], noise_horizon=5, noise_dim=3, first_action=1)
        self.gain = gain
        self.freeze()

    def forward(self, pixels, state, noise):
        assert (pixels.dtype, state.dtype) == (torch.uint8, torch.float64)
        assert pixels.shape == (*noise.shape[:-2], 3, 8, 8) and state.shape == (*noise.shape[:-2], 2)
        seen = 0 * (pixels.float().mean((-3, -2, -1)) + state.float().sum(-1))
        return self.gain * noise[..., :4, :1] + seen[..., None, None]


def observations(n):
    return TensorDict({"observation": torch.zeros(n, 2)}, [n])


def affine(matrix, **kwargs):
    """chunk = matrix @ noise, both flat."""
    matrix = torch.as_tensor(matrix, dtype=torch.float32)
    return Decoding(lambda noise: noise @ matrix.T, **kwargs)


def diagonal(*gains, **kwargs):
    return affine(torch.diag(torch.tensor(gains)), **kwargs)


def decoder_of(policy, act_horizon=None, layout="full"):
    return NoiseDecoder(policy, act_horizon=act_horizon or policy.pred_horizon, noise_layout=layout)


class CoinEnv(EnvBase):
    """An episode of ``length`` steps; step 1 succeeds if its action is positive and the reset seed is even.

    With symmetric noise success has a probability of 1/2 from even seeds and is impossible from odd ones. The
    observation is ``[seed parity, steps so far]``.
    """

    def __init__(self, num_envs=1, length=3, success=True):
        super().__init__(batch_size=[num_envs])
        self.length, self.has_success = length, success
        self.even = torch.ones(num_envs, 1, dtype=torch.bool)
        self.t = torch.zeros(num_envs, 1)
        flag = Categorical(2, shape=(num_envs, 1), dtype=torch.bool)
        entries = self._observation_specs(num_envs) | ({"success": flag} if success else {})
        self.observation_spec = Composite(entries, shape=(num_envs,))
        self.action_spec = Bounded(-1, 1, shape=(num_envs, 1))
        self.reward_spec = Unbounded((num_envs, 1))
        self.done_spec = Composite(
            done=flag.clone(), terminated=flag.clone(), truncated=flag.clone(), shape=(num_envs,)
        )

    def _observation_specs(self, num_envs):
        return {"observation": Unbounded((num_envs, 2))}

    def _observe(self):
        return {"observation": torch.cat([self.even.float(), self.t], -1)}

    def _entries(self, success):
        return TensorDict(self._observe() | ({"success": success} if self.has_success else {}), self.batch_size)

    def _reset(self, tensordict, seed=None, **kwargs):
        if seed is not None:
            self.even = (torch.tensor(seed) % 2 == 0).reshape(-1, 1)
        self.t = torch.zeros_like(self.t)
        return self._entries(torch.zeros_like(self.even))

    def _step(self, tensordict):
        self.t = self.t + 1
        success = (self.t == 1) & self.even & (tensordict["action"] > 0)
        ended = self.t >= self.length
        out = self._entries(success)
        return out.update(
            {
                "reward": success.float(),
                "terminated": torch.zeros_like(ended),
                "truncated": ended,
                "done": ended,
            }
        )

    def _set_seed(self, seed):
        return seed


class CoinCameraEnv(CoinEnv):
    """The same task seen by a camera (bright for even seeds) and in a nested state."""

    def _observation_specs(self, num_envs):
        state = Composite(state=Unbounded((num_envs, 2), dtype=torch.float64), shape=(num_envs,))
        return {"pixels": Bounded(0, 255, shape=(num_envs, 3, 8, 8), dtype=torch.uint8), "agent": state}

    def _observe(self):
        pixels = (200 * self.even.to(torch.uint8))[..., None, None].expand(-1, 3, 8, 8).clone()
        return {"pixels": pixels, "agent": {"state": torch.cat([self.even.double(), self.t.double()], -1)}}


def coin_env(gain=0.2, num_envs=1, pred_horizon=2, act_horizon=2, **kwargs):
    policy = diagonal(*[gain] * pred_horizon, pred_horizon=pred_horizon, action_dim=1)
    return LatentActionEnv(CoinEnv(num_envs, **kwargs), policy, act_horizon=act_horizon)


def camera_env(num_envs=1):
    return LatentActionEnv(CoinCameraEnv(num_envs), CameraPolicy(), act_horizon=2)
