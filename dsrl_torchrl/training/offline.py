"""Stage 1, offline: any agent on macro transitions that exist, before any online step."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from tensordict import TensorDictBase
from torch import Tensor
from torchrl.envs.utils import ExplorationType, set_exploration_type
from tqdm import tqdm

from dsrl_torchrl.agents.agent import Agent
from dsrl_torchrl.data.replay import Replay
from dsrl_torchrl.errors import UserError
from dsrl_torchrl.latent_env.prior_noise import make_prior
from dsrl_torchrl.options import Options, option
from dsrl_torchrl.training.checkpoints import Checkpoints
from dsrl_torchrl.training.metrics_log import MetricsLog
from dsrl_torchrl.training.run_state import Counters, OptimiserState, RNGState
from dsrl_torchrl.training.update_rounds import UPDATES_PER_SAMPLE, AcceleratedUpdate, check_metrics, make_updates

CHECK_OBSERVATIONS = 512


class OfflineConfig(Options):
    """The offline loop."""

    updates: int = option(4_000, "gradient updates", ge=1)
    checkpoint_updates: int = option(2_000, "updates between two checkpoints", ge=1)
    log_updates: int = option(100, "updates between two rows of metrics", ge=1)


@dataclass(frozen=True)
class OfflineResult:
    """What the offline stage did, and its check (Eq. 19).

    Attributes:
        updates: gradient updates made.
        wall_seconds: training time.
        q_prior, q_policy: mean of ``min_i Q_i(s, w)`` over fixed observations of the data, for ``w`` of the prior
            and of the policy.
        q_gain, q_gain_stderr: mean of the difference per observation, and its standard error.
    """

    updates: int
    wall_seconds: float
    q_prior: float
    q_policy: float
    q_gain: float
    q_gain_stderr: float


def train_offline(
    agent: Agent,
    data: TensorDictBase,
    config: OfflineConfig,
    *,
    seed: int,
    folder: Path,
    resume: bool = False,
    key: str = "",
    log: MetricsLog | None = None,
    progress: bool = True,
    say: Callable[[str], None] = warnings.warn,
) -> OfflineResult:
    """Trains ``agent`` on offline macro transitions; no env step is made.

    Args:
        agent: trained in place.
        data: macro transitions ``[n]`` (:mod:`dsrl_torchrl.data.macro_transitions`); with ``action`` for an agent that
            ``reads_noise``.
        config: of the loop.
        seed: of batches and noise.
        folder: checkpoints go to ``folder/checkpoints``.
        resume: continue from the newest checkpoint, if any; one of a finished run with fewer ``updates`` too.
        key: whatever else the run depends on: a checkpoint of another key is not resumed.
        log: takes the metrics.
        progress: show a progress bar.
        say: prints one line to the user.

    Raises:
        UserError: the agent learns on-policy, or the checkpoint is beyond ``config.updates``.
        CheckpointError: none of the checkpoints there can be used, or there are some and ``resume`` is False.
        NonFiniteError: a metric became NaN or infinite.
    """
    if agent.on_policy:
        raise UserError(f"{type(agent).__name__} learns on-policy alone: another algorithm may learn offline before it")
    torch.manual_seed(seed)
    data = agent.store(data.copy(), online=False)
    replay = Replay(0, agent.config.batch_size, data, offline_fraction=1.0, device=agent.device)
    fixed = data[torch.randint(len(data), (CHECK_OBSERVATIONS,))].select(*agent.in_keys).to(agent.device)
    update = AcceleratedUpdate(agent)
    counters = Counters()
    log = MetricsLog(step="updates") if log is None else log
    checkpoints = Checkpoints(
        folder / "checkpoints",
        identity={
            "stage": "offline",
            "seed": seed,
            "key": key,
            "loop": config.model_dump(mode="json", include=set(OfflineConfig.model_fields) - {"updates"}),
            **agent.identity(),
        },
        components={
            "agent": agent,
            "optimisers": OptimiserState(agent.optimisers),
            "counters": counters,
            "log": log,
            "rng": RNGState(),
        },
        say=say,
    )
    checkpoints.start(resume)
    if counters.updates > config.updates:
        raise UserError(
            f"{checkpoints.folder} goes on from {counters.updates} updates, more than stage1.updates={config.updates}: "
            "give it as many or more, or choose another name="
        )
    started = time.monotonic()
    metrics: dict[str, Tensor] = {}
    bar = tqdm(total=config.updates, initial=counters.updates, mininterval=1.0, desc="stage 1", disable=not progress)
    with bar:
        while counters.updates < config.updates:
            until = (every - counters.updates % every for every in (config.log_updates, config.checkpoint_updates))
            count = min(UPDATES_PER_SAMPLE, config.updates - counters.updates, *until)
            metrics |= make_updates(update, replay.sample, first=counters.updates, count=count)
            counters.updates += count
            bar.update(count)
            if counters.updates % config.log_updates == 0 or counters.updates == config.updates:
                values = check_metrics(metrics, counters.updates)
                log(counters.updates, values | {f"stage1/{k}": v for k, v in check_gain(agent, fixed).items()})
            if counters.updates % config.checkpoint_updates == 0 or counters.updates == config.updates:
                counters.wall_seconds += time.monotonic() - started
                started = time.monotonic()
                checkpoints.save(counters.updates)
                metrics = {}  # a resumed run has none from before
    return OfflineResult(counters.updates, counters.wall_seconds, **check_gain(agent, fixed))


@torch.no_grad()
def check_gain(agent: Agent, observations: TensorDictBase) -> dict[str, float]:
    """``E[Q(s, w)]`` for the prior and for the policy on fixed observations ``[n]`` (Eq. 19)."""
    forked = [agent.device] if agent.device.type == "cuda" else []
    with torch.random.fork_rng(devices=forked), set_exploration_type(ExplorationType.RANDOM):
        torch.manual_seed(0)  # the same noises at every check
        prior = make_prior(agent.decoder)(observations.copy()).get("action")
        chosen = agent.policy(observations.copy()).get("action")
    q_prior = agent.noise_values(observations, prior).min(0)[0]
    q_policy = agent.noise_values(observations, chosen).min(0)[0]
    gain = q_policy - q_prior
    return {
        "q_prior": float(q_prior.mean()),
        "q_policy": float(q_policy.mean()),
        "q_gain": float(gain.mean()),
        "q_gain_stderr": float(gain.std() / len(gain) ** 0.5),
    }
