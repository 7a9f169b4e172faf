"""Hyper-parameters of stage 2, checked when they are given."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from dsrl_torchrl.errors import UserError

ACTIVATIONS = {"tanh": nn.Tanh, "relu": nn.ReLU, "silu": nn.SiLU}


@dataclass(frozen=True)
class Stage2Config:
    """Hyper-parameters of DSRL-SAC; the values that a run uses are in ``conf/algorithm``."""

    total_env_steps: int = 60_000  # primitive env steps, warm-up included
    warmup_env_steps: int = 8_000  # collected with the base policy's prior noise
    macro_steps_per_round: int = 8  # macro steps collected, over all envs, between two rounds of updates
    utd: float = 3  # gradient updates per collected macro step
    critic_only_updates: int = 3_000  # first updates that leave the actor alone
    actor_interval: int = 1  # critic updates per actor update
    batch_size: int = 256
    replay_size: int = 200_000  # macro transitions
    gamma: float = 0.98  # per primitive step
    tau: float = 0.01  # Polyak rate of the targets
    actor_lr: float = 2e-4
    critic_lr: float = 5e-4
    alpha_lr: float = 3e-4
    max_grad_norm: float | None = None
    num_critics: int = 2
    backup: str = "min"  # over the ensemble, in targets and actor
    alpha_init: float = 0.05
    alpha_parameterisation: str = "log"
    fixed_alpha: bool = False
    target_entropy_per_dim: float = -0.5  # for noise scaled to [-1, 1]
    num_cells: tuple[int, ...] = (128, 128, 128)
    activation: str = "relu"
    layer_norm: bool = True  # critic
    fourier_bands: tuple[float, ...] = (0.5, 1.0)  # of the observation's features; () for none
    initial_std: float = 0.5  # of the actor, before the squashing
    checkpoint_env_steps: int = 5_000
    log_env_steps: int = 250
    success_window: int = 50  # episodes in the running success

    def __post_init__(self) -> None:
        for name, kind in self.__annotations__.items():
            value = getattr(self, name)
            if kind in ("int", "float") and (isinstance(value, bool) or not isinstance(value, (int, float))):
                raise UserError(f"{name} must be a number, got {value!r}")
        if self.utd < 1:
            raise UserError(f"utd (gradient updates per macro step) must be at least 1, got {self.utd}")
        positive = (
            "total_env_steps", "macro_steps_per_round", "actor_interval", "batch_size", "replay_size",
            "actor_lr", "critic_lr", "alpha_lr", "checkpoint_env_steps", "log_env_steps", "success_window",
            "initial_std",
        )  # fmt: skip
        for name in positive:
            if not getattr(self, name) > 0:
                raise UserError(f"{name} must be positive, got {getattr(self, name)}")
        for name in ("warmup_env_steps", "critic_only_updates"):
            if getattr(self, name) < 0:
                raise UserError(f"{name} must not be negative, got {getattr(self, name)}")
        if not 0 < self.tau <= 1:
            raise UserError(f"tau must lie in (0, 1], got {self.tau}")
        if self.warmup_env_steps >= self.total_env_steps:
            raise UserError(
                f"warmup_env_steps ({self.warmup_env_steps}) must be below total_env_steps ({self.total_env_steps})"
            )
        if self.activation not in ACTIVATIONS:
            raise UserError(f"activation must be one of {', '.join(ACTIVATIONS)}; got {self.activation!r}")
