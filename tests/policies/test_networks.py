"""The two networks: one call, any horizon."""

from __future__ import annotations

import pytest
import torch

from dsrl_torchrl.policies import make_network


@pytest.mark.parametrize("horizon", [1, 2, 3, 4, 5, 7, 8, 13, 16])
@pytest.mark.parametrize("channels", [(8,), (8, 16), (8, 16, 16)])
def test_unet_takes_any_horizon(horizon, channels):
    network = make_network({"kind": "unet", "channels": channels}, 6, 3, horizon)
    assert network(torch.randn(4, 6), torch.randn(4, horizon, 3), torch.rand(4)).shape == (4, horizon, 3)


@pytest.mark.parametrize("options", [{"kind": "mlp", "width": 32, "depth": 1}, {"kind": "unet", "channels": [8, 16]}])
def test_output_depends_on_every_input_per_row(options):
    network = make_network(options, 6, 3, 5)
    assert network.options == options
    observation, x, t = torch.randn(4, 6), torch.randn(4, 5, 3), torch.rand(4)
    before = network(observation, x, t)
    for changed in ((observation + 1, x, t), (observation, x + 1, t), (observation, x, 1 - t)):
        assert (network(*changed) - before).abs().amax((1, 2)).min() > 1e-4
    observation[0] += 1
    torch.testing.assert_close(network(observation, x, t)[1:], before[1:])


def test_every_parameter_is_used():
    for options in ({"kind": "mlp"}, {"kind": "unet"}):
        network = make_network(options, 6, 3, 8)
        network(torch.randn(4, 6), torch.randn(4, 8, 3), torch.rand(4)).square().sum().backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())
