"""Several updates from one sample: what they share is done once."""

from __future__ import annotations

from collections.abc import Callable

from tensordict import TensorDictBase
from torch import Tensor

from dsrl_torchrl.data.decoded_pairs import pick_alias_pair
from dsrl_torchrl.training.accelerated_update import AcceleratedUpdate
from dsrl_torchrl.training.learner_config import LearnerConfig


def make_updates(
    update: AcceleratedUpdate,
    sample: Callable[[int], TensorDictBase],
    config: LearnerConfig,
    *,
    first: int,
    updates: int,
    after_actor: Callable[[], None] = lambda: None,
) -> dict[str, Tensor]:
    """Makes ``updates`` updates; every ``config.target_interval`` of them share a sample and one decode of TD targets.

    Args:
        update: of the latent policy.
        sample: gives ``[n, batch_size]`` macro transitions for n updates.
        config: which updates train the actor and ``Q^W``, and how many share a sample.
        first: updates made before.
        updates: updates to make.
        after_actor: called after every update of the actor.

    Returns:
        The newest value of every metric, on the device.
    """
    metrics: dict[str, Tensor] = {}
    end = first + updates
    while first < end:
        share = min(config.target_interval, end - first)
        batches = update.prepare(pick_alias_pair(sample(share)))
        for step, batch in enumerate(batches.unbind(0), start=first):
            update_actor = step >= config.critic_only_updates and step % config.actor_interval == 0
            distil = step % config.distillation_interval == 0
            metrics.update(update(batch, update_actor=update_actor, distil=distil).items())
            if update_actor:
                after_actor()
        first += share
    return metrics
