"""The ``dsrl`` command where ``device=sim`` is one: ``python -m tests.cli.on_a_device <step> <option ...>``."""

from __future__ import annotations

import sys

from dsrl_torchrl.cli import values
from tests.agents.simulated_device import SimTensor, _Backend, register


def _tolist(tensor):
    return tensor.data_on_cpu.tolist()  # torch refuses it to subclasses


if __name__ == "__main__":
    SimTensor.tolist = _tolist
    # Its random numbers are the CPU's, which `fork_rng` keeps in any case.
    _Backend.get_rng_state = lambda self, device=None: None
    _Backend.set_rng_state = lambda self, state, device=None: None
    device = register()
    values.device = lambda value: value

    from dsrl_torchrl.cli.main import main

    main(sys.argv[1:])
