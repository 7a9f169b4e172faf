"""What a checkpoint holds beside the agent and its data: counters, optimisers, random number generators."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from torchrl.checkpoint import GlobalRNGState


@dataclass
class Counters:
    """How far a run is."""

    env_steps: int = 0
    macro_steps: int = 0
    updates: int = 0
    segments: int = 0
    wall_seconds: float = 0.0

    def state_dict(self) -> dict[str, Any]:
        """The counters by name."""
        return asdict(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores :meth:`state_dict`.

        Raises:
            ValueError: a counter that cannot be.
        """
        for field in fields(self):
            value = state[field.name]
            kind = float if field.name == "wall_seconds" else int
            if type(value) is not kind or not 0 <= value < float("inf"):
                raise ValueError(f"{field.name} is {value!r}")
        if state["macro_steps"] > state["env_steps"]:
            raise ValueError(f"{state['macro_steps']} macro steps in {state['env_steps']} env steps")
        for name, value in state.items():
            setattr(self, name, value)


class RNGState:
    """The generators of Python, NumPy and torch; a run that goes on elsewhere leaves out devices that are not there."""

    def state_dict(self) -> dict[str, Any]:
        """TorchRL's :class:`~torchrl.checkpoint.GlobalRNGState`."""
        return GlobalRNGState().state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores :meth:`state_dict`."""
        version, internal, gauss = state["python"]
        state = state | {"python": (version, tuple(internal), gauss)}  # JSON has no tuples
        if "torch_cuda" in state:
            devices = state.pop("torch_cuda")[: torch.cuda.device_count()]
            state |= {"torch_cuda": devices} if devices else {}
        GlobalRNGState().load_state_dict(state)


class OptimiserState:
    """Several optimisers' moments and counts, with texts for keys; learning rates and kinds are the configuration's."""

    def __init__(self, optimisers: dict[str, torch.optim.Optimizer]) -> None:
        self.optimisers = optimisers

    def state_dict(self) -> dict[str, Any]:
        """By the optimisers' names and the parameters' numbers."""
        return {
            name: {str(index): entries for index, entries in optimiser.state_dict()["state"].items()}
            for name, optimiser in self.optimisers.items()
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores :meth:`state_dict`."""
        for name, optimiser in self.optimisers.items():
            entries = {int(index): values for index, values in state[name].items()}
            optimiser.load_state_dict(optimiser.state_dict() | {"state": entries})
