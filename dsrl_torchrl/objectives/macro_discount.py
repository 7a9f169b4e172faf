"""``γ^k`` for any TorchRL loss (Eq. 4)."""

from __future__ import annotations

from dataclasses import asdict
from typing import TypeVar

from tensordict import TensorDictBase
from torch import Tensor
from torchrl.objectives import LossModule, ValueEstimators
from torchrl.objectives.value import TD0Estimator

from dsrl_torchrl.errors import UserError

Loss = TypeVar("Loss", bound=LossModule)

#: k, as :class:`~dsrl_torchrl.latent_env.macro_step.MacroStep` writes it. The nested key: at the root lies the previous
#: macro step's.
STEPS_ENTRY = ("next", "steps_to_next_obs")


class MacroTD0Estimator(TD0Estimator):
    """``R + γ^k (1 - terminated) V(s')``; a batch without k is refused, where TorchRL's TD(0) takes k = 1."""

    def value_estimate(self, tensordict: TensorDictBase, *args, **kwargs) -> Tensor:
        """``[*B, 1]``."""
        steps = self.tensor_keys.steps_to_next_obs
        if tensordict.get(steps, None) is None:
            raise UserError(
                f"the TD target needs {steps}, the number of env steps of each macro transition, but the batch has no "
                "such entry: keep it in the replay, or set_keys(steps_to_next_obs=...) to its name"
            )
        return super().value_estimate(tensordict, *args, **kwargs)


def use_macro_discount(loss: Loss, gamma: float) -> Loss:
    """Makes ``loss`` bootstrap with ``γ^k``, k from each macro transition; returns the loss.

    Call it last: a later ``make_value_estimator`` forgets it, a later ``set_keys`` drops k from ``in_keys``.

    Args:
        loss: with TD(0) targets, e.g. TorchRL's ``SACLoss``, ``TD3Loss``, ``DDPGLoss``.
        gamma: discount per primitive step, the env's.
    """
    loss.make_value_estimator(ValueEstimators.TD0, gamma=gamma)
    plain = loss.value_estimator
    estimator = MacroTD0Estimator(gamma=gamma, value_network=plain.value_network, differentiable=plain.differentiable)
    estimator.set_keys(**asdict(plain.tensor_keys) | {"steps_to_next_obs": STEPS_ENTRY})
    loss.make_value_estimator(estimator)
    loss.in_keys = [*loss.in_keys, STEPS_ENTRY]
    return loss
