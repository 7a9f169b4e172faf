"""Options that are right by themselves, but not together, and the arguments of what is named by ``_target_``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.util import find_spec
from typing import Any

from dsrl_torchrl.agents.encoding import check_actor_encoder
from dsrl_torchrl.agents.redq import REDQ, check_members
from dsrl_torchrl.agents.residual_sac import ResidualSAC
from dsrl_torchrl.cli.config import LatentOptions, RunConfig
from dsrl_torchrl.cli.steps.base import policy_keys
from dsrl_torchrl.cli.steps.offline_data import check_demonstrated_reward
from dsrl_torchrl.cli.targets import check_target
from dsrl_torchrl.data.macro_transitions import entry_name
from dsrl_torchrl.errors import UserError
from dsrl_torchrl.latent_env.base_features import BASE_FEATURES_KEY
from dsrl_torchrl.latent_env.noise_layout import NoiseLayout
from dsrl_torchrl.training.online import check_on_policy

ROBOMIMIC_ENV = "dsrl_torchrl.envs.robomimic.RobomimicEnv"
ROBOMIMIC_POLICY = "dsrl_torchrl.policies.adapters.robomimic_diffusion.load_robomimic_diffusion"
#: A stage of so few updates is a try of the machinery: it teaches nobody, whatever its options.
TRY_UPDATES = 100


def check_together(config: RunConfig, find: Callable[[str], str]) -> None:
    """Checks what no option shows alone.

    Args:
        config: each option of it is in its range.
        find: the hint for an unknown name.

    Raises:
        UserError: the first that does not fit.
    """
    _check_learns_offline(config)
    _check_stage1(config, find)
    check_on_policy(config.agent, config.stage2)
    _check_updates(config)
    _check_batches(config)
    _check_redq(config)
    _check_ray(config)
    _check_action(config)
    for agent in config.agents:
        check_actor_encoder(agent, config.networks)
    _check_base_features(config)
    _check_offline_data(config)
    _check_targets(config)


def _check_base_features(config: RunConfig) -> None:
    if BASE_FEATURES_KEY in (config.networks.in_keys or ()) and not config.latent.base_features:
        raise UserError(f"networks.in_keys names {BASE_FEATURES_KEY}: set latent.base_features=true, which makes it")


def _check_learns_offline(config: RunConfig) -> None:
    if not config.agent.learns_offline and (config.stage2.from_stage1 or config.needs_offline_data):
        raise UserError(
            f"{config.agent.__name__} learns nothing offline: set stage2.from_stage1=[] and stage2.offline_fraction=0"
        )


def _check_stage1(config: RunConfig, find: Callable[[str], str]) -> None:
    for name in config.stage1.algorithm:
        if name != "_target_" and name not in config.offline_agent.Config.model_fields:
            raise UserError(f"unknown option stage1.algorithm.{name}{find(f'algorithm.{name}')}")
    if config.stage1.algorithm.get("gamma", config.algorithm.gamma) != config.algorithm.gamma:
        raise UserError("stage1.algorithm.gamma: both stages have the discount of their rewards, algorithm.gamma")
    try:
        _ = config.offline_algorithm
    except UserError as error:
        raise UserError(f"stage1.algorithm.{error}") from None
    if config.stage1.inversion is not None and not config.reads_noise:
        raise UserError(
            "stage1.inversion is for algorithms that learn from the data's noise; "
            f"{config.offline_agent.__name__} needs none"
        )
    parts = config.stage2.from_stage1
    if parts and (config.offline_agent.on_policy or not config.offline_agent.learns_offline):
        raise UserError(
            f"{config.offline_agent.__name__} can't learn offline: name another algorithm by "
            "stage1.algorithm._target_, or set stage2.from_stage1=[]"
        )
    if "critics" in parts and config.agent.on_policy:
        raise UserError(
            f"{config.agent.__name__} has a critic that stage 1 doesn't learn: set stage2.from_stage1=[actor], got "
            f"{list(parts)}"
        )


def _check_updates(config: RunConfig) -> None:
    """An actor that is left alone for a whole stage was not meant to be."""
    stage1, stage2 = config.stage1, config.stage2
    if not (stage2.total_env_steps or stage2.from_stage1):
        raise UserError(
            "stage2.total_env_steps=0 and stage2.from_stage1=[] leave nothing to learn: give stage 2 steps, or "
            "from_stage1=[actor,critics], which makes stage 1"
        )
    # Algorithms without an actor have no such option.
    waits = getattr(config.offline_algorithm, "critic_only_updates", 0)
    if "actor" in stage2.from_stage1 and TRY_UPDATES < stage1.updates <= waits:
        raise UserError(
            f"stage1.updates ({stage1.updates}) must be above stage1.algorithm.critic_only_updates ({waits}), or the "
            "actor never learns"
        )
    waits = getattr(config.algorithm, "critic_only_updates", 0)
    most = stage2.utd * stage2.total_env_steps  # if every macro step were cut to one env step
    if most / config.task.act_horizon > TRY_UPDATES and most <= waits:
        raise UserError(
            f"stage2.total_env_steps={stage2.total_env_steps} with stage2.utd={stage2.utd} are at most {most:.0f} "
            f"updates, they must be above algorithm.critic_only_updates ({waits}), or the actor never learns"
        )


def _check_ray(config: RunConfig) -> None:
    if config.collector.ray_workers is None:
        return
    if find_spec("ray") is None:
        raise UserError("collector.ray_workers needs Ray: pip install 'dsrl-torchrl[ray]'")
    if not config.agent.acts_alone:
        raise UserError(
            f"collector.ray_workers={config.collector.ray_workers}: {config.agent.__name__} acts by its critics, which "
            "Ray workers would not get: collector=processes"
        )


def _check_action(config: RunConfig) -> None:
    """What learns chunks, or corrections of them, has no noise to lay out, to bound or to find."""
    latent = config.latent
    if latent.residual_scale != LatentOptions().residual_scale and latent.action != "residual":
        raise UserError(f"latent.residual_scale is for latent.action=residual, which is {latent.action}")
    if ResidualSAC in config.agents and latent.action != "residual":
        raise UserError("ResidualSAC corrects the base policy's chunks: set latent.action=residual")
    if latent.action == "noise":
        return
    where = f"latent.action={latent.action}"
    if latent.centre_env_steps:
        raise UserError(f"{where} steers no noise: leave latent.centre_env_steps out")
    for agent in config.agents:
        if not agent.reads_noise:
            raise UserError(f"{where} is for algorithms that learn from stored actions, not {agent.__name__}")
    for name, needed in (("action_magnitude", 1.0), ("noise_layout", "full")):
        if getattr(latent, name) != needed:
            raise UserError(f"{where} is scaled to ±1, and no noise: set latent.{name}={needed}")
    if config.stage1.inversion is not None:
        raise UserError(f"{where} needs no noise: leave stage1.inversion out")
    if latent.action == "residual" and (config.stage2.from_stage1 or config.needs_offline_data):
        raise UserError(
            f"{where} learns online alone, the data know no correction: set stage2.from_stage1=[] and "
            "stage2.offline_fraction=0"
        )
    if config.collector.ray_workers is not None:
        raise UserError(f"{where} can't be collected by Ray workers: collector=processes")


def _check_redq(config: RunConfig) -> None:
    """As its agent does, before any work."""
    for agent, algorithm in zip(config.agents, (config.algorithm, config.offline_algorithm), strict=False):
        if issubclass(agent, REDQ):
            check_members(algorithm, config.networks.num_critics)


def _check_batches(config: RunConfig) -> None:
    stage2, batch = config.stage2, config.algorithm.batch_size
    if stage2.replay_size < batch:
        raise UserError(
            f"stage2.replay_size ({stage2.replay_size}) must have room for a batch, algorithm.batch_size ({batch})"
        )
    if stage2.offline_fraction and round(stage2.offline_fraction * batch) == 0:
        raise UserError(
            f"stage2.offline_fraction={stage2.offline_fraction} is less than one transition of a batch of {batch}: "
            "raise it, or set 0"
        )
    if config.stage1.inversion is not None and config.latent.subspace_dim is not None:
        raise UserError(
            "stage1.inversion finds whole noises, latent.subspace_dim steers a part of them: set one to null"
        )
    if stage2.offline_fraction is None and batch == 1:
        raise UserError("stage2.offline_fraction=null mixes a batch, algorithm.batch_size=1 is too small for that")
    if config.stage1.inversion is not None and not config.stage1.use_demonstrations:
        raise UserError("stage1.inversion finds noises for demonstrations: set stage1.use_demonstrations=true")


def _check_offline_data(config: RunConfig) -> None:
    needed = bool(config.stage2.from_stage1) or config.needs_offline_data
    # Whole noises are no latent actions of a subspace.
    searched = config.latent.centre_env_steps and not (config.reads_noise and config.latent.subspace_dim)
    if needed and not (config.stage1.rollout_env_steps or searched) and not _reads_demonstrations(config):
        raise UserError(
            "stage1.rollout_env_steps=0 leaves no offline data: raise it, or give demonstrations that "
            f"{config.agent.__name__} can learn from"
        )


def _check_targets(config: RunConfig) -> None:
    task, base = config.task, config.base_policy
    check_target(task.env, "task.env", takes=["terminate_on_success"])
    check_target(task.env | (task.render or {}), "task.render")  # what is wrong now is wrong there
    if base.load is not None:
        check_target(base.load, "base_policy.load")
        _check_state_order(base.load, task.env)
    else:
        given = ["observation_dim", "action_dim", "pred_horizon", "obs_horizon", "control_mode"]
        if base.policy is not None and base.policy.get("image_keys"):
            given.append("image_shapes")
        check_target(base.policy, "base_policy.policy", given)
        _check_layout(config)
    _check_demonstrations(config)


def _check_state_order(load: Mapping[str, Any], env: Mapping[str, Any]) -> None:
    """A robomimic checkpoint and DPPO's order have the same sizes: nothing later would tell one from the other."""
    if (load["_target_"], env["_target_"]) != (ROBOMIMIC_POLICY, ROBOMIMIC_ENV) or load.get("entries"):
        return
    if env.get("state_order") != "robomimic":
        raise UserError("robomimic's checkpoints read the objects first: set task.env.state_order=robomimic")


