"""What may stand above macro steps, and above the base policy of an algorithm that decodes what it has stored."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from torchrl.envs import EnvBase, TransformedEnv
from torchrl.envs.transforms import DTypeCastTransform, FrameSkipTransform, MultiAction, Transform

from dsrl_torchrl.errors import UserError
from dsrl_torchrl.latent_env.checks import single_transforms
from dsrl_torchrl.latent_env.macro_step import MacroStep
from dsrl_torchrl.latent_env.noise_decoder import NoiseDecoder


def check_transforms_above(env: EnvBase, decoder: NoiseDecoder, *, decodes_stored_entries: bool) -> None:
    """Refuses transforms, appended to the latent env or around it, under which an algorithm would learn wrong values.

    In the env the base policy decodes what it always gets; from a replay buffer an algorithm can decode only what was
    stored, and that is what the transforms above have made of it. A cast to another dtype is no harm. Which entries a
    transform writes is seen by its ``out_keys``; what has none, or writes others, too, is found by ``decoder`` in the
    first steps (:meth:`~dsrl_torchrl.latent_env.noise_decoder.NoiseDecoder.watch_stored_entries`).

    Args:
        env: with ``decoder`` somewhere in its transforms.
        decoder: of the base policy.
        decodes_stored_entries: whether the algorithm does.

    Raises:
        UserError: a transform that repeats macro steps, or that writes an entry which is decoded.
    """
    refuse_repeated_steps(transforms_above(env, MacroStep))
    if not decodes_stored_entries:
        return
    for transform in transforms_above(env, NoiseDecoder):
        written = [key for key in transform.out_keys or () if key in decoder.base_policy.in_keys]
        if written and not isinstance(transform, DTypeCastTransform):
            raise UserError(
                f"the algorithm decodes the {written[0]!r} that it stores, but {type(transform).__name__} above the "
                "base policy writes it: give that transform out_keys of its own, or put it below for the policy, too"
            )
    decoder.watch_stored_entries()


def refuse_repeated_steps(above: Iterable[Transform]) -> None:
    """Refuses transforms above macro steps that repeat them.

    Raises:
        UserError: k and the discounted reward would be wrong.
    """
    for transform in above:
        if isinstance(transform, (FrameSkipTransform, MultiAction)):
            raise UserError(
                f"{type(transform).__name__} above macro steps would lose k and sum discounted rewards: repeat "
                "primitive steps in the env that LatentActionEnv gets, or raise act_horizon"
            )


def transforms_above(env: EnvBase, kind: type[Transform]) -> Iterator[Transform]:
    """Those above the one of that kind, from the outermost env inwards; all where it is hidden in workers."""
    while isinstance(env, TransformedEnv):
        chain = list(single_transforms(env.transform))
        places = [place for place, transform in enumerate(chain) if isinstance(transform, kind)]
        yield from chain[places[-1] + 1 :] if places else chain
        if places:
            return
        env = env.base_env
