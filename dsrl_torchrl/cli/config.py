"""The schema of the whole configuration: every option of ``dsrl`` with its default, its meaning and its range.

Options of a policy, env or encoder that is named by ``_target_`` are the arguments of what it names
(:mod:`dsrl_torchrl.cli.targets`); an algorithm's are its agent's ``Config``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, PlainValidator, model_validator

from dsrl_torchrl.agents.agent import Agent, AgentConfig
from dsrl_torchrl.cli import values
from dsrl_torchrl.cli.schema import from_yaml, plain
from dsrl_torchrl.cli.targets import Target, agent_class, find_target, parameters
from dsrl_torchrl.cli.values import AUTO
from dsrl_torchrl.errors import UserError
from dsrl_torchrl.networks.config import NetworkConfig
from dsrl_torchrl.options import Options, option, shown
from dsrl_torchrl.seeds import CHECKS, DEMONSTRATIONS_PER_RUN, DIAGNOSIS, HELD_OUT, RUN_SEEDS
from dsrl_torchrl.training.behaviour_cloning import ActionScaling
from dsrl_torchrl.training.metrics_log import LoggerConfig
from dsrl_torchrl.training.offline import OfflineConfig
from dsrl_torchrl.training.online import OnlineConfig

#: Arguments that an env and the generator of its demonstrations each have for themselves; all others that both take
#: must be the same: a demonstration is one of that env.
OWN_ARGUMENTS = frozenset({"path", "count", "action_noise", "seed", "progress", "num_envs", "device"})
#: Networks take the whole chunk, and the whole history, at once.
MAX_HORIZON = 1_000


class DemonstrationOptions(Options):
    """The task's demonstrations: recorded by a generator, or the user's."""

    path: Annotated[str, Field(min_length=1), AfterValidator(values.path)] | None = option(
        None, "your own: ManiSkill .h5, robomimic or LIBERO .hdf5; null records `count` episodes with the generator"
    )
    count: int = option(100, "episodes to record", ge=1, le=DEMONSTRATIONS_PER_RUN)
    action_noise: float = option(
        0.0, "executed and recorded: without it the base policy ignores its noise and cannot be steered", ge=0
    )
    entries: dict[str, Annotated[str, Field(min_length=1)]] = option(
        {"observation": "obs"}, "observation entries and their data sets"
    )
    generator: Target | None = option(None, "records demonstrations; gets path, count, action_noise, seed, progress")


class TaskOptions(Options):
    """The task: an env, its demonstrations, and the horizons of the base policy."""

    name: str = option(..., "in names of run folders and titles of figures", min_length=1)
    env: Target = option(..., "the simulator, a TorchRL env")
    demonstrations: DemonstrationOptions = option(DemonstrationOptions(), "of the task")
    obs_horizon: int = option(1, "observations that the base policy reads, in primitive steps", ge=1, le=MAX_HORIZON)
    pred_horizon: int = option(8, "actions in a chunk", ge=1, le=MAX_HORIZON)
    act_horizon: int = option(8, "actions of it that are executed", ge=1, le=MAX_HORIZON)
    render: dict[str, Any] | None = option(None, "env arguments that make videos possible; null: no renderer")

    @property
    def control_mode(self) -> str:
        """The env's, where it has one."""
        return str(self.env.get("control_mode") or "")

    @property
    def knows_success(self) -> bool:
        """Whether the env tells success; with ``success_key=null`` it never does."""
        return self.env.get("success_key", "") is not None

    @property
    def generator_spec(self) -> Target:
        """The generator with the arguments that it shares with the env."""
        spec = self.demonstrations.generator
        if spec is None:
            raise UserError("task.demonstrations.path is needed: this task has no generator of demonstrations")
        return {name: self.env[name] for name in self.shared_arguments if name in self.env} | spec

    @property
    def shared_arguments(self) -> list[str]:
        """Arguments of the env that the generator takes, too, and with the same value."""
        spec = self.demonstrations.generator
        takes = parameters(find_target(spec, "task.demonstrations.generator"))
        return [name for name in parameters(find_target(self.env, "task.env")) if name in takes.keys() - OWN_ARGUMENTS]

    @model_validator(mode="after")
    def _fits(self) -> TaskOptions:
        if self.act_horizon > self.pred_horizon:
            raise ValueError(
                f"act_horizon must lie between 1 and pred_horizon ({self.pred_horizon}); got {self.act_horizon}"
            )
        return self


