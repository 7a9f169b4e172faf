"""The folder of one run: where each step's result lies, and which options it depends on."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from dsrl_torchrl.cli.artifacts import Artifact
from dsrl_torchrl.cli.config import RunConfig
from dsrl_torchrl.cli.config_differences import config_hash, differing
from dsrl_torchrl.cli.lock import FILE as LOCK_FILE
from dsrl_torchrl.cli.schema import defaults, plain
from dsrl_torchrl.data.readers.any_format import demonstration_files
from dsrl_torchrl.errors import CheckpointError, UserError
from dsrl_torchrl.files import check_file, file_record, seal, sweep, unseal, write_atomically
from dsrl_torchrl.training import online
from dsrl_torchrl.training.metrics_log import WANDB_MODES, LoggerConfig, MetricsLog, wandb_mode

CONFIG_FILE = "config.yaml"
EVALUATION_FILE = "evaluation.json"
#: Each in a folder of its own.
ARTIFACTS = ("demos", "base", "centre", "magnitude", "subspace", "stage1", "stage2")
#: What a finished stage may be given more of.
BUDGETS = {"stage1": ("stage1", "updates"), "stage2": ("stage2", "total_env_steps")}
#: What cannot change a result, wherever it stands.
WITHOUT_EFFECT = online.WITHOUT_EFFECT | {"check_episodes", "render"}
OUR_LOADERS = ("dsrl_torchrl.policies.load_policy", "dsrl_torchrl.policies.adapters.policy_server.PolicyServer")


class RunFolder:
    """The artifacts of a run, each keyed by the options that it depends on.

    Args:
        config: settled.
        base_policy: what tells the base policy that was loaded, :func:`loaded_key`; ``None`` for one that is cloned.
        say: prints one line to the user.

    Raises:
        UserError: the folder cannot be made or written, or lies in another run's.
    """

    def __init__(
        self, config: RunConfig, base_policy: dict[str, Any] | None = None, say: Callable[[str], None] = print
    ) -> None:
        self.path, self.say, self._from_stage1 = config.folder, say, bool(config.stage2.from_stage1)
        self._centred = bool(config.latent.centre_env_steps)
        _refuse_inside_of_a_run(config)
        _check_writable(self.path)
        sweep(self.path, own=(*ARTIFACTS, "diagnosis"))
        full = config.to_dict()
        offline = plain(config.offline_agent) | plain(config.offline_algorithm)
        default = defaults(RunConfig) | {"algorithm": defaults(config.agent.Config)}
        default_offline = defaults(config.offline_agent.Config)
        # The same selections of the defaults: what an option that is newer than a folder was when it was made.
        keys, default_keys = (
            _keys(values, offline_algorithm, config, base_policy)
            for values, offline_algorithm in ((full, offline), (default, default_offline))
        )
        self.demos, self.base, self.centre, self.magnitude, self.subspace, self.stage1, self.stage2 = (
            Artifact(
                self.path / name, keys[name], default_keys[name], budget=BUDGETS.get(name, ()), resume=config.resume
            )
            for name in ARTIFACTS
        )
        self.rollouts = Artifact(
            self.path / "stage1", keys["rollouts"], default_keys["rollouts"], marker="rollouts.json"
        )
        self.config_hash = config_hash(differing(keys["stage2"], default_keys["stage2"]))
        self.connect()

    def connect(self, base_policy: str | None = None) -> None:
        """Tells the artifacts the hashes of what is there for them to be made from; again when more is.

        Args:
            base_policy: content hash of the base policy, once it is there and if it has one.
        """
        after_centre = (self.magnitude, self.subspace, self.rollouts, self.stage1, self.stage2)
        for name, content, artifacts in (
            ("demonstrations", self.demos.content, (self.base, self.stage1, self.stage2)),
            ("base_policy", base_policy, (self.centre, *after_centre)),
            ("centre", self.centre.content, after_centre if self._centred else ()),
            ("subspace", self.subspace.content, (self.rollouts, self.stage1, self.stage2)),
            ("rollouts", self.rollouts.content, (self.stage1, self.stage2)),
            ("stage1", self.stage1.content, (self.stage2,) if self._from_stage1 else ()),
        ):
            for artifact in artifacts:
                artifact.inputs |= {} if content is None else {name: content}

    def record_evaluation(self, episodes: int, files: Sequence[Path]) -> None:
        """Notes that ``files`` are the evaluation of these policies: written last."""
        records = {path.name: file_record(path) for path in files}
        write_atomically(self.path / EVALUATION_FILE, seal(self._evaluation(episodes) | {"files": records}))

    def evaluated(self, episodes: int) -> bool:
        """Whether the evaluation of these policies is there, and what was written."""
        if not (self.path / EVALUATION_FILE).exists():
            return False
        try:
            stored = unseal(self.path / EVALUATION_FILE)
            if stored | self._evaluation(episodes) != stored:
                return False
            for name, record in stored["files"].items():
                check_file(self.path / name, record)
        except (CheckpointError, KeyError) as error:
            self.say(f"warning: {error}: evaluating again")
            return False
        return True

    def _evaluation(self, episodes: int) -> dict[str, Any]:
        return {"config_hash": self.config_hash, "policies": self.stage2.content, "episodes": episodes}

    def save_config(self, config: RunConfig) -> None:
        """Writes the resolved configuration, atomically."""
        write_atomically(self.path / CONFIG_FILE, yaml.safe_dump(config.to_dict(), sort_keys=False).encode())

    def refuse_unfinished(self, artifact: Artifact, resume: bool) -> None:
        """Raises :class:`UserError` if a stage was interrupted here and ``resume`` is not asked for."""
        if artifact.has_checkpoint and not artifact.exists and not resume:
            raise UserError(
                f"{artifact.folder} holds an unfinished run: resume=true continues it, another name= starts anew"
            )


def loaded_key(config: RunConfig, content_hash: str | None) -> dict[str, Any]:
    """What tells a loaded base policy: how it was loaded, and a hash of what it computes where it has one.

    Both: what a load's arguments change need not be in the weights. A folder of ours, or a server's policy, is its hash
    alone, so that it may be moved.
    """
    load = dict(config.base_policy.load or {})
    ours = load.get("_target_") in OUR_LOADERS
    return {"load": None if ours and content_hash else load, "content_hash": content_hash}


def check_logger(logger: LoggerConfig) -> None:
    """Raises :class:`UserError` for a logger that could not begin: it is opened late, when stage 1 starts to learn."""
    if logger.type is None:
        return
    try:
        package = importlib.import_module(logger.type)
    except ImportError as error:
        raise UserError(f"logger={logger.type} needs its package: pip install {logger.type} ({error})") from None
    if logger.type == "wandb" and wandb_mode(logger) not in WANDB_MODES:
        raise UserError(f"WANDB_MODE should be one of {', '.join(WANDB_MODES)}, got {wandb_mode(logger)!r}")
    if logger.type == "wandb" and wandb_mode(logger) in ("online", "run") and package.api.api_key is None:
        raise UserError("wandb is not logged in: run `wandb login`, set WANDB_API_KEY, or choose logger.mode=offline")


@contextmanager
def metrics_log(config: RunConfig, path: Path, step: str, stage: str) -> Iterator[MetricsLog]:
    """The metrics at ``path``, closed at the end: a second wandb run can then begin in the same process."""
    title, options = f"{config.run_name}-{stage}", config.to_dict()
    log = MetricsLog(
        path,
        step=step,
        logger=config.logger,
        title=title,
        hyper_parameters=options,
        mirrored_as=config.agent.mirrored_as,
    )
    try:
        yield log
    finally:
        log.close()


def _keys(
    values: Mapping[str, Any], offline_algorithm: Mapping[str, Any], config: RunConfig, base_policy: Any
) -> dict[str, dict[str, Any]]:
    """The options that each artifact depends on; ``config`` only says which they are."""
    task = _effective(values.get("task", {}))
    demonstrations = dict(task.get("demonstrations", {}))
    if demonstrations.get("generator"):  # their number does not change what they record
        demonstrations["generator"] = {k: v for k, v in demonstrations["generator"].items() if k != "processes"}
        task["demonstrations"] = demonstrations
    seed = {"seed": values.get("seed")}
    demos = {"demonstrations": demonstrations, **seed}
    if config.task.demonstrations.generator is not None:
        demos["generator"] = {k: v for k, v in plain(config.task.generator_spec).items() if k != "processes"}
    base = {"task": task, **seed}
    if base_policy is not None:
        base["base_policy"] = base_policy
    else:
        base["base_policy"] = {name: values.get("base_policy", {}).get(name) for name in ("policy", "training")}
    given: dict[str, Any] = {}
    if config.task.demonstrations.path is not None:
        files = demonstration_files(Path(config.task.demonstrations.path).expanduser())
        given = {"demonstrations_sha256": [file_record(file)["sha256"] for file in files]}
        task["demonstrations"] = {name: value for name, value in demonstrations.items() if name != "path"}
    base |= given if base_policy is None else {}
    stage1 = _effective(values["stage1"])
    workers = {"num_workers": values["collector"]["num_workers"]}
    noise = ("noise_layout", "knots", "base_features", "centre_env_steps")
    layout = {name: values["latent"][name] for name in noise}
    subspace = {"subspace_dim": values["latent"]["subspace_dim"]}
    gamma, in_keys = {"gamma": values["algorithm"].get("gamma")}, {"in_keys": values["networks"].get("in_keys")}
    rollouts = base | layout | subspace | workers | gamma | in_keys
    rollouts |= {"rollout_env_steps": stage1.pop("rollout_env_steps")}
    steering = base | {name: values[name] for name in ("latent", "networks")}
    data = rollouts | {name: stage1.pop(name) for name in ("use_demonstrations", "inversion")}
    data |= given if config.stage1.use_demonstrations else {}
    stage1.pop("algorithm")
    offline = steering | data | {"algorithm": dict(offline_algorithm), "stage1": stage1}
    online = steering | {"algorithm": values["algorithm"], "stage2": _effective(values["stage2"])} | workers
    online["ray_workers"] = values["collector"]["ray_workers"]
    if config.stage2.from_stage1:
        online |= {"offline": {name: offline[name] for name in ("algorithm", "stage1")}} | data
    elif config.needs_offline_data:
        online |= data
    return {
        "demos": demos,
        "base": base,
        "centre": base | layout | workers | gamma | in_keys,
        "magnitude": base | layout,
        "subspace": base | layout | subspace,
        "rollouts": rollouts,
        "stage1": offline,
        "stage2": online,
    }


def _effective(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name not in WITHOUT_EFFECT}


def _refuse_inside_of_a_run(config: RunConfig) -> None:
    """Both runs would write the same files: ``name=a/stage1`` has its metrics where ``name=a`` has stage 1's."""
    for parent in list(Path(config.run_name).parents)[:-1]:
        folder = Path(config.output).expanduser() / parent
        if (folder / CONFIG_FILE).exists() or (folder / LOCK_FILE).exists():
            raise UserError(f"{config.folder} would lie in the folder of another run, {folder}: choose another name=")


def _check_writable(folder: Path) -> None:
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise UserError(
            f"cannot write to {folder}: {there} is not a folder that may be written; choose another output="
        )
