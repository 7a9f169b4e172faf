"""``LatentActionEnv``: an env plus a frozen base policy is an env whose action is noise."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.utils import NestedKey
from torchrl.envs import EnvBase, TransformedEnv
from torchrl.envs.transforms import Compose, DeviceCastTransform, Transform

from dsrl_torchrl.errors import UserError
from dsrl_torchrl.latent_env.macro_step import CHUNK_KEY, STEPS_KEY, MacroStep, make_macro_env
from dsrl_torchrl.latent_env.noise_decoder import NoiseDecoder
from dsrl_torchrl.policies.base_policy import BasePolicy


class LatentActionEnv(TransformedEnv):
    """Turns any env plus any frozen policy into an ordinary TorchRL env that RL algorithms can steer.

    The action is the noise ``w`` ``[*B, latent_dim]``, a step is a macro step: the frozen policy decodes ``w`` into a
    chunk, the env executes ``act_horizon`` actions of it (:class:`~dsrl_torchrl.latent_env.macro_step.MacroStep`
    has the semantics and the entries written under ``"next"``). DSRL, Wagenmaker et al. 2025, section 4.

    Args:
        env: has the entries that the base policy reads, ``action`` ``[*B, action_dim]``, no auto-reset. Or an env that
            makes macro steps already (a ``ParallelEnv`` whose workers are
            :func:`~dsrl_torchrl.latent_env.macro_step.make_macro_env`): then only the decoder is added, so that one
            batched forward serves all workers.
        base_policy: frozen.
        act_horizon: actions executed per macro step, default all from the policy's ``first_action`` on.
        gamma: discount per primitive step, the same that the loss uses. Ignored for an env of macro steps.
        noise_layout: ``full``, ``act_horizon`` or ``repeat``.
        action_magnitude: bound of the noise in standard deviations of the prior.

    The base policy's device is the latent env's: where the simulator is elsewhere, its entries are moved.

    Raises:
        UserError: a base policy that is not frozen, or entries, sizes or horizons that do not fit.

    Examples:
        >>> import torch
        >>> from dsrl_torchrl import LatentActionEnv
        >>> from dsrl_torchrl.policies import FlowPolicy
        >>> from dsrl_torchrl.envs.toy import PointReachEnv
        >>> env = PointReachEnv(num_envs=3)
        >>> policy = FlowPolicy(observation_dim=2, action_dim=2, pred_horizon=4).freeze()
        >>> latent_env = LatentActionEnv(env, policy, act_horizon=2)
        >>> latent_env.rollout(5, break_when_any_done=False)["next", "action_chunk"].shape
        torch.Size([3, 5, 2, 2])
    """

    def __init__(
        self,
        env: EnvBase,
        base_policy: BasePolicy,
        *,
        act_horizon: int | None = None,
        gamma: float = 0.98,
        noise_layout: str = "full",
        action_magnitude: float = 1.5,
    ) -> None:
        if not base_policy.frozen:
            raise UserError("the base policy must be frozen: call its freeze() first")
        act_horizon = base_policy.pred_horizon - base_policy.first_action if act_horizon is None else act_horizon
        decoder = NoiseDecoder(
            base_policy, act_horizon=act_horizon, noise_layout=noise_layout, action_magnitude=action_magnitude
        )
        if STEPS_KEY not in env.observation_spec.keys():
            env = make_macro_env(
                env,
                act_horizon=act_horizon,
                gamma=gamma,
                obs_horizon=base_policy.obs_horizon,
                history_keys=base_policy.in_keys,
            )
        _check_fit(env, decoder)
        simulator = env.action_spec.device if env.device is None else env.device
        if simulator == decoder.device:
            super().__init__(env, decoder)
        else:
            super().__init__(env.to(simulator), DeviceCastTransform(decoder.device, orig_device=simulator))
            # Not in one Compose: the constructor moves the transforms that it gets to the simulator's device.
            self.append_transform(decoder)

    @property
    def decoder(self) -> NoiseDecoder:
        """The frozen policy's transform; ``decoder.decode(observations, noise)`` gives the executed head."""
        return next(transform for transform in _transforms(self) if isinstance(transform, NoiseDecoder))

    @property
    def gamma(self) -> float | None:
        """Discount per primitive step; ``None`` where it is known in a ``ParallelEnv``'s workers alone."""
        return next((transform.gamma for transform in _transforms(self) if isinstance(transform, MacroStep)), None)

    @property
    def latent_dim(self) -> int:
        """Size of the latent action."""
        return self.decoder.latent_dim

    @property
    def observation_keys(self) -> list[NestedKey]:
        """The entries that the base policy reads."""
        return self.decoder.observation_keys

    def rand_action(self, tensordict: TensorDictBase | None = None) -> TensorDictBase:
        """A random action is the base policy's own: prior noise ``N(0, I)``, clamped to the action spec.

        Uniform noise in the box, TorchRL's default, is not what a base policy was trained on.
        """
        spec, decoder = self.action_spec, self.decoder
        noise = torch.randn(spec.shape, dtype=spec.dtype, device=spec.device)
        noise = noise.clamp_(-decoder.action_magnitude, decoder.action_magnitude)
        if tensordict is None:
            tensordict = TensorDict(batch_size=self.batch_size, device=self.device)
        return tensordict.set(decoder.action_key, noise)


def _transforms(env: EnvBase) -> Iterator[Transform]:
    """From the outermost env inwards; a ``ParallelEnv`` is not asked: it would start its workers."""
    while isinstance(env, TransformedEnv):
        yield from env.transform if isinstance(env.transform, Compose) else [env.transform]
        env = env.base_env


def _check_fit(macro_env: EnvBase, decoder: NoiseDecoder) -> None:
    """Decodes once at zero observations: whatever does not fit shows here, not in the first episode."""
    policy = decoder.base_policy
    has = macro_env.observation_spec.keys(True, True)
    missing = [key for key in policy.in_keys if key not in has]
    if missing:
        raise UserError(
            f"the base policy reads {', '.join(map(str, policy.in_keys))}, but the env gives "
            f"{', '.join(map(str, has))}: rename the env's entries, or the policy's in_keys"
        )
    observations = macro_env.observation_spec.zero().select(*policy.in_keys).to(decoder.device)
    noise = torch.zeros(*macro_env.batch_size, decoder.latent_dim, device=decoder.device)
    try:
        with torch.no_grad():
            got = decoder.decode(observations, noise).shape
    except (UserError, RuntimeError) as error:  # a foreign network's: mat1 and mat2 shapes cannot be multiplied
        raise UserError(
            f"the base policy does not fit the env (obs_horizon {policy.obs_horizon}): {error}; use the base policy "
            "trained for this task, or set obs_horizon to the one it was trained with"
        ) from None
    expected = (*macro_env.batch_size, decoder.act_horizon, policy.action_dim)
    executed = tuple(macro_env.observation_spec[CHUNK_KEY].shape)
    if tuple(got) != expected:
        raise UserError(
            f"{type(policy).__name__} should decode into {list(expected)} ([*B, act_horizon, action_dim]), "
            f"but gives {list(got)}"
        )
    if executed != expected:
        raise UserError(
            f"the base policy decodes {decoder.act_horizon} actions of size {policy.action_dim} per macro step, "
            f"but the env executes {executed[-2]} of size {executed[-1]}: check act_horizon and control mode"
        )
