"""``LatentActionEnv``: an env plus a frozen base policy is an env whose action is noise."""

from __future__ import annotations

from collections.abc import Callable

import torch
from tensordict import TensorDictBase
from torchrl.data import TensorSpec
from torchrl.envs import EnvBase, TransformedEnv
from torchrl.envs.transforms import Compose, DeviceCastTransform, Transform

from dsrl_torchrl.errors import UserError
from dsrl_torchrl.latent_env.base_features import BASE_FEATURES_KEY, BaseFeatures, FeaturePolicy
from dsrl_torchrl.latent_env.checks import single_transforms, transforms_of
from dsrl_torchrl.latent_env.macro_step import CHUNK_KEY, STEPS_KEY, MacroEnv, MacroStep, make_macro_env
from dsrl_torchrl.latent_env.noise_decoder import NoiseDecoder
from dsrl_torchrl.latent_env.noise_subspace import NoiseSubspace
from dsrl_torchrl.latent_env.transforms_above import refuse_repeated_steps, transforms_above
from dsrl_torchrl.policies.base_policy import BasePolicy

FAR = 10.0  # half ranges of the env's action from its middle: beyond lies a policy in other units


class LatentActionEnv(MacroEnv):
    """Turns any env plus any frozen policy into an ordinary TorchRL env that RL algorithms can steer.

    The action is the noise ``w`` ``[*B, latent_dim]``, a step is a macro step: the frozen policy decodes ``w`` into a
    chunk, the env executes ``act_horizon`` actions of it (:class:`~dsrl_torchrl.latent_env.macro_step.MacroStep`
    has the semantics and the entries written under ``"next"``). DSRL, Wagenmaker et al. 2025, section 4.

    Whatever transforms stand above, appended, around or in a batch of latent envs, the policy decodes the entries that
    the env below gave it, and random actions are its prior (but under one that changes the action's spec, as
    ``ActionScaling`` does). What shall change the entries for the policy, too, goes below: into ``env``, or inserted
    at 0.

    What repeats steps (``FrameSkipTransform``) gives a wrong k and R above macro steps. Appended and inserted it is
    refused here, around (``TransformedEnv(latent_env, ...)``) only where an agent is built: your own loop's risk.

    Args:
        env: has the entries that the base policy reads, ``action`` ``[*B, action_dim]``, no auto-reset. Or an env that
            makes macro steps already (a ``ParallelEnv`` whose workers are
            :func:`~dsrl_torchrl.latent_env.macro_step.make_macro_env`): then only the decoder is added, so that one
            batched forward serves all workers.
        base_policy: frozen.
        act_horizon: actions executed per macro step, default all from the policy's ``first_action`` on.
        gamma: discount per primitive step, the same that the loss uses. Ignored for an env of macro steps.
        noise_layout: ``full``, ``act_horizon``, ``repeat`` or ``interpolated``.
        knots: steps whose noise is steered by ``interpolated``.
        action_magnitude: bound of the noise in standard deviations of the prior.
        subspace: steers some directions of the noise and draws the rest from the prior at every macro step.
        base_features: the base policy's own encoder makes the entry ``base_features`` of what it reads, once per macro
            step, and decodes from that: latent policy and critics may read it in place of images
            (:mod:`~dsrl_torchrl.latent_env.base_features`).

    The base policy's device is the latent env's: where the simulator is elsewhere, its entries are moved.

    Raises:
        UserError: no :class:`~dsrl_torchrl.policies.BasePolicy` or one that is not frozen, an env that cannot make
            macro steps, entries, sizes or horizons that do not fit, transforms that repeat macro steps, or a policy
            whose actions are far out of the env's range.

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
        knots: int = 2,
        action_magnitude: float = 1.5,
        base_features: bool = False,
        subspace: NoiseSubspace | None = None,
    ) -> None:
        if not isinstance(base_policy, BasePolicy):
            raise UserError(
                f"the base policy should be a BasePolicy, got a {type(base_policy).__name__}: call it in the forward() "
                "of a subclass, as docs/your-own-policy.md shows"
            )
        if not base_policy.frozen:
            raise UserError("the base policy must be frozen: call its freeze() first")
        act_horizon = base_policy.pred_horizon - base_policy.first_action if act_horizon is None else act_horizon
        features = [BaseFeatures(base_policy)] if base_features else []
        decoder = NoiseDecoder(
            FeaturePolicy(base_policy) if base_features else base_policy,
            act_horizon=act_horizon,
            noise_layout=noise_layout,
            knots=knots,
            action_magnitude=action_magnitude,
            subspace=subspace,
        )
        if not {STEPS_KEY, CHUNK_KEY} <= set(env.observation_spec.keys()):
            env = make_macro_env(
                env,
                act_horizon=act_horizon,
                gamma=gamma,
                obs_horizon=base_policy.obs_horizon,
                history_keys=base_policy.in_keys,
            )
        refuse_repeated_steps(transforms_above(env, MacroStep))
        _check_fit(env, decoder, base_policy)
        simulator = env.action_spec.device if env.device is None else env.device
        if simulator != decoder.device:
            # An env of its own, and not in one Compose: a constructor moves its transforms to the device of its env.
            bridge = DeviceBridge(decoder.device, orig_device=simulator)
            env = MacroEnv(env.to(simulator), bridge, auto_unwrap=False)
        super().__init__(env, Compose(*features, decoder) if features else decoder)
        # The decoder learns the env's dtypes from the specs.
        _ = self.input_spec, self.output_spec

    @property
    def decoder(self) -> NoiseDecoder:
        """The frozen policy's transform; ``decoder.decode(observations, noise)`` gives the executed head."""
        return next(transform for transform in transforms_of(self) if isinstance(transform, NoiseDecoder))

    @property
    def gamma(self) -> float | None:
        """Discount per primitive step; ``None`` where it is known in a ``ParallelEnv``'s workers alone."""
        return next((transform.gamma for transform in transforms_of(self) if isinstance(transform, MacroStep)), None)

    @property
    def latent_dim(self) -> int:
        """Size of the latent action."""
        return self.decoder.latent_dim

    def append_transform(self, transform: Transform | Callable[[TensorDictBase], TensorDictBase]) -> TransformedEnv:
        """As in ``TransformedEnv``; the base policy does not see what it changes.

        Raises:
            UserError: a transform that repeats steps: k and the discounted reward would be wrong.
        """
        refuse_repeated_steps(single_transforms(transform))
        return super().append_transform(transform)

    def insert_transform(self, index: int, transform: Transform) -> TransformedEnv:
        """As in ``TransformedEnv``; at index 0 the base policy reads what it makes, above the decoder it does not.

        Raises:
            UserError: a transform that repeats steps: k and the discounted reward would be wrong.
        """
        refuse_repeated_steps(single_transforms(transform))
        return super().insert_transform(index, transform)


