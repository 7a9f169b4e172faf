"""The documented wrapper of openpi, verbatim, around a stand-in with ``Policy.infer``'s signature and shapes."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import torch

from dsrl_torchrl.policies.adapters.serve_policy import callable_policy

from .served import served, steered

PAGE = Path(__file__).parents[3] / "docs" / "policy-server.md"


class Policy:
    """openpi's: one observation, without a batch; the noise ``[action_horizon, action_dim]`` by keyword."""

    def infer(self, obs: dict, *, noise: np.ndarray | None = None) -> dict:
        assert noise is not None and noise.shape == (10, 32)
        assert obs["observation/state"].shape == (8,) and obs["observation/image"].shape == (3, 224, 224)
        return {"actions": noise[:, :7] + obs["observation/state"][0] + obs["observation/wrist_image"][0, 0, 0]}


def stand_in(monkeypatch):
    def create_trained_policy(train_config, checkpoint_dir, *, default_prompt=None):
        assert train_config == "config pi05_libero" and default_prompt
        return Policy()

    modules = {name: ModuleType(name) for name in ("openpi", "openpi.policies", "openpi.training")}
    modules["openpi.policies"].policy_config = SimpleNamespace(create_trained_policy=create_trained_policy)  # type: ignore[attr-defined]
    modules["openpi.training"].config = SimpleNamespace(get_config="config {}".format)  # type: ignore[attr-defined]
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)


def test_it_steers_what_infer_takes(tmp_path, monkeypatch):
    stand_in(monkeypatch)
    (block,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    (tmp_path / "openpi_policy.py").write_text(block)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "openpi_policy", raising=False)
    names = {"observation/image": "front", "observation/wrist_image": "wrist", "observation/state": "state"}
    state = torch.arange(24.0).reshape(3, 8)
    images = torch.arange(3, dtype=torch.uint8).reshape(3, 1, 1, 1).expand(3, 3, 224, 224)
    noise = torch.randn(3, 10, 32, generator=torch.Generator().manual_seed(0))
    with served(callable_policy("openpi_policy:decode")) as url, steered(url, entries=names) as policy:
        assert policy.in_keys == ["front", "wrist", "state"] and policy.n_action_steps == 5
        chunk = policy(images, images, state, noise)
    torch.testing.assert_close(chunk, noise[..., :7] + state[:, :1, None] + torch.arange(3.0)[:, None, None])
