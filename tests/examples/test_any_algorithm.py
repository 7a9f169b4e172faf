"""TorchRL's own SAC on the latent env, with tiny numbers."""

from __future__ import annotations

from examples.any_algorithm import main


def test_it_runs():
    curve = main(env_steps=400, warmup_env_steps=200, utd=1)
    assert len(curve) >= 2 and all(-4.0 <= reward <= 0.0 for reward in curve)
