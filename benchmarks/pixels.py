"""An update that learns from images, against its convolutions and matrix products alone.

DSRL-SAC on pictures of the toy task, 64 x 64 RGB, batch 256, networks of three hidden layers, with sampling. The
encoder of s is trained by the critics, its slow copy encodes s'; the floor has the products of both and of critics and
actor, forward and backward. By strides of the convolutions: ours, and RLinf's, whose images stay 32 x 32 to the end.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial

import torch
from tensordict import TensorDictBase
from torch import Tensor
from torch.nn import functional as F

from benchmarks.chart import draw
from benchmarks.floor import GRAD_INPUT, Floor, Product, backward, forward, sac_products
from benchmarks.latent_update import LatentUpdateLoop
from benchmarks.ratios import Report, ratio
from benchmarks.setting import GAMMA, MAGNITUDE, Setting
from benchmarks.update import time_in_turns
from dsrl_torchrl import LatentActionEnv
from dsrl_torchrl.agents import DSRLSAC
from dsrl_torchrl.data.macro_transitions import to_macro_transitions
from dsrl_torchrl.envs.toy import PointReachEnv
from dsrl_torchrl.networks.config import NetworkConfig
from dsrl_torchrl.networks.encoders import PixelEncoder
from dsrl_torchrl.policies import FlowPolicy

STRIDES = {"ours": (2, 2, 2, 1), "RLinf's": (2, 1, 1, 1)}
CHANNELS, KERNEL = 32, 3
SMOKE = {"critics": [2], "size": 16, "batch": 8, "transitions": 64, "seconds": 0.01, "repeats": 2}
GOAL = "<= 1.3"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--critics", nargs="+", type=int, metavar="N", default=[10], help="ensemble sizes")
    parser.add_argument("--size", type=int, default=64, help="side of the images, in pixels")
    parser.add_argument("--batch", type=int, default=256, help="macro transitions in an update")
    parser.add_argument("--width", type=int, default=128, help="of the hidden layers")
    parser.add_argument("--seconds", type=float, default=1.0, help="length of a turn of ours")
    parser.add_argument("--transitions", type=int, default=2_000, help="in the replay")


def main(arguments: argparse.Namespace) -> None:
    report = Report("pixels", arguments.out)
    for n in arguments.critics:
        for name, strides in STRIDES.items():
            _strides(report, n, name, strides, arguments)
    report.write()
    draw(report, "Time of an update from images")


def _strides(report: Report, n: int, name: str, strides: Sequence[int], arguments: argparse.Namespace) -> None:
    # The encoder's 64 features are the observation of actor and critics; the noise is the toy task's, 4 x 2.
    setting = Setting(
        observation=64, action=2, horizon=4, width=arguments.width, num_critics=n, fourier_bands=(),
        batch_size=arguments.batch,
    )  # fmt: skip
    env = LatentActionEnv(
        PointReachEnv(num_envs=16, image_size=arguments.size, seed=0),
        FlowPolicy(2, setting.action, setting.horizon).freeze(),
        gamma=GAMMA,
        action_magnitude=MAGNITUDE,
    )
    networks = NetworkConfig(
        in_keys=["pixels"],
        num_critics=n,
        num_cells=(setting.width,) * setting.depth,
        encoders={"pixels": partial(PixelEncoder, features=setting.observation, strides=strides)},
    )
    config = DSRLSAC.Config(batch_size=setting.batch_size, gamma=GAMMA)
    agent = DSRLSAC(env, config, networks)
    loop = LatentUpdateLoop(agent, _transitions(env, agent, arguments.transitions))
    sides = {"update": loop.run, "floor": PixelFloor(setting, arguments.size, strides).run}
    case = f"N={n} strides={','.join(map(str, strides))}"
    times = time_in_turns(report, case, sides, arguments)
    report.ratio(f"{case}: update / floor", ratio(times, "update", "floor"), GOAL)
    report.ratio(f"{case}: update / floor, CPU", ratio(times.cpu, "update", "floor"), GOAL)


def _transitions(env: LatentActionEnv, agent: DSRLSAC, count: int) -> TensorDictBase:
    """Macro transitions by random noise."""
    batch = env.rollout(-(-count // 16), break_when_any_done=False)
    return to_macro_transitions(batch, agent.in_keys)[:count]


class Convolution:
    """A 3x3 convolution of images, in the memory order in which a CPU is fastest.

    Args:
        rows: images.
        channels: of the input.
        side: of the input, in pixels.
        stride: its own.
    """

    def __init__(self, rows: int, channels: int, side: int, stride: int) -> None:
        self.stride, out = stride, -(-side // stride)
        self.input, self.weight, self.grad = (
            torch.randn(shape).contiguous(memory_format=torch.channels_last)
            for shape in (
                (rows, channels, side, side),
                (CHANNELS, channels, KERNEL, KERNEL),
                (rows, CHANNELS, out, out),
            )
        )

    def forward(self) -> Tensor:
        """``[rows, 32, side / stride, side / stride]``."""
        return F.conv2d(self.input, self.weight, stride=self.stride, padding=1)

    def backward(self, inputs: bool) -> None:
        """The weights' gradient, and the input's where it is wanted."""
        torch.ops.aten.convolution_backward(
            self.grad, self.input, self.weight, None, [self.stride] * 2, [1, 1], [1, 1], False, [0, 0], 1,
            [inputs, True, False],
        )  # fmt: skip


class PixelFloor:
    """All convolutions and matrix products of an update, and nothing else; operands are made once."""

    def __init__(self, setting: Setting, side: int, strides: Sequence[int]) -> None:
        rows, n, channels = setting.batch_size, setting.num_critics, 3
        self.convolutions = []
        for stride in strides:
            self.convolutions.append(Convolution(rows, channels, side, stride))
            channels, side = CHANNELS, -(-side // stride)
        linear = [CHANNELS * side**2, setting.features]
        critics = Product(GRAD_INPUT, n, rows, setting.features + setting.noise, setting.width)  # to the features
        encoder = [*forward(linear, rows), *forward(linear, rows), *backward(linear, rows, inputs=True)]
        self.products = Floor([*encoder, critics, *sac_products(setting)])

    def run(self, updates: int) -> None:
        for _ in range(updates):
            with torch.no_grad():
                for _observation in ("s", "s'"):
                    for convolution in self.convolutions:
                        convolution.forward()
                for depth, convolution in reversed(list(enumerate(self.convolutions))):
                    convolution.backward(inputs=depth > 0)
            self.products.run(1)
