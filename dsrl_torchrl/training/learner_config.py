"""What both stages ask of their losses and optimisers."""

from __future__ import annotations

from dataclasses import dataclass, fields

from dsrl_torchrl.errors import UserError
from dsrl_torchrl.training.update import OptimiserConfig


@dataclass(frozen=True)
class LearnerConfig:
    """Hyper-parameters of the losses and their optimisers."""

    batch_size: int = 256
    critic_only_updates: int = 300  # first updates that leave the actor alone
    actor_interval: int = 4  # critic updates per actor update
    distillation_interval: int = 2  # updates of Q^A per distillation into Q^W (noise aliasing only)
    # Updates that share a sample and one decode of their TD targets' chunks, with the latent policy at their start
    # (noise aliasing decodes them; the sample is shared in any case); 1: every update for itself.
    target_interval: int = 8
    compile: bool | None = None  # the update by torch.compile; None: on CUDA (with CUDA graphs), not on a CPU
    gamma: float = 0.98  # per primitive step
    backup: str = "mean"  # over the ensemble, in targets and actor
    tau: float = 0.01  # Polyak rate of the targets
    actor_lr: float = 2e-4
    critic_lr: float = 5e-4
    alpha_lr: float = 3e-4
    max_grad_norm: float | None = None
    alpha_init: float = 0.03
    alpha_parameterisation: str = "log"
    fixed_alpha: bool = False
    target_entropy_per_dim: float = -0.5  # for noise scaled to [-1, 1]
    aw_mle: bool = True  # S1, advantage-weighted MLE on candidates of the prior; False: S2, SAC's actor loss on Q^W
    actor_batch_size: int = 64  # states of the batch that a step of AW-MLE reads, each with m_candidates
    m_candidates: int = 32
    beta_latent: float = 10.0  # inverse temperature of the candidates' weights, in units of the return
    tau_baseline: float = 0.1

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.type in ("int", "float") and (isinstance(value, bool) or not isinstance(value, (int, float))):
                raise UserError(f"{field.name} must be a number, got {value!r}")
        self._check_positive(
            "batch_size", "actor_interval", "distillation_interval", "target_interval", "actor_lr", "critic_lr",
            "alpha_lr", "actor_batch_size", "beta_latent", "tau_baseline",
        )  # fmt: skip
        self._check_not_negative("critic_only_updates")
        if self.m_candidates < 2:
            raise UserError(f"m_candidates must be at least 2, got {self.m_candidates}")
        if self.compile not in (None, True, False):
            raise UserError(f"compile must be true, false or null, got {self.compile!r}")
        if not 0 < self.tau <= 1:
            raise UserError(f"tau must lie in (0, 1], got {self.tau}")
        if not 0 < self.gamma <= 1:
            raise UserError(f"gamma must lie in (0, 1], got {self.gamma}")

    def _check_positive(self, *names: str) -> None:
        for name in names:
            if not getattr(self, name) > 0:
                raise UserError(f"{name} must be positive, got {getattr(self, name)}")

    def _check_not_negative(self, *names: str) -> None:
        for name in names:
            if getattr(self, name) < 0:
                raise UserError(f"{name} must not be negative, got {getattr(self, name)}")

    def _check_fraction(self, *names: str) -> None:
        for name in names:
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"{name} must lie in [0, 1], got {getattr(self, name)}")

    @property
    def optimisers(self) -> OptimiserConfig:
        """The part that concerns the optimisers."""
        return OptimiserConfig(self.actor_lr, self.critic_lr, self.alpha_lr, self.tau, self.max_grad_norm)
