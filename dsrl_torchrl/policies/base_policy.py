"""The contract of a base policy: frozen, ``(observation, noise) -> action chunk``, deterministic in both."""

from __future__ import annotations

from typing import Self

from torch import Tensor, nn

from dsrl_torchrl.errors import UserError
from dsrl_torchrl.policies.arguments import positive_int
from dsrl_torchrl.policies.normalisation import Normalisation


class BasePolicy(nn.Module):
    """What DSRL steers: a policy that somebody trained, seen as a function of its initial noise (SPEC, top).

    A subclass implements ``forward`` and keeps four promises:

    - deterministic: the same observation and noise give the same chunk (:func:`~dsrl_torchrl.policies.probe` checks);
    - batched: any leading dims, on whatever device the module is;
    - differentiable in ``noise`` when that requires grad: no ``torch.no_grad`` inside;
    - complete: normalisation happens inside, so observations and actions are in env units.

    An adapter of a foreign policy that normalises by itself leaves :attr:`normalisation` as it is, or fits it to its
    action range so that :func:`~dsrl_torchrl.policies.steerability` is measured in that range.

    Args:
        observation_dim: size of the flat observation, ``obs_horizon`` times the size of one primitive step's.
        action_dim: size of one action.
        pred_horizon: number of actions in a chunk.
        obs_horizon: number of primitive steps in the observation, oldest first.
        control_mode: how the robot reads an action, e.g. ManiSkill's ``pd_ee_delta_pos``. Metadata.

    Raises:
        UserError: a size that is not a positive integer, or ``observation_dim`` not a multiple of ``obs_horizon``.
    """

    def __init__(
        self,
        observation_dim: int,
        action_dim: int,
        pred_horizon: int,
        obs_horizon: int = 1,
        control_mode: str = "",
    ) -> None:
        super().__init__()
        self.observation_dim = positive_int("observation_dim", observation_dim)
        self.action_dim = positive_int("action_dim", action_dim)
        self.pred_horizon = positive_int("pred_horizon", pred_horizon)
        self.obs_horizon = positive_int("obs_horizon", obs_horizon)
        if observation_dim % obs_horizon:
            raise UserError(
                f"observation_dim must be a multiple of obs_horizon (the history is flattened): "
                f"got {observation_dim} and {obs_horizon}"
            )
        self.control_mode = str(control_mode)
        self.normalisation = Normalisation(observation_dim, action_dim)
        self._frozen = False

    def forward(self, observation: Tensor, noise: Tensor) -> Tensor:
        """Decodes noise into an action chunk.

        Args:
            observation: ``[*B, observation_dim]`` in env units. Finite: not checked here, where it would cost a
                synchronisation per call.
            noise: ``[*B, pred_horizon, action_dim]``, ``N(0, I)`` for the policy's own behaviour.

        Returns:
            Actions ``[*B, pred_horizon, action_dim]`` in env units.
        """
        raise NotImplementedError

    def check_shapes(self, observation: Tensor, chunk: Tensor, name: str = "noise") -> None:
        """Raises a :class:`UserError` that prints both shapes unless they fit the policy and each other.

        ``chunk`` is noise or actions; ``name`` says which in the message.
        """
        chunk_shape = (*observation.shape[:-1], self.pred_horizon, self.action_dim)
        if observation.shape[-1:] != (self.observation_dim,) or chunk.shape != chunk_shape:
            raise UserError(
                f"expected observation [*B, {self.observation_dim}] and {name} "
                f"[*B, {self.pred_horizon}, {self.action_dim}] with the same leading dims; "
                f"got observation {list(observation.shape)} and {name} {list(chunk.shape)}"
            )

    @property
    def frozen(self) -> bool:
        """Whether :meth:`freeze` has been called."""
        return self._frozen

    def freeze(self) -> Self:
        """No parameter requires grad any more and the policy stays in eval mode; returns the policy."""
        self._frozen = True
        self.requires_grad_(False)
        return self.eval()

    def train(self, mode: bool = True) -> Self:
        """As in ``nn.Module``, but a frozen policy stays in eval mode when a parent calls this."""
        return super().train(mode and not self._frozen)

    def set_normalisation(self, observations: Tensor, actions: Tensor, valid: Tensor | None = None) -> Self:
        """Takes the scales from data: see :meth:`~dsrl_torchrl.policies.normalisation.Normalisation.fit`."""
        self.normalisation.fit(observations, actions, valid)
        return self