class DeviceBridge(DeviceCastTransform):
    """TorchRL's, and the masks of a partial reset come to the simulator's device, too."""

    def _reset_env_preprocess(self, tensordict: TensorDictBase | None) -> TensorDictBase | None:
        return None if tensordict is None else tensordict.to(self.orig_device)


def _check_fit(macro_env: EnvBase, decoder: NoiseDecoder, policy: BasePolicy) -> None:
    """Decodes prior noise once at zero observations: whatever does not fit shows here, not in the first episode."""
    has = macro_env.observation_spec.keys(True, True)
    missing = [key for key in policy.in_keys if key not in has]
    if missing:
        raise UserError(
            f"the base policy reads {', '.join(map(str, policy.in_keys))}, but the env gives "
            f"{', '.join(map(str, has))}: rename the env's entries, or the policy's in_keys"
        )
    observations = macro_env.observation_spec.zero().select(*policy.in_keys).to(decoder.device)
    # No draw from the global generator: the episodes that follow are those of the user's seed.
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(*macro_env.batch_size, decoder.layout.dim, generator=generator).to(decoder.device)
    try:
        with torch.no_grad():
            if decoder.base_policy is not policy:
                observations.set(BASE_FEATURES_KEY, policy.encode(observations))
            head = decoder.decode(observations, noise)
    except (UserError, RuntimeError, ValueError, TypeError) as error:
        # A foreign network's: mat1 and mat2 shapes cannot be multiplied. Where that was said helps who wrote it.
        raise UserError(
            f"the base policy does not fit the env (obs_horizon {policy.obs_horizon}): {' '.join(str(error).split())}; "
            "use the base policy trained for this task, or set obs_horizon to the one it was trained with"
        ) from (None if isinstance(error, UserError) else error)
    expected = (*macro_env.batch_size, decoder.act_horizon, policy.action_dim)
    executed = tuple(macro_env.observation_spec[CHUNK_KEY].shape)
    if tuple(head.shape) != expected:
        raise UserError(
            f"{type(policy).__name__} should decode into {list(expected)} ([*B, act_horizon, action_dim]), "
            f"but gives {list(head.shape)}"
        )
    if executed != expected:
        raise UserError(
            f"the base policy decodes {decoder.act_horizon} actions of size {policy.action_dim} per macro step, "
            f"but the env executes {executed[-2]} of size {executed[-1]}: check act_horizon and control mode"
        )
    check_units(head, macro_env.full_action_spec["action"])


def check_units(head: torch.Tensor, action: TensorSpec) -> None:
    """Refuses a policy in other units than the env's.

    Args:
        head: decoded from prior noise, ``[*N, act_horizon, action_dim]``.
        action: the macro env's, ``[*B, act_horizon, action_dim]``; one without bounds says nothing.

    Raises:
        UserError: most actions of a dimension lie more than :data:`FAR` half ranges from its middle.
    """
    if action.domain != "continuous" or not hasattr(action, "low"):
        return
    low, high = (bound.flatten(0, -2)[0].to(head) for bound in (action.low, action.high))
    # Nothing is far in an infinite range, and one of zero says nothing.
    distance = ((head - (low + high) / 2).abs() / ((high - low) / 2)).flatten(0, -2).nan_to_num(0.0, torch.inf)
    far = ((distance > FAR).float().mean(0) > 0.5) & (high > low)
    if far.any():
        which = far.nonzero().flatten().tolist()
        raise UserError(
            f"most of the base policy's actions are far out of the env's range, {distance[:, far].median():.0f} of "
            f"its half ranges away (dimensions {', '.join(map(str, which))}): it should give actions in env units "
            "(denormalised), for this control mode"
        )