class CloningOptions(Options):
    """Behaviour cloning of the base policy."""

    steps: int = option(5_000, "gradient steps", ge=1)
    batch_size: int = option(256, "chunks per step", ge=1)
    lr: float = option(1e-3, "peak learning rate", gt=0)
    ema_decay: float = option(0.999, "of the moving average of the weights, which decodes", ge=0, lt=1)
    action_scaling: ActionScaling = option(
        "minmax", "of actions to [-1, 1]: minmax, or quantile: their 1 % and 99 % quantiles, the rest clipped to them"
    )


class BasePolicyOptions(Options):
    """The policy that is steered: cloned from the demonstrations, or loaded."""

    policy: Target | None = option(None, "the policy to clone; gets the sizes that the task determines")
    load: Target | None = option(None, "makes a policy that exists already: no demonstrations, no training")
    training: CloningOptions = option(CloningOptions(), "of the cloned policy")

    @model_validator(mode="after")
    def _one(self) -> BasePolicyOptions:
        if self.policy is None and self.load is None:
            raise ValueError("policy or load should be given: base_policy=flow, or base_policy=checkpoint")
        return self


class LatentOptions(Options):
    """The noise that is steered."""

    noise_layout: Literal["full", "act_horizon", "repeat", "interpolated"] = option(
        "full", "how one noise fills that of a chunk"
    )
    knots: int = option(2, "steps whose noise is steered by the layout `interpolated`", ge=2)
    subspace_dim: int | None = option(
        None,
        "steer the noise in so many directions, in which the decoder moves most, and draw the rest; null: in all",
        ge=1,
    )
    centre_env_steps: int = option(
        0, "of a search, before the rollouts, for a constant noise to steer around, if that is better; 0: none", ge=0
    )
    action_magnitude: Annotated[Any, PlainValidator(values.magnitude)] = option(
        1.5, "bound of the noise, in standard deviations of the prior; auto: measured on the base policy"
    )
    action: Literal["noise", "chunk", "residual"] = option(
        "noise", "what is learned: the base policy's noise, the action chunk in its place, or a correction of its chunk"
    )
    residual_scale: float = option(0.1, "of the largest correction, in half ranges of the action", gt=0, le=2)
    base_features: bool = option(
        False, "the base policy's encoder makes the entry base_features, which all else reads: cheap with images"
    )


class Stage1Options(OfflineConfig):
    """Stage 1: offline data and the offline warm start."""

    rollout_env_steps: int = option(30_000, "of the base policy with prior noise, failures included; 0: none", ge=0)
    use_demonstrations: bool = option(True, "as offline data, beside the rollouts")
    inversion: Literal["optimisation", "retrieval"] | None = option(
        None, "finds a noise for every demonstrated chunk, for algorithms that learn from the data's noise"
    )
    check_episodes: int = option(40, "of the result and of the base, on resets of their own", ge=0, le=len(CHECKS))
    algorithm: dict[str, Any] = option(
        {}, "options of the algorithm that are different offline; with _target_: another algorithm, and its options"
    )


class Stage2Options(OnlineConfig):
    """Stage 2: online steering."""

    from_stage1: tuple[Literal["actor", "critics"], ...] = option(("actor", "critics"), "what stage 2 starts with")

    @model_validator(mode="after")
    def _once(self) -> Stage2Options:
        if len(set(self.from_stage1)) < len(self.from_stage1):
            raise ValueError(f"from_stage1 should name each part once, got {list(self.from_stage1)}")
        return self


class CollectorOptions(Options):
    """Processes and threads."""

    num_workers: Annotated[Any, values.count(AUTO)] = option(
        AUTO, "env processes; 1: in this one; auto: one per core, at most 8, or 1 for an env that is batched on the GPU"
    )
    threads: Annotated[Any, values.count(AUTO, None)] = option(
        AUTO, "of torch on the CPU while envs simulate; auto: the cores without a worker, 1 to 4; null: torch's own"
    )
    ray_workers: int | None = option(
        None, "env workers of stage 2 on a Ray cluster, in place of its env processes here", ge=1, le=10_000
    )
    ray_address: str = option("local", "of that cluster: host:port, auto; local: Ray on this machine", min_length=1)


class DiagnosisOptions(Options):
    """``dsrl diagnose``: best of ``repeats`` episodes from each of ``resets`` starts, and critics; none held out."""

    resets: int = option(20, "starts", ge=1, le=len(DIAGNOSIS))
    repeats: int = option(5, "episodes from each start", ge=1)
    ranking_states: int = option(
        30, "states at which the critics' ranking of noises is held against true returns; 0: off", ge=0, le=100_000
    )
    ranking_noises: int = option(8, "prior noises that are executed from each of them", ge=2)


