"""The offline data of a run: the base policy's rollouts and the demonstrations, as macro transitions."""

from __future__ import annotations

import torch
from tensordict import TensorDictBase

from dsrl_torchrl.inversion.cache import alias_transitions
from dsrl_torchrl.inversion.search import AliasMethod, NoiseOptimisation, NoiseRetrieval
from dsrl_torchrl.data.demonstration_transitions import demonstration_transitions, step_penalty
from dsrl_torchrl.data.macro_transitions import load_transitions, save_transitions
from dsrl_torchrl.errors import UserError
from dsrl_torchrl.latent_env.latent_action_env import LatentActionEnv
from dsrl_torchrl.latent_env.prior_noise import PriorNoise
from dsrl_torchrl.cli.run import Run
from dsrl_torchrl.cli.steps.demos import demos, read_task_demonstrations
from dsrl_torchrl.collect.rollouts import collect_rollouts

#: Added to the run's seed for the base policy's rollouts, so that no training run repeats their resets.
ROLLOUT_SEED = 800_000_000

INVERSION_METHODS: dict[str, AliasMethod] = {"optimisation": NoiseOptimisation(), "retrieval": NoiseRetrieval()}


def offline_data(run: Run, env: LatentActionEnv, *, with_noise: bool) -> TensorDictBase:
    """All offline macro transitions ``[n]``; collects the rollouts where they are missing.

    Args:
        run: the run.
        env: the latent env, which rollouts are collected in.
        with_noise: only what has a noise, for TD in noise space: rollouts, and demonstrations whose noise
            ``stage1.inversion`` finds. Otherwise everything, without noise: noise aliasing needs none.
    """
    rollouts = _base_rollouts(run, env)
    demonstrations = _demonstrations(run)
    if not with_noise:
        rollouts = rollouts.exclude("action")
        return rollouts if demonstrations is None else torch.cat([rollouts, demonstrations])
    if demonstrations is None or run.stage1.inversion is None:
        return rollouts
    labelled, report = alias_transitions(
        demonstrations,
        env.decoder,
        INVERSION_METHODS[run.stage1.inversion],
        run.folder.parent / "alias_cache",  # found again by the other runs of the same base policy
        progress=run.cfg.progress,
    )
    run.say(f"inversion: {report}")
    return torch.cat([rollouts, labelled])


def _base_rollouts(run: Run, env: LatentActionEnv) -> TensorDictBase:
    path = run.stage1_artifact.folder / "rollouts.safetensors"
    if path.exists():
        return load_transitions(path)
    rollouts, success = collect_rollouts(
        env,
        PriorNoise(env.noise_layout.dim),
        run.stage1.rollout_env_steps,
        seed=ROLLOUT_SEED + run.cfg.seed,
        progress=run.cfg.progress,
    )
    save_transitions(rollouts, path)
    run.say(
        f"base rollouts: {len(rollouts)} macro transitions, success {success.value:.2f} "
        f"[{success.low:.2f}, {success.high:.2f}] of {success.n} episodes"
    )
    return rollouts


def _demonstrations(run: Run) -> TensorDictBase | None:
    task = run.cfg.task
    if not run.stage1.use_demonstrations:
        return None
    if run.cfg.base_policy.checkpoint is not None and task.demonstrations.path is None:
        run.say("offline data: base rollouts alone; task.demonstrations.path adds the demonstrations of your policy")
        return None
    if task.env.get("reward", "step_penalty") != "step_penalty":
        raise UserError(
            f"demonstrations carry no {task.env.reward} reward: set task.env.reward=step_penalty or "
            "stage1.use_demonstrations=false"
        )
    return demonstration_transitions(
        read_task_demonstrations(run, demos(run)),
        obs_horizon=task.obs_horizon,
        act_horizon=task.act_horizon,
        gamma=run.stage1.gamma,
        reward=step_penalty(task.env.success_bonus),
    )
