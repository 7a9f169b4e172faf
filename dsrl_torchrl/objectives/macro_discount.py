"""``γ^k`` for any TorchRL loss (Eq. 4)."""

from __future__ import annotations

from typing import TypeVar

from torchrl.objectives import LossModule, ValueEstimators

Loss = TypeVar("Loss", bound=LossModule)

#: k, as :class:`~dsrl_torchrl.latent_env.macro_step.MacroStep` writes it. The nested key: at the root lies the previous
#: macro step's.
STEPS_ENTRY = ("next", "steps_to_next_obs")


def use_macro_discount(loss: Loss, gamma: float) -> Loss:
    """Makes ``loss`` bootstrap with ``γ^k``, k from each macro transition; returns the loss.

    Call it last: a later ``make_value_estimator`` forgets it. ``loss.in_keys`` lacks the entry: do not filter a batch
    by it.

    Args:
        loss: with TD(0) targets, e.g. TorchRL's ``SACLoss``, ``TD3Loss``, ``DDPGLoss``.
        gamma: discount per primitive step, the env's.
    """
    loss.make_value_estimator(ValueEstimators.TD0, gamma=gamma)
    loss.value_estimator.set_keys(steps_to_next_obs=STEPS_ENTRY)
    return loss
