"""``dsrl eval``: every policy of the run on the same held-out resets."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from tensordict.nn import TensorDictModuleBase

from dsrl_torchrl.agents.agent import Agent
from dsrl_torchrl.evaluation.evaluate import Evaluation, evaluate
from dsrl_torchrl.evaluation.videos import FrameRecorder, record_videos
from dsrl_torchrl.latent_env.latent_action_env import LatentActionEnv
from dsrl_torchrl.latent_env.prior_noise import make_own_prior, make_prior, whole_base
from dsrl_torchrl.policies import CentredPolicy

#: By name in the table: the module and whether its mode is used.
Policies = Mapping[str, tuple[TensorDictModuleBase, bool]]


def policies_of_run(env: LatentActionEnv, action: str, stage1: Agent | None, stage2: Agent | None) -> Policies:
    """The rows of the table. A stage's policy is there by its mode, too: what taking that gains is no merit of it."""
    decoder, layout = env.decoder, env.decoder.layout
    policies: dict[str, tuple[TensorDictModuleBase, bool]] = {}
    if layout.dim != layout.full_dim:  # the base policy as its own user runs it; its prior in the layout is another
        policies["base_own"] = make_own_prior(decoder, full=True), False
    policies["base_prior"] = make_own_prior(decoder), False
    if action != "residual":  # whose base policy draws its own noise
        policies["base_zero"] = make_own_prior(decoder, 0.0), True
    if isinstance(whole_base(decoder), CentredPolicy):
        policies["base_centred"] = make_prior(decoder), False
    if stage1 is not None:
        policies |= {"stage1": (stage1.kept_policy, False), "stage1_deterministic": (stage1.kept_policy, True)}
    if stage2 is not None:
        policies |= {
            "stage2_stochastic": (stage2.kept_policy, False),
            "stage2_deterministic": (stage2.kept_policy, True),
        }
    return policies


def evaluate_policies(
    env: LatentActionEnv, policies: Policies, starts: list[int], *, progress: bool
) -> dict[str, Evaluation]:
    """One episode of every policy from every start."""
    return {
        name: evaluate(
            env, module, starts, deterministic=deterministic, progress=f"evaluate {name}" if progress else None
        )
        for name, (module, deterministic) in policies.items()
    }


def record_policies(
    env: LatentActionEnv, recorder: FrameRecorder, policies: Policies, starts: list[int], folder: Path
) -> None:
    """One video of every policy from every start; ``recorder`` is below the env's macro step."""
    for name, (module, deterministic) in policies.items():
        record_videos(env, recorder, module, starts, folder, name, deterministic=deterministic)
