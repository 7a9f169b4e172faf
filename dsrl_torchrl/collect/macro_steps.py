"""Macro steps of a latent env by TorchRL's collector, and work that is done while its worker processes simulate."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torchrl.collectors import Collector
from torchrl.envs import EnvBase

from dsrl_torchrl.collect.worker_processes import WorkerEnvs
from dsrl_torchrl.latent_env.checks import innermost
from dsrl_torchrl.latent_env.latent_action_env import LatentActionEnv


@contextmanager
def macro_steps_of(
    env: LatentActionEnv, policy: TensorDictModuleBase, seed: int, meanwhile: Callable[[], None]
) -> Iterator[Iterator[TensorDictBase]]:
    """Endless batches ``[*B, 1]``, one macro step of every env; starts with a reset.

    Args:
        env: the latent env.
        policy: of the actions.
        seed: of the resets.
        meanwhile: called while envs in worker processes simulate.
    """
    env.set_seed(seed)
    collector = Collector(
        env,
        policy,
        frames_per_batch=env.batch_size.numel(),
        total_frames=-1,
        auto_register_policy_transforms=False,  # the policy is not recurrent
    )
    workers = worker_envs(env)
    try:
        if workers is not None:
            workers.meanwhile = meanwhile
        yield iter(collector)
    finally:
        if workers is not None:
            workers.meanwhile = None
        collector.shutdown(close_env=False)


def worker_envs(env: EnvBase) -> WorkerEnvs | None:
    """The worker processes below the transforms, if there are any."""
    below = innermost(env)
    return below if isinstance(below, WorkerEnvs) else None
