"""``dsrl base``: the frozen base policy."""

from __future__ import annotations

import torch
from hydra.utils import instantiate

from dsrl_torchrl.data.readers.maniskill import cut_chunks
from dsrl_torchrl.errors import UserError
from dsrl_torchrl.policies import BasePolicy, load_policy, probe, save_policy, steerability
from dsrl_torchrl.cli.run import Run
from dsrl_torchrl.cli.steps.demos import demos, read_task_demonstrations
from dsrl_torchrl.training.behaviour_cloning import train_base_policy


def base(run: Run) -> BasePolicy:
    """Trains the base policy on the demonstrations, or loads the user's; prints its steerability."""
    if run.cfg.base_policy.checkpoint is not None:
        policy = _checked(run, load_policy(run.cfg.base_policy.checkpoint))
        run.say(f"base policy: {run.cfg.base_policy.checkpoint}")
        return policy
    folder = run.base_artifact.folder
    if run.base_artifact.exists:
        spread = run.base_artifact.facts["steerability"]
        run.say(f"base policy: {folder} (exists), steerability {spread:.3f}")
        return _checked(run, load_policy(folder))
    task, spec = run.cfg.task, run.cfg.base_policy
    episodes = read_task_demonstrations(run, demos(run))
    run.base_artifact.begin()
    data = cut_chunks(episodes, obs_horizon=task.obs_horizon, pred_horizon=task.pred_horizon)
    torch.manual_seed(run.cfg.seed)
    policy = instantiate(spec.policy, _convert_="all")(
        observation_dim=data["observation"].shape[-1],
        action_dim=data["action"].shape[-1],
        pred_horizon=task.pred_horizon,
        obs_horizon=task.obs_horizon,
        control_mode=task.env.get("control_mode", ""),
    )
    policy = train_base_policy(
        policy,
        instantiate(spec.loss)(policy),
        data,
        seed=run.cfg.seed,
        progress=run.cfg.progress,
        **spec.training,
    )
    spread = steerability(policy, data["observation"][:512])
    save_policy(policy, folder)
    run.base_artifact.finish(steerability=spread.spread)
    run.say(f"base policy: trained on {len(data)} chunks, in {folder}")
    _say_steerability(run, spread.spread)
    return _checked(run, load_policy(folder))


def _checked(run: Run, policy: BasePolicy) -> BasePolicy:
    task = run.cfg.task
    control_mode = task.env.get("control_mode", "")
    if policy.control_mode and control_mode and policy.control_mode != control_mode:
        raise UserError(
            f"the base policy was trained for control mode {policy.control_mode}, the task uses {control_mode}"
        )
    if policy.obs_horizon != task.obs_horizon or policy.pred_horizon < task.act_horizon:
        raise UserError(
            f"the base policy has obs_horizon {policy.obs_horizon} and pred_horizon {policy.pred_horizon}, "
            f"the task asks for obs_horizon {task.obs_horizon} and act_horizon {task.act_horizon}"
        )
    probe(policy)
    return policy


def _say_steerability(run: Run, spread: float) -> None:
    limit = run.cfg.base_policy.min_steerability
    run.say(f"steerability: the decoded action spreads {spread:.3f} over noise (range [-1, 1])")
    if spread < limit:
        run.say(
            f"warning: a spread below {limit} leaves little to steer; train on demonstrations with action_noise, "
            "or with more than one way of doing the task"
        )
