"""Episodes from given resets, one per sub-env: evaluation, diagnosis and videos all run this loop."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor
from torchrl.envs import EnvBase

from dsrl_torchrl.data.macro_transitions import check_finite
from dsrl_torchrl.errors import UserError
from dsrl_torchrl.latent_env.checks import innermost
from dsrl_torchrl.latent_env.macro_step import STEPS_KEY


def reset_to_seeds(env: EnvBase, seeds: Sequence[int]) -> TensorDictBase:
    """Resets every sub-env of ``env`` to its own seed; ``len(seeds)`` equals the number of sub-envs."""
    workers = getattr(innermost(env), "num_workers", None)
    if workers is None:
        return env.reset(seed=list(seeds))
    per_worker = len(seeds) // workers
    return env.reset(
        list_of_kwargs=[{"seed": list(seeds[i * per_worker : (i + 1) * per_worker])} for i in range(workers)]
    )


@torch.no_grad()
def run_episodes(
    env: EnvBase, policy: TensorDictModuleBase, seeds: Sequence[int]
) -> Iterator[tuple[TensorDictBase, Tensor]]:
    """Runs one episode per seed, all at once, until the last one has ended.

    A sub-env whose episode has ended is stepped on with the others: what it gives then belongs to no episode, which is
    what the mask is for. The same holds for sub-envs without a seed of their own, which repeat the last one.

    Args:
        env: macro env with a batch ``[*B]`` of ``size`` sub-envs and no auto-reset.
        policy: reads the env's entries, writes ``action``; on the env's device.
        seeds: at most ``size`` reset seeds; seed ``i`` belongs to sub-env ``i`` of the flattened batch.

    Yields:
        Each macro step: the root TensorDict ``[*B]`` with the outcome under ``"next"``, valid until the next one is
        asked for (copy what is kept), and bool ``[size]`` on the CPU, whose episodes were running before this step.

    Raises:
        UserError: no seed, or more seeds than sub-envs.
        NonFiniteError: NaN or infinity in a running episode.
    """
    size = env.batch_size.numel()
    if not 1 <= len(seeds) <= size:
        raise UserError(f"expected between 1 and {size} reset seeds, one per sub-env, got {len(seeds)}")
    td = reset_to_seeds(env, [*seeds, *[seeds[-1]] * (size - len(seeds))])
    running = torch.arange(size) < len(seeds)
    env_steps = 0
    while running.any():
        td = env.step(policy(td))
        check_finite(td if running.all() else td.reshape(-1)[running], env_steps)
        yield td, running
        env_steps += int(td["next", STEPS_KEY].max())
        running = running & ~td["next", "done"].reshape(size).cpu()
        td = env.step_mdp(td)
