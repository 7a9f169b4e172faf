"""``latent.action_magnitude=auto``: the bound that suits this base policy, chosen once per run folder."""

from __future__ import annotations

from dataclasses import asdict

from dsrl_torchrl.cli.configured import make_latent_env
from dsrl_torchrl.steerability.action_magnitude import DEFAULT_MAGNITUDE, choose_action_magnitude
from dsrl_torchrl.steerability.prior_rollouts import collect_prior_rollouts
from dsrl_torchrl.policies import BasePolicy
from dsrl_torchrl.cli.run import Run
from dsrl_torchrl.cli.artifacts import Artifact

RESETS = 20


def settle_action_magnitude(run: Run, policy: BasePolicy) -> None:
    """Replaces ``auto`` in the run's configuration by a number; every step does so before it makes the latent env."""
    if run.cfg.latent.action_magnitude != "auto":
        return
    layout = run.cfg.latent.noise_layout
    artifact = Artifact(run.folder / "magnitude", run.base_artifact.config | {"noise_layout": layout})
    if not artifact.exists:
        run.cfg.latent.action_magnitude = DEFAULT_MAGNITUDE  # prior noise is not bounded by it
        env = make_latent_env(run.cfg, policy)
        try:
            artifact.begin()
            label = "observations for action_magnitude" if run.cfg.progress else None
            rollouts = collect_prior_rollouts(env, resets=RESETS, repeats=1, seed=run.cfg.seed, progress=label)
        finally:
            env.close()
        choice = choose_action_magnitude(env.decoder, rollouts.sample_observations(256), seed=run.cfg.seed)
        artifact.finish(**asdict(choice))
    run.cfg.latent.action_magnitude = artifact.facts["value"]
    run.say(f"auto: {artifact.facts['reason']}")
