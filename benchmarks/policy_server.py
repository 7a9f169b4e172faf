"""What a policy server adds to a request: the same policy called here, and in a process of its own behind the server.

The policy computes next to nothing, so that the difference is the server, the wire (localhost) and the client. A VLA's
shapes: noise [10, 32], chunks [10, 7], a state of 8, and two uint8 cameras of 64 x 64.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
from tensordict import TensorDict
from torch import Tensor

from benchmarks import served_policy
from benchmarks.chart import draw
from benchmarks.ratios import Report, interleave, statistic
from dsrl_torchrl.policies import BasePolicy
from dsrl_torchrl.policies.adapters import serve_policy
from dsrl_torchrl.policies.adapters.policy_server import PolicyServer

SMOKE = {"requests": 3, "repeats": 1}

CASES = {"batch 1, state": ("state", 1), "batch 1, 2 cameras": ("cameras", 1), "batch 16, 2 cameras": ("cameras", 16)}
GOAL_MS = 5.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--requests", type=int, default=200, help="in a turn")


def main(arguments: argparse.Namespace) -> None:
    report = Report("policy_server", arguments.out)
    for case, (name, batch) in CASES.items():
        with serving(name) as url:
            policies = {"direct": Direct(name), "server": PolicyServer(url).freeze()}
            observations, noise = inputs(policies["server"], name, batch)
            sides = {
                side: partial(ask, policy, observations, noise, arguments.requests) for side, policy in policies.items()
            }
            times = interleave(sides, arguments.repeats)
        pairs = zip(times["server"], times["direct"], strict=True)
        added = [1e3 * (server - direct) / arguments.requests for server, direct in pairs]
        report.value(f"{case}: added", statistic(added), "ms a request")
        goal = "<= 1" if batch == 1 else None
        report.ratio(f"{case}: added / {GOAL_MS:g} ms", statistic([each / GOAL_MS for each in added]), goal)
    report.write()
    draw(report, "What a policy server adds to a request, on localhost")


@contextmanager
def serving(name: str) -> Iterator[str]:
    """The url of a server in a process of its own."""
    command = [sys.executable, serve_policy.__file__, "--callable", f"benchmarks.served_policy:{name}", "--port", "0"]
    root = Path(__file__).parents[1]
    with subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        assert server.stdout is not None
        try:
            yield next(line.split()[3].rstrip(",") for line in server.stdout if line.startswith("serving "))
        finally:
            server.terminate()


class Direct(BasePolicy):
    """The policy in this process."""

    def __init__(self, name: str) -> None:
        super().__init__(7, 10, in_keys=["state", "left", "right"][: 3 if name == "cameras" else 1], noise_dim=32)
        self.function = getattr(served_policy, name)

    def forward(self, *entries_and_noise: Tensor) -> Tensor:
        *entries, noise = (tensor.numpy() for tensor in entries_and_noise)
        return torch.from_numpy(self.function(dict(zip(self.in_keys, entries, strict=True)), noise))


def inputs(policy: PolicyServer, name: str, batch: int) -> tuple[TensorDict, Tensor]:
    generator = torch.Generator().manual_seed(0)
    entries = getattr(served_policy, name).entries
    observations = {"state": torch.randn(batch, 8, generator=generator)} | {
        key: torch.randint(0, 256, (batch, *shape), dtype=torch.uint8, generator=generator)
        for key, (dtype, shape) in entries.items()
        if dtype == "uint8"
    }
    noise = torch.randn(batch, policy.noise_horizon, policy.noise_dim, generator=generator)
    return TensorDict(observations, [batch]), noise


def ask(policy: BasePolicy, observations: TensorDict, noise: Tensor, requests: int) -> None:
    for _ in range(requests):
        policy.decode(observations, noise)
