"""The base policies decode where they are: on a simulated device anywhere, on CUDA where there is one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.policies.on_a_device import check_decode


def test_decoding_asks_the_host_for_nothing():
    """In a process of its own: registering a device is for good."""
    command = [sys.executable, "-m", "tests.policies.on_a_device"]
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_decoding_on_cuda():
    check_decode("cuda")
