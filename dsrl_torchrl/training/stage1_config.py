"""Hyper-parameters of stage 1, checked when they are given."""

from __future__ import annotations

from dataclasses import dataclass

from dsrl_torchrl.errors import UserError
from dsrl_torchrl.training.learner_config import LearnerConfig

INVERSIONS = (None, "optimisation", "retrieval")


@dataclass(frozen=True)
class Stage1Config(LearnerConfig):
    """Hyper-parameters of the offline warm start; the defaults are those of ``conf/config.yaml``."""

    rollout_env_steps: int = 30_000  # primitive env steps of the base policy with prior noise, failures included
    use_demonstrations: bool = True  # as offline data, beside the rollouts
    updates: int = 4_000
    critic_only_updates: int = 1_000
    actor_batch_size: int = 256
    distillation_interval: int = 1
    alias_samples: int = 16  # noises decoded once per stored state for the distillation; 0: a fresh one per update
    use_na: bool = True  # Q^A by TD, distilled into Q^W; False: Q^W by TD on the rollouts' own noise
    inversion: str | None = None  # gives demonstrations a noise, for use_na=False: optimisation, retrieval
    check_episodes: int = 40  # of the stage 1 policy in the env, on resets of their own
    log_updates: int = 100
    checkpoint_updates: int = 2_000

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_positive("rollout_env_steps", "updates", "log_updates", "checkpoint_updates")
        self._check_not_negative("check_episodes", "alias_samples")
        if self.inversion not in INVERSIONS:
            raise UserError(f"inversion must be one of null, optimisation, retrieval; got {self.inversion!r}")
        if self.inversion is not None and self.use_na:
            raise UserError("inversion is read with use_na=false only: noise aliasing needs no noise of the data")
        if self.critic_only_updates >= self.updates:
            raise UserError(f"critic_only_updates ({self.critic_only_updates}) must be below updates ({self.updates})")