def _check_layout(config: RunConfig) -> None:
    """The noise of a policy that is cloned here has the steps of its chunk; of one that is loaded, its loader knows."""
    task, latent = config.task, config.latent
    if latent.noise_layout != "interpolated" and latent.knots != LatentOptions().knots:
        raise UserError(f"latent.knots is for latent.noise_layout=interpolated, which is {latent.noise_layout}")
    NoiseLayout(latent.noise_layout, task.pred_horizon, 1, task.act_horizon, knots=latent.knots)


def _check_demonstrations(config: RunConfig) -> None:
    task, base, options = config.task, config.base_policy, config.task.demonstrations
    if options.generator is not None:
        given = ["path", "count", "action_noise", "seed", "progress"]
        check_target(task.generator_spec, "task.demonstrations.generator", given)
        for name in task.shared_arguments:
            if options.generator.get(name, task.env.get(name)) != task.env.get(name):
                raise UserError(f"task.demonstrations.generator.{name} must be the env's, task.env.{name}")
    if _reads_demonstrations(config):
        check_demonstrated_reward(task)
        for entry in map(entry_name, config.networks.in_keys or ()):
            if entry not in options.entries and entry != BASE_FEATURES_KEY:
                raise UserError(
                    f"networks.in_keys names {entry}, which is no entry of the demonstrations: say where it is, "
                    f"task.demonstrations.entries.{entry}=<h5 data set>, or set stage1.use_demonstrations=false"
                )
    if base.load is not None or base.policy is None:
        return
    if options.path is None and options.generator is None:
        raise UserError("task.demonstrations.path is needed: this task has no generator of demonstrations")
    for key in policy_keys(base.policy):
        entry = entry_name(key)
        if entry not in options.entries:
            name = "image_keys" if key in policy_keys(base.policy)[1:] else "in_key"
            raise UserError(
                f"base_policy.policy.{name}={entry} is no entry of the demonstrations: say where it is, "
                f"task.demonstrations.entries.{entry}=<h5 data set>"
            )


def _reads_demonstrations(config: RunConfig) -> bool:
    """Whether demonstrations are among the offline data of stage 2, or of the stage 1 that it begins with."""
    stage1, stage2 = config.stage1, config.stage2
    there = config.base_policy.load is None or config.task.demonstrations.path is not None
    known = stage1.inversion is not None or config.latent.action == "chunk"
    learned_from = not config.reads_noise or known
    return bool(
        stage1.use_demonstrations and there and learned_from and (stage2.from_stage1 or config.needs_offline_data)
    )
