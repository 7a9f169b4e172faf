"""Torch's threads stay as configured, whatever TorchRL's envs leave behind."""

from __future__ import annotations

import torch

from dsrl_torchrl.cli.main import compose
from dsrl_torchrl.cli.run import Run


def test_threads_are_set_again(tmp_path):
    before = torch.get_num_threads()
    try:
        run = Run(compose(["task=toy", f"output={tmp_path}", "collector.threads=1"]), say=lambda line: None)
        torch.set_num_threads(2)  # as a ParallelEnv's close does
        run.set_threads()
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)
