"""What ``import dsrl_torchrl`` offers, which is imported at its first use."""

from __future__ import annotations

import dsrl_torchrl


def test_lazy_names_are_listed_and_there():
    assert set(dsrl_torchrl.__all__) <= set(dir(dsrl_torchrl))
    for name in dsrl_torchrl.__all__:
        assert getattr(dsrl_torchrl, name).__name__ == name
