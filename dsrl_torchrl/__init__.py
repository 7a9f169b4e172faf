"""dsrl-torchrl: diffusion steering by reinforcement learning, as TorchRL components."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dsrl_torchrl.latent_env.latent_action_env import LatentActionEnv
    from dsrl_torchrl.latent_env.macro_step import MacroStep, make_macro_env
    from dsrl_torchrl.latent_env.noise_decoder import NoiseDecoder

__all__ = ["LatentActionEnv", "MacroStep", "NoiseDecoder", "make_macro_env"]

_MODULES = {
    "LatentActionEnv": "latent_action_env",
    "MacroStep": "macro_step",
    "NoiseDecoder": "noise_decoder",
    "make_macro_env": "macro_step",
}


def __getattr__(name: str) -> Any:
    # Not at import: that takes torch's seconds, in which `dsrl` could neither print its help nor answer Ctrl-C.
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"dsrl_torchrl.latent_env.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
