"""Who collects: the latent policy, or during the warm-up another one."""

from __future__ import annotations

from typing import ClassVar

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase


class BehaviourPolicy(TensorDictModuleBase):
    """Switches from ``warm_up`` to ``actor`` in place: a collecting process takes the switch over with the weights.

    Writes ``action`` alone, so that batches have the same entries before and after.

    Args:
        actor: the latent policy, ``observation`` to ``action``.
        warm_up: who acts while :attr:`warming_up` is true; ``None`` leaves that to the actor, too.
    """

    in_keys: ClassVar = ["observation"]
    out_keys: ClassVar = ["action"]

    def __init__(self, actor: TensorDictModuleBase, warm_up: TensorDictModuleBase | None = None) -> None:
        super().__init__()
        self.actor = actor
        self.warm_up = warm_up
        self.register_buffer("_warming_up", torch.zeros((), dtype=torch.bool))

    @property
    def warming_up(self) -> bool:
        """Whether ``warm_up`` acts, where there is one."""
        return bool(self._warming_up)

    @warming_up.setter
    def warming_up(self, value: bool) -> None:
        self._warming_up.fill_(value)

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        acting = self.warm_up if self.warm_up is not None and self.warming_up else self.actor
        return tensordict.set("action", acting(tensordict.select("observation"))["action"])
