from __future__ import annotations

import pickle

import pytest
import torch
from torchrl.data import Composite

from dsrl_torchrl.latent_env.noise_decoder import NoiseSpec


def make_spec():
    return NoiseSpec(-1.5, 1.5, shape=(3, 2), dtype=torch.float32)


@pytest.mark.parametrize(
    ("change", "shape"),
    [
        (lambda spec: spec.clone(), (3, 2)),
        (lambda spec: spec.to(torch.float64), (3, 2)),
        (lambda spec: spec.to("cpu"), (3, 2)),
        (lambda spec: spec.expand(5, 3, 2), (5, 3, 2)),
        (lambda spec: torch.stack([spec, spec.clone()]), (2, 3, 2)),
        (lambda spec: spec[0], (2,)),
        (lambda spec: spec.unsqueeze(0), (1, 3, 2)),
        (lambda spec: spec.unsqueeze(0).squeeze(0), (3, 2)),
        (lambda spec: spec.reshape(6), (6,)),
        (lambda spec: pickle.loads(pickle.dumps(spec)), (3, 2)),
        (lambda spec: Composite(action=spec, shape=(3,)).clone().to("cpu").expand(4, 3)["action"], (4, 3, 2)),
    ],
)
def test_it_stays_what_it_is(change, shape):
    spec = change(make_spec())
    assert type(spec) is NoiseSpec and spec.shape == shape
    assert spec.low.min() == -1.5 and spec.high.max() == 1.5
    torch.manual_seed(0)
    drawn = spec.rand((500,))
    torch.manual_seed(0)
    assert torch.equal(drawn, torch.randn(500, *shape, dtype=spec.dtype).clamp(-1.5, 1.5))
    assert spec.is_in(drawn[0]) and drawn.dtype == spec.dtype


def test_it_is_a_box_to_everybody_else():
    spec = make_spec()
    assert spec == make_spec() and spec.domain == "continuous"
    assert spec.project(torch.full((3, 2), 9.0)).max() == 1.5
    assert spec.rand().shape == (3, 2)
