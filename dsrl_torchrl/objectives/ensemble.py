"""How losses evaluate an ensemble of critics, and how they reduce it to one value."""

from __future__ import annotations

from tensordict import TensorDict, TensorDictParams
from tensordict.nn import TensorDictModule
from torch import Tensor
from torchrl.objectives.utils import _vmap_func

from dsrl_torchrl.errors import UserError
from dsrl_torchrl.networks.critic_mlp import CriticMLP

BACKUPS = ("min", "mean")


def check_backup(backup: str) -> str:
    """Returns ``backup`` if it names a reduction of an ensemble."""
    if backup not in BACKUPS:
        raise UserError(f"backup must be one of {', '.join(BACKUPS)}; got {backup!r}")
    return backup


def reduce_ensemble(values: Tensor, backup: str) -> Tensor:
    """``[N, *B]`` -> ``[*B]`` by the ensemble's min or mean."""
    return values.mean(0) if backup == "mean" else values.min(0)[0]


def takes_candidates(network: TensorDictModule, deactivate_vmap: bool) -> bool:
    """Whether :func:`ensemble_values` takes several actions for each observation."""
    return isinstance(getattr(network, "module", None), CriticMLP) and not deactivate_vmap


def ensemble_values(
    network: TensorDictModule, params: TensorDictParams, *inputs: Tensor, deactivate_vmap: bool = False
) -> Tensor:
    """``Q_i(*inputs)`` for every member.

    Args:
        network: ``network.in_keys`` take ``inputs`` in order, the last out key is the value ``[*B, 1]``.
        params: of all members, ``[N, ...]``.
        inputs: ``[*B, ...]`` each, the first one a vector per element. Where :func:`takes_candidates`, the second may
            be ``[M, *B, ...]``: M candidates for every observation.
        deactivate_vmap: loop over the members instead.

    A network whose module has ``forward_ensemble`` (:class:`~dsrl_torchrl.networks.critic_mlp.CriticMLP`) evaluates all
    members at once; any other goes through ``torch.vmap``, as in TorchRL's losses.

    Returns:
        ``[N, *B]`` or ``[N, M, *B]``.
    """
    if takes_candidates(network, deactivate_vmap):
        return network.module.forward_ensemble(params.get("module"), *inputs).squeeze(-1)
    batch = TensorDict(dict(zip(network.in_keys, inputs, strict=True)), inputs[0].shape[:-1])
    values = _vmap_func(network, (None, 0), pseudo_vmap=deactivate_vmap)(batch, params)
    return values.get(network.out_keys[-1]).squeeze(-1)
