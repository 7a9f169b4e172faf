"""Decoding on a device: the CPU's numbers, with nothing asked of the host.

``python -m tests.policies.on_a_device`` checks it on a simulated one.
"""

from __future__ import annotations

from copy import deepcopy

import torch
from tensordict import TensorDict

from dsrl_torchrl.latent_env.noise_decoder import NoiseDecoder
from dsrl_torchrl.latent_env.noise_layout import NOISE_LAYOUTS
from dsrl_torchrl.policies import DiffusionPolicy, FlowPolicy, ShortcutPolicy

NETWORKS = [{"kind": "mlp", "width": 8, "depth": 1}, {"kind": "unet", "channels": [8, 16]}]


# Torch lets convolutions round their inputs to TF32 on a card: chunks of a U-Net then differ by some 1e-3.
@torch.backends.cudnn.flags(enabled=True, allow_tf32=False)
def check_decode(device, traffic=None):
    """Every policy of ours, with every network and layout; ``traffic`` has what went between host and device."""
    traffic = [] if traffic is None else traffic
    torch.manual_seed(0)
    observations = TensorDict({"observation": torch.randn(5, 3)}, [5])
    there = observations.to(device)
    for policy_class in (FlowPolicy, DiffusionPolicy, ShortcutPolicy):
        for network in NETWORKS:
            policy = policy_class(observation_dim=3, action_dim=2, pred_horizon=4, network=network).freeze()
            on_device = deepcopy(policy).to(device)
            for layout in NOISE_LAYOUTS:
                decoder, twin = (NoiseDecoder(p, act_horizon=2, noise_layout=layout) for p in (policy, on_device))
                noise = torch.randn(5, decoder.latent_dim)
                noise_there = noise.to(device)
                with torch.no_grad():
                    twin.decode(there, noise_there)  # the knots' weights are made once
                    del traffic[:]
                    chunk = twin.decode(there, noise_there)
                    assert not traffic, f"{policy_class.__name__}, {network}, {layout}: {traffic}"
                    expected = decoder.decode(observations, noise)
                assert chunk.device.type == torch.device(device).type
                torch.testing.assert_close(chunk.cpu(), expected, rtol=1e-3, atol=1e-4)


if __name__ == "__main__":
    from tests.agents.simulated_device import register, traffic

    device = register()
    check_decode("sim", traffic)
