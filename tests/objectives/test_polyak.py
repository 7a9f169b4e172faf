"""Polyak averaging moves what TorchRL's moves, as far."""

from __future__ import annotations

from copy import deepcopy

from torchrl.objectives import SoftUpdate

from dsrl_torchrl.objectives.polyak import PolyakUpdate

from .test_sac import make_loss


def test_two_steps_equal_torchrls_soft_update():
    loss = make_loss()
    twin = deepcopy(loss)
    before = loss.target_qvalue_network_params.data.clone()
    updaters = PolyakUpdate(loss, tau=0.25), SoftUpdate(twin, tau=0.25)
    for _ in range(2):
        for module, updater in zip((loss, twin), updaters, strict=True):
            module.qvalue_network_params.data.add_(1.0)
            updater.step()
    moved, expected = loss.target_qvalue_network_params, twin.target_qvalue_network_params
    assert (moved == expected).all() and not (moved == before).all()
    assert not any(value.requires_grad for value in moved.values(True, True))
