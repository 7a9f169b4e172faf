"""Evaluation during training: the curve that methods are compared by, as each biases its training success."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import TracebackType

from typing_extensions import Self

from dsrl_torchrl import seeds
from dsrl_torchrl.agents.agent import Agent
from dsrl_torchrl.evaluation.evaluate import evaluate
from dsrl_torchrl.latent_env.latent_action_env import LatentActionEnv
from dsrl_torchrl.training.run_state import RNGState

#: Names of the metrics, and whether the policy's mode is evaluated.
SAMPLED, MODE = "", "_mode"
ONCE, AT_END, EPISODES = "eval/success_once", "eval/success_at_end", "eval/episodes"
#: Success rates whose first env step a summary names.
LEVELS = (0.5, 0.75, 0.9)


class ProgressEvaluation:
    """Evaluates an agent's ``kept_policy`` on the first resets of :data:`dsrl_torchrl.seeds.PROGRESS`.

    Training does not notice: the env is another, made at the first evaluation, and all random number generators are
    left as they were. A context manager that closes the env.

    Args:
        make_env: a latent env that ends its episodes at the time limit only, as :func:`evaluate` needs it.
        episodes: by samples of the policy, and as many by its mode.
    """

    def __init__(self, make_env: Callable[[], LatentActionEnv], episodes: int) -> None:
        self._make_env, self._starts = make_env, seeds.first(seeds.PROGRESS, episodes)
        self._env: LatentActionEnv | None = None

    def __call__(self, agent: Agent) -> dict[str, float]:
        """``eval/success_once`` and ``eval/success_at_end``, by the mode with ``_mode`` behind; ``eval/episodes``."""
        generators = RNGState().state_dict()
        try:
            if self._env is None:
                self._env = self._make_env()
            metrics: dict[str, float] = {EPISODES: len(self._starts)}
            for how, deterministic in ((SAMPLED, False), (MODE, True)):
                result = evaluate(self._env, agent.kept_policy, self._starts, deterministic=deterministic)
                metrics[ONCE + how], metrics[AT_END + how] = result.success_once.value, result.success_at_end.value
        finally:
            RNGState().load_state_dict(generators)
        return metrics

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._env is not None:
            self._env.close(raise_if_closed=False)
            self._env = None


def env_steps_to_success(rows: Sequence[dict[str, float]]) -> dict[str, dict[str, int | None]]:
    """The env steps after which an evaluation first reached each of :data:`LEVELS`; ``None`` if none has.

    Args:
        rows: of ``metrics.csv``.

    Returns:
        By metric, then by level; empty for a run without such evaluations.
    """
    steps: dict[str, dict[str, int | None]] = {}
    for name in (measure + how for measure in (ONCE, AT_END) for how in (SAMPLED, MODE)):
        curve = [(int(row["env_steps"]), row[name]) for row in rows if name in row]
        if curve:
            steps[name] = {
                f"{level:g}": next((step for step, value in curve if value >= level), None) for level in LEVELS
            }
    return steps
