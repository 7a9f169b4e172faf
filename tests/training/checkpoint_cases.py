"""Checkpoints of components that keep what they are given."""

from __future__ import annotations

import torch

from dsrl_torchrl.training.checkpoints import Checkpoints
from dsrl_torchrl.training.run_state import Counters, RNGState

IDENTITY = {"stage": "online", "seed": 0, "loop": {"utd": 1.0, "replay_size": 10}}


class Holder:
    """A component that keeps what it is given."""

    def __init__(self, state=None):
        self.state = state

    def state_dict(self):
        return self.state

    def load_state_dict(self, state):
        self.state = state


def example():
    torch.manual_seed(0)
    shared = torch.randn(3, 4)
    return {
        "net": {
            "weight": shared,
            "alias": shared,
            "row": shared[0],
            "a.b/c": torch.arange(5),
            "flag": torch.tensor(True),
        },
        "lists": [1, 2.5, None, "text", [torch.zeros(0), {"deep": torch.ones(2, dtype=torch.uint8)}]],
    }


def make(folder, state=None, identity=IDENTITY, **options):
    said = []
    holder, counters = Holder(state), Counters()
    components = {"agent": holder, "counters": counters, "rng": RNGState()}
    return Checkpoints(folder, identity, components, say=said.append, **options), holder, counters, said


def written(folder, steps=(100, 200)):
    checkpoints, _, counters, _ = make(folder, example())
    for step in steps:
        counters.env_steps = step
        checkpoints.save(step)
    return folder


def assert_example(state):
    expected = example()
    assert set(state["net"]) == set(expected["net"])
    for name, tensor in expected["net"].items():
        assert torch.equal(state["net"][name], tensor) and state["net"][name].dtype == tensor.dtype, name
    assert state["lists"][:4] == expected["lists"][:4]
    assert torch.equal(state["lists"][4][1]["deep"], expected["lists"][4][1]["deep"])
