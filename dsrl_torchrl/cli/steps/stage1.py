"""``dsrl stage1``: the offline warm start, and its check in the env."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tensordict import TensorDictBase

from dsrl_torchrl import seeds
from dsrl_torchrl.agents.agent import Agent
from dsrl_torchrl.cli.config import RunConfig
from dsrl_torchrl.cli.folder import metrics_log
from dsrl_torchrl.evaluation.evaluate import evaluate
from dsrl_torchrl.evaluation.figures import plot_stage1
from dsrl_torchrl.evaluation.rates import Rate
from dsrl_torchrl.latent_env.latent_action_env import LatentActionEnv
from dsrl_torchrl.latent_env.prior_noise import make_prior
from dsrl_torchrl.training.offline import train_offline


def train_stage1(
    agent: Agent,
    env: LatentActionEnv,
    data: TensorDictBase,
    config: RunConfig,
    folder: Path,
    *,
    key: str,
    say: Callable[[str], None],
) -> tuple[dict[str, Any], list[Path]]:
    """Trains ``agent`` offline and writes it to ``folder``.

    Returns:
        What is to be recorded of it, and its files.
    """
    metrics = folder / "metrics.csv"
    with metrics_log(config, metrics, "updates", "stage1") as log:
        result = train_offline(
            agent,
            data,
            config.stage1,
            seed=config.seed,
            folder=folder,
            resume=config.resume,
            key=key,
            log=log,
            progress=config.progress,
            say=say,
        )
    files = agent.save(folder)
    facts = asdict(result) | {"transitions": len(data)}
    if config.stage1.check_episodes:
        label = "check stage 1" if config.progress else None
        starts = seeds.first(seeds.CHECKS, config.stage1.check_episodes)
        for name, policy in (("check", agent.kept_policy), ("check_base", make_prior(env.decoder))):
            # Of this env, which ends at success, the others mean something else than in the evaluations.
            measured = evaluate(env, policy, starts, progress=label).to_dict()
            facts[name] = {measure: measured[measure] for measure in ("success_once", "length_mean")}
    plot_stage1(log.rows, agent.panels, folder / "stage1.png", config.title)
    return facts, files  # the metrics are no result: an extension that is cut short has written more of them


def say_stage1(facts: dict[str, Any], folder: Path, say: Callable[[str], None]) -> None:
    """What stage 1 gained, in a few lines."""
    rate = facts["updates"] / max(facts["wall_seconds"], 1e-9)
    say(f"stage 1: {facts['updates']} updates ({rate:.1f}/s) on {facts['transitions']} macro transitions, in {folder}")
    gain, margin = facts["q_gain"], 1.96 * facts["q_gain_stderr"]
    say(
        f"check: E[Q(s, w)] {facts['q_prior']:.2f} for the prior, {facts['q_policy']:.2f} for the policy "
        f"(gain {gain:.2f} ± {margin:.2f})"
    )
    if gain < margin:
        say("warning: the policy's noise is no better than the prior's by its own critic: stage 1 gained nothing")
    if "check" in facts:
        learned, base = (Rate(**facts[name]["success_once"]) for name in ("check", "check_base"))
        say(f"check: success {learned}, the base policy {base}, of {learned.n} other resets")
        if learned.high < base.low:
            say("warning: stage 1 made the policy worse than the base: stage 2 begins from there")
