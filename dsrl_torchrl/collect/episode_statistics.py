"""Episode statistics of online training, from macro steps of several envs."""

from __future__ import annotations

from collections import deque

import torch
from tensordict import TensorDictBase

from dsrl_torchrl.latent_env.macro_step import STEPS_KEY, SUCCESS_ONCE_KEY


class EpisodeTracker:
    """Running success, return and length of the last ``window`` finished training episodes.

    Success is success once: on any primitive step of the episode, as the evaluation's ``success_once``.

    A reset of all envs, as at every checkpoint, drops the episodes under way, and failing episodes are the longer ones:
    the success of those that finish is too high (LiftPegUpright, 625 steps of an env, failures of 250: 0.82 for a
    policy of 0.73). So what counts is when an episode began, which knows nothing of its outcome: it counts as soon as
    the longest episode so far, begun at the same time, would have finished, and never where a reset comes first.

    Args:
        window: number of episodes in the running means; ``None`` for all.
    """

    def __init__(self, window: int | None) -> None:
        self.finished = 0
        self._longest = 0
        self._successes: deque[float] = deque(maxlen=window)
        self._returns: deque[float] = deque(maxlen=window)
        self._lengths: deque[float] = deque(maxlen=window)
        self.restart()

    def restart(self) -> None:
        """All envs have been reset: the episodes under way are forgotten, with those that began too late to count."""
        self._waiting: list[tuple[int, int, float, int, bool | None]] = []
        self._clock: torch.Tensor | None = None
        self._return: torch.Tensor | None = None
        self._length: torch.Tensor | None = None
        self._success: torch.Tensor | None = None

    def update(self, batch: TensorDictBase) -> None:
        """Takes a collector's batch ``[*B, T]`` in order; without ``success_once`` there is no running success."""
        steps = batch["next"].select("reward", STEPS_KEY, "done", SUCCESS_ONCE_KEY, strict=False)
        steps = steps.reshape(-1, batch.shape[-1]).cpu()
        reward, length = steps["reward"].squeeze(-1), steps[STEPS_KEY].squeeze(-1)  # (n_envs, T)
        done, success = steps["done"].squeeze(-1), steps.get(SUCCESS_ONCE_KEY, None)
        if self._clock is None or self._return is None or self._length is None or self._success is None:
            self._clock = torch.zeros_like(length[:, 0])
            self._return = torch.zeros_like(reward[:, 0])
            self._length = torch.zeros_like(length[:, 0])
            self._success = torch.zeros_like(done[:, 0])
        for t in range(batch.shape[-1]):
            self._clock = self._clock + length[:, t]
            self._return, self._length = self._return + reward[:, t], self._length + length[:, t]
            if success is not None:
                self._success = self._success | success[:, t].squeeze(-1)
            ended = done[:, t]
            for env in ended.nonzero().flatten().tolist():
                taken, succeeded = int(self._length[env]), None if success is None else bool(self._success[env])
                began = int(self._clock[env]) - taken
                self._waiting.append((env, began, float(self._return[env]), taken, succeeded))
                self._longest = max(self._longest, taken)
                self.finished += 1
            self._return, self._length = self._return * ~ended, self._length * ~ended
            self._success = self._success & ~ended
            self._count(self._clock)

    def _count(self, clock: torch.Tensor) -> None:
        """Moves into the windows what has waited for long enough."""
        waiting, self._waiting = self._waiting, []
        for episode in waiting:
            env, began, total, taken, succeeded = episode
            if clock[env] - began < self._longest:
                self._waiting.append(episode)
                continue
            self._returns.append(total)
            self._lengths.append(taken)
            if succeeded is not None:
                self._successes.append(float(succeeded))

    @property
    def successes(self) -> list[bool]:
        """Of the window, oldest first."""
        return [bool(success) for success in self._successes]

    @property
    def successful_lengths(self) -> list[float]:
        """Env steps of the window's successful episodes, oldest first."""
        return [length for length, success in zip(self._lengths, self._successes, strict=False) if success]

    def metrics(self) -> dict[str, float]:
        """Means over the window; the return sums the macro rewards, which are discounted inside a chunk.

        ``env/reward`` is the return of one env step.
        """
        values = {"env/episodes": float(self.finished)}
        means = {"success_running": self._successes, "return": self._returns, "episode_len": self._lengths}
        if self._lengths:
            values["env/reward"] = sum(self._returns) / sum(self._lengths)
        return values | {f"env/{name}": sum(window) / len(window) for name, window in means.items() if window}

    def state_dict(self) -> dict:
        """The finished episodes; those under way do not survive a checkpoint, after which all envs are reset."""
        return {
            "finished": self.finished,
            "longest": self._longest,
            "successes": list(self._successes),
            "returns": list(self._returns),
            "lengths": list(self._lengths),
        }

    def load_state_dict(self, state: dict) -> None:
        """Restores :meth:`state_dict`."""
        self.finished, self._longest = state["finished"], state["longest"]
        for values, name in ((self._successes, "successes"), (self._returns, "returns"), (self._lengths, "lengths")):
            values.clear()
            values.extend(state[name])
        self.restart()
