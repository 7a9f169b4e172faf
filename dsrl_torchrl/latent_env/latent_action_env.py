"""``LatentActionEnv``: an env plus a frozen base policy is an env whose action is noise."""

from __future__ import annotations

import torch
from tensordict import TensorDict, TensorDictBase
from torchrl.envs import EnvBase, TransformedEnv

from dsrl_torchrl.errors import UserError
from dsrl_torchrl.latent_env.macro_step import EXECUTED_CHUNK_KEY, MACRO_STEPS_KEY, make_macro_env
from dsrl_torchrl.latent_env.noise_decoder import NoiseDecoder
from dsrl_torchrl.latent_env.noise_layout import NoiseLayout
from dsrl_torchrl.policies.base_policy import BasePolicy


class LatentActionEnv(TransformedEnv):
    """Turns any env plus any frozen policy into an ordinary TorchRL env that RL algorithms can steer.

    The action is the noise ``w`` ``[*B, latent_dim]``, a step is a macro step: the frozen policy decodes ``w`` into a
    chunk, the env executes its first ``act_horizon`` actions (:class:`~dsrl_torchrl.latent_env.macro_step.MacroStep`
    has the semantics and the entries written under ``"next"``). DSRL, Wagenmaker et al. 2025, section 4.

    Args:
        env: ``observation`` ``[*B, obs_dim]``, ``action`` ``[*B, action_dim]``, no auto-reset. Or an env that makes
            macro steps already (a ``ParallelEnv`` whose workers are
            :func:`~dsrl_torchrl.latent_env.macro_step.make_macro_env`): then only the decoder is added, so that one
            batched forward serves all workers.
        base_policy: frozen; its ``observation_dim`` is ``obs_horizon * obs_dim``.
        act_horizon: actions executed per macro step, default the base policy's ``pred_horizon``.
        gamma: discount per primitive step, the same that the loss uses. Ignored for an env of macro steps.
        noise_layout: ``full``, ``act_horizon`` or ``repeat``.
        action_magnitude: bound of the noise in standard deviations of the prior.

    Raises:
        UserError: when the sizes or horizons of env and base policy do not fit.

    Examples:
        >>> import torch
        >>> from dsrl_torchrl import LatentActionEnv
        >>> from dsrl_torchrl.policies import FlowPolicy
        >>> from dsrl_torchrl.envs.toy import PointReachEnv
        >>> env = PointReachEnv(num_envs=3)
        >>> policy = FlowPolicy(observation_dim=env.observation_spec["observation"].shape[-1],
        ...                     action_dim=2, pred_horizon=4).freeze()
        >>> latent_env = LatentActionEnv(env, policy, act_horizon=2)
        >>> latent_env.rollout(5)["next", "macro_steps"].shape
        torch.Size([3, 5, 1])
    """

    def __init__(
        self,
        env: EnvBase,
        base_policy: BasePolicy,
        *,
        act_horizon: int | None = None,
        gamma: float = 0.99,
        noise_layout: str = "full",
        action_magnitude: float = 1.5,
    ) -> None:
        act_horizon = base_policy.pred_horizon if act_horizon is None else act_horizon
        decoder = NoiseDecoder(
            base_policy, act_horizon=act_horizon, noise_layout=noise_layout, action_magnitude=action_magnitude
        )
        if MACRO_STEPS_KEY not in env.observation_spec.keys():
            env = make_macro_env(env, act_horizon=act_horizon, gamma=gamma, obs_horizon=base_policy.obs_horizon)
        _check_fit(env, base_policy, act_horizon)
        super().__init__(env, decoder)

    @property
    def decoder(self) -> NoiseDecoder:
        """The frozen policy's transform; ``decoder.decode(observation, noise)`` gives the executed head."""
        return self.transform

    @property
    def noise_layout(self) -> NoiseLayout:
        """The layout, with the size of the latent action."""
        return self.decoder.layout

    def rand_action(self, tensordict: TensorDictBase | None = None) -> TensorDictBase:
        """A random action is the base policy's own: prior noise ``N(0, I)``, clamped to the action spec.

        Uniform noise in the box, TorchRL's default, is not what a base policy was trained on.
        """
        spec = self.action_spec
        noise = torch.randn(spec.shape, dtype=spec.dtype, device=spec.device)
        noise = noise.clamp_(-self.decoder.action_magnitude, self.decoder.action_magnitude)
        if tensordict is None:
            tensordict = TensorDict(batch_size=self.batch_size, device=self.device)
        return tensordict.set(self.decoder.action_key, noise)


def _check_fit(macro_env: EnvBase, base_policy: BasePolicy, act_horizon: int) -> None:
    observation_dim = macro_env.observation_spec["observation"].shape[-1]
    if observation_dim != base_policy.observation_dim:
        raise UserError(
            f"the base policy reads observations of size {base_policy.observation_dim} "
            f"(obs_horizon {base_policy.obs_horizon}), but the env gives {observation_dim}: "
            "use the base policy trained for this task, or set obs_horizon to the one it was trained with"
        )
    chunk_shape = tuple(macro_env.observation_spec[EXECUTED_CHUNK_KEY].shape[-2:])
    if chunk_shape != (act_horizon, base_policy.action_dim):
        raise UserError(
            f"the base policy decodes {act_horizon} actions of size {base_policy.action_dim} per macro step, "
            f"but the env executes {chunk_shape[0]} of size {chunk_shape[1]}: check act_horizon and control mode"
        )
