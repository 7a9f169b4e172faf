from __future__ import annotations

import math

import torch

from dsrl_torchrl.networks.encoders import ObservationFeatures


def test_standardised_entries_and_waves():
    features = ObservationFeatures(torch.tensor([1.0, 0.0]), torch.tensor([2.0, 0.5]), bands=(1.0,))
    out = features(torch.tensor([2.0, -0.25]))
    z = torch.tensor([0.5, -0.5])
    torch.testing.assert_close(out, torch.cat([z, torch.sin(math.pi * z), torch.cos(math.pi * z)]))
    assert out.numel() == features.out_features


def test_no_bands_and_the_clamp():
    features = ObservationFeatures(torch.zeros(1), torch.ones(1), bands=())
    assert features(torch.tensor([[1e6]])).tolist() == [[10.0]]
    assert features.out_features == 1
