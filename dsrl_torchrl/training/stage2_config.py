"""Hyper-parameters of stage 2, checked when they are given."""

from __future__ import annotations

from dataclasses import dataclass

from dsrl_torchrl.errors import UserError
from dsrl_torchrl.training.learner_config import LearnerConfig


@dataclass(frozen=True)
class Stage2Config(LearnerConfig):
    """Hyper-parameters of online training; the defaults are those of ``conf/algorithm/dsrl_na.yaml``."""

    noise_aliasing: bool = True  # DSRL-NA; False: DSRL-SAC
    init_actor: bool = True  # from stage 1
    init_critics: bool = True  # from stage 1
    alias_samples: int = 16  # noises decoded once per stored state for the distillation; 0: a fresh one per update
    alias_refresh: int = 8  # stored states per round whose pairs are drawn anew; 0: never
    behaviour_fraction: float = 0.5  # of the online states' noises: those that were executed; the rest the prior's
    offline_fraction: float = 0.25  # of every batch, from stage 1's data
    actor_average: float = 0.99  # decay of the averaged actor that a run keeps; 0: the last actor itself
    total_env_steps: int = 60_000  # primitive env steps, warm-up included
    warmup_env_steps: int = 2_000  # collected before the first update: by stage 1's actor, or with prior noise without
    macro_steps_per_round: int = 8  # macro steps collected, over all envs, between two rounds of updates
    utd: float = 1  # gradient updates per collected macro step
    replay_size: int = 200_000  # macro transitions
    checkpoint_env_steps: int = 5_000
    log_env_steps: int = 250
    success_window: int = 50  # episodes in the running success

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.utd < 1:
            raise UserError(f"utd (gradient updates per macro step) must be at least 1, got {self.utd}")
        self._check_positive(
            "total_env_steps", "macro_steps_per_round", "replay_size", "checkpoint_env_steps",
            "log_env_steps", "success_window",
        )  # fmt: skip
        self._check_not_negative("warmup_env_steps", "alias_samples", "alias_refresh")
        self._check_fraction("offline_fraction", "behaviour_fraction")
        if not 0 <= self.actor_average < 1:
            raise UserError(f"actor_average must lie in [0, 1), got {self.actor_average}")
        if self.offline_fraction == 1:
            raise UserError("offline_fraction must be below 1: stage 2 learns from what it collects")
        if self.warmup_env_steps >= self.total_env_steps:
            raise UserError(
                f"warmup_env_steps ({self.warmup_env_steps}) must be below total_env_steps ({self.total_env_steps})"
            )

    @property
    def needs_stage1(self) -> bool:
        """Whether anything of stage 1 enters: its actor, its critics or its data."""
        return self.init_actor or self.init_critics or self.offline_fraction > 0