class EvaluationOptions(Options):
    """``dsrl eval``."""

    episodes: int = option(100, "held-out resets, the same for every policy", ge=1, le=len(HELD_OUT))
    videos: int = option(2, "per policy, where rendering works", ge=0)


class RunConfig(Options):
    """Everything that a run depends on, resolved."""

    name: Annotated[str | None, BeforeValidator(values.text)] = option(
        None, "of the run folder; null: <task>-seed<seed>"
    )
    output: Annotated[str, AfterValidator(values.path)] = option(
        "runs", "run folders go to <output>/<name>", min_length=1
    )
    seed: int = option(
        0, "of everything but the held-out resets, which never change", ge=RUN_SEEDS.start, lt=RUN_SEEDS.stop
    )
    resume: bool = option(False, "continue an interrupted stage from its last checkpoint")
    progress: bool = option(True, "show progress bars")
    profile: bool = option(False, "print and draw where the seconds go, at the end; it changes no result")
    device: Annotated[str, AfterValidator(values.device)] = option(
        AUTO, "of learner and decoder, the simulator's apart: auto, cpu, cuda, cuda:<index>"
    )
    task: TaskOptions = option(..., "what is to be done")
    base_policy: BasePolicyOptions = option(..., "what is steered")
    latent: LatentOptions = option(LatentOptions(), "its noise")
    networks: NetworkConfig = option(NetworkConfig(), "latent policy and critics, the same in both stages")
    algorithm: AgentConfig = option(..., "the agent's Config")
    stage1: Stage1Options = option(Stage1Options(), "offline")
    stage2: Stage2Options = option(Stage2Options(), "online")
    collector: CollectorOptions = option(CollectorOptions(), "processes and threads")
    logger: LoggerConfig = option(LoggerConfig(), "beside metrics.csv")
    diagnosis: DiagnosisOptions = option(DiagnosisOptions(), "dsrl diagnose")
    evaluation: EvaluationOptions = option(EvaluationOptions(), "dsrl eval")
    agent: type[Agent] = option(..., "what algorithm._target_ names", exclude=True)

    @property
    def run_name(self) -> str:
        """Name of the run folder."""
        return f"{self.task.name}-seed{self.seed}" if self.name is None else self.name

    @property
    def title(self) -> str:
        """Of figures."""
        return f"{self.task.name}, seed {self.seed}"

    @property
    def folder(self) -> Path:
        """The run folder."""
        return Path(self.output).expanduser() / self.run_name

    @property
    def offline_agent(self) -> type[Agent]:
        """The algorithm of stage 1: stage 2's, or what ``stage1.algorithm._target_`` names."""
        named = "_target_" in self.stage1.algorithm
        return agent_class(self.stage1.algorithm, "stage1.algorithm") if named else self.agent

    @property
    def agents(self) -> list[type[Agent]]:
        """Those that learn in this run: stage 2's, and stage 1's where stage 2 begins with that."""
        return [self.agent, *([self.offline_agent] if self.stage2.from_stage1 else [])]

    @property
    def offline_algorithm(self) -> Any:
        """Its ``Config``; another algorithm than stage 2's has the same discount, and otherwise options of its own."""
        options = from_yaml({name: value for name, value in self.stage1.algorithm.items() if name != "_target_"})
        if self.offline_agent is self.agent:
            return self.algorithm.replace(**options)
        return self.offline_agent.Config(**{"gamma": self.algorithm.gamma} | options)

    @property
    def reads_noise(self) -> bool:
        """Whether the offline data need their noise, for who learns from them."""
        return self.offline_agent.reads_noise or (self.needs_offline_data and self.agent.reads_noise)

    @property
    def needs_offline_data(self) -> bool:
        """Whether stage 2 samples offline transitions."""
        return self.stage2.offline_fraction != 0

    @model_validator(mode="after")
    def _checked(self) -> RunConfig:
        path = Path(self.run_name)
        if not path.parts or path.is_absolute() or ".." in path.parts or self.run_name.startswith("~"):
            raise ValueError(f"name should be that of a folder inside of output, got {shown(self.run_name)}")
        try:
            values.path(str(self.folder))
        except ValueError as error:
            raise ValueError(f"{'task.' if self.name is None else ''}name {error}") from None
        return self

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as in ``config.yaml``."""
        options = plain(self)
        return options | {"algorithm": plain(self.agent) | options["algorithm"]}
