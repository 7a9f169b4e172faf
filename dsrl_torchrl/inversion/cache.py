"""Inverted noise on disk: computed once per base policy and data set, resumable shard by shard."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from tensordict import TensorDictBase
from torch import Tensor

from dsrl_torchrl.data.macro_transitions import entry_name
from dsrl_torchrl.errors import UserError
from dsrl_torchrl.files import write_atomically
from dsrl_torchrl.inversion.search import InversionMethod, InvertedNoise, executed_actions, invert_noise
from dsrl_torchrl.latent_env.macro_step import CHUNK_KEY, STEPS_KEY
from dsrl_torchrl.latent_env.noise_decoder import NoiseDecoder
from dsrl_torchrl.policies.content_hash import tensors_hash

FORMAT = "dsrl_torchrl.inversion_cache"
VERSION = 1  # raise it when the numbers of the same description change
DESCRIPTION_FILE = "inversion.json"
#: Elements per file, and the most that an interruption costs.
SHARD_SIZE = 256
#: Default of what counts as reconstructed: 2.5 % of the action range.
TOLERANCE = 0.05


@dataclass(frozen=True)
class InversionReport:
    """How well the found noise reconstructs the data, over its ``count`` elements.

    Errors are :func:`~dsrl_torchrl.inversion.search.invert_noise`'s: RMS, in half action ranges.
    """

    method: InversionMethod
    count: int
    mean: float
    median: float
    p90: float
    tolerance: float
    within_tolerance: float  #: fraction of elements with an error below ``tolerance``

    def __str__(self) -> str:
        return (
            f"{self.method}: reconstruction error mean {self.mean:.3f}, median {self.median:.3f}, p90 {self.p90:.3f} "
            f"of the half action range; {self.within_tolerance:.0%} of {self.count} elements below {self.tolerance:g}"
        )


def invert_transitions(
    transitions: TensorDictBase,
    decoder: NoiseDecoder,
    method: InversionMethod,
    folder: str | os.PathLike[str],
    *,
    seed: int = 0,
    batch_size: int = 1024,
    tolerance: float = TOLERANCE,
    progress: bool = False,
    say: Callable[[str], None] = warnings.warn,
) -> tuple[TensorDictBase, InversionReport]:
    """Fills in the noise of macro transitions that came without: ``action`` such that it decodes to what was executed.

    A tool for data whose noise is unknown; DSRL-NA itself needs none. Elements that the base policy cannot
    reproduce get the nearest noise all the same: read the report before trusting them.

    Args:
        transitions: a flat batch ``[n]`` of the schema in :mod:`~dsrl_torchrl.data.macro_transitions`, without
            ``action``.
        decoder: the frozen base policy with its noise layout and ``action_magnitude``.
        method: how noise is found.
        folder: of the cache; holds one subfolder per base policy, data set, method and decoder settings.
        seed: of the initial noise.
        batch_size: noises decoded at once.
        tolerance: what the report calls reconstructed, in half action ranges.
        progress: show a progress bar.
        say: gets a line for each damaged file, which is computed again.

    Returns:
        A shallow copy with ``action`` ``[n, latent_dim]``, and the report.

    Raises:
        UserError: entries that are missing or do not fit, ``action`` already there, a base policy without a content
            hash, or a folder not to be written.
        NonFiniteError: NaN or infinity in the data or in every decoded candidate of an element.
    """
    chunk, steps = (transitions.get(("next", key), None) for key in (CHUNK_KEY, STEPS_KEY))
    missing = [f"next.{key}" for key, value in ((CHUNK_KEY, chunk), (STEPS_KEY, steps)) if value is None]
    if missing or transitions.ndim != 1 or not len(transitions):
        raise UserError(
            f"expected a flat, non-empty batch of macro transitions; got batch size {list(transitions.batch_size)}"
            + (f" without {', '.join(missing)}" if missing else "")
        )
    if transitions.get("action", None) is not None:
        raise UserError("these transitions hold their noise already: leave out 'action' to have it found anew")
    cache = InversionCache(folder, decoder, method, transitions, chunk, steps, seed=seed)
    noise, error = cache.load_or_compute(batch_size=batch_size, progress=progress, say=say)
    report = InversionReport(
        method,
        count=len(error),
        mean=float(error.mean()),
        median=float(error.median()),
        p90=float(error.quantile(0.9)),
        tolerance=tolerance,
        within_tolerance=float((error < tolerance).float().mean()),
    )
    return transitions.copy().set("action", noise.to(chunk.device)), report


class InversionCache:
    """One data set's inverted noise under ``folder/<key>/``: a description in JSON and shards in safetensors.

    The key is a hash of everything that the result depends on, see :attr:`description`. Devices and the batch size are
    left out: they change the result by rounding only.

    Args:
        folder: of all caches.
        decoder: as for :func:`~dsrl_torchrl.inversion.search.invert_noise`, like ``method`` to ``seed``.

    Raises:
        UserError, NonFiniteError: the data does not fit or is not finite, or the base policy has no content hash.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        decoder: NoiseDecoder,
        method: InversionMethod,
        observations: TensorDictBase,
        action_chunk: Tensor,
        executed_steps: Tensor | None = None,
        *,
        seed: int = 0,
    ) -> None:
        policy_hash = decoder.base_policy.content_hash()
        if policy_hash is None:
            raise UserError(
                f"{type(decoder.base_policy).__name__} has no content hash, so its inverted noise cannot be kept: "
                "let content_hash() name the model's weights"
            )
        observations, chunk, executed = executed_actions(decoder, observations, action_chunk, executed_steps)
        self.decoder, self.method, self.seed = decoder, method, seed
        self.observations, self.chunk, self.steps = observations, chunk, executed.sum(-1, keepdim=True)
        entries = {entry_name(key): value for key, value in observations.items(True, True)}
        #: What the result depends on, as plain JSON values; what was not executed is no part of the data.
        self.description: dict[str, Any] = {
            "format": FORMAT,
            "version": VERSION,
            "base_policy": policy_hash,
            "observations": tensors_hash(entries),
            "actions": tensors_hash({CHUNK_KEY: chunk, STEPS_KEY: self.steps}),
            "count": len(chunk),
            "method": {"name": type(method).__name__, **asdict(method)},
            "noise_layout": asdict(decoder.layout),
            "action_magnitude": decoder.action_magnitude,
            "seed": seed,
            "shard_size": SHARD_SIZE,
        }
        self.key = hashlib.sha256(json.dumps(self.description, sort_keys=True).encode()).hexdigest()[:12]
        self.folder = Path(folder) / self.key

    def load_or_compute(
        self, *, batch_size: int = 1024, progress: bool = False, say: Callable[[str], None] = warnings.warn
    ) -> InvertedNoise:
        """Noise ``[n, latent_dim]`` and error ``[n]`` on the CPU; computes and writes only the shards that are missing.

        Args:
            batch_size: noises decoded at once.
            progress: show a progress bar.
            say: gets a line for each damaged file.

        Raises:
            UserError: the folder cannot be written.
        """
        indices: Iterable[int] = range(-(-len(self.chunk) // SHARD_SIZE))
        if progress:
            from tqdm import tqdm  # no dependency of the core

            indices = tqdm(indices, desc="invert noise", unit="shard")
        shards = [self._read(index, say) or self._compute(index, batch_size) for index in indices]
        return InvertedNoise(*map(torch.cat, zip(*shards, strict=True)))

    def _compute(self, index: int, batch_size: int) -> InvertedNoise:
        if not (self.folder / DESCRIPTION_FILE).exists():  # also finds out that one cannot write, before long work
            self._write(DESCRIPTION_FILE, (json.dumps(self.description, indent=2) + "\n").encode())
        part = slice(index * SHARD_SIZE, (index + 1) * SHARD_SIZE)
        found = invert_noise(
            self.decoder,
            self.observations[part],
            self.chunk[part],
            self.method,
            self.steps[part],
            seed=self.seed,
            first_index=part.start,
            batch_size=batch_size,
        )
        tensors = {name: tensor.cpu().contiguous() for name, tensor in found._asdict().items()}
        self._write(_file_name(index), safetensors.torch.save(tensors, metadata=self._metadata(index, tensors)))
        return InvertedNoise(**tensors)

    def _write(self, name: str, data: bytes) -> None:
        try:
            write_atomically(self.folder / name, data)
        except OSError as error:
            raise UserError(f"cannot write the inversion cache to {self.folder}: {error.strerror}") from error

    def _read(self, index: int, say: Callable[[str], None]) -> InvertedNoise | None:
        path = self.folder / _file_name(index)
        if not path.exists():
            return None
        try:
            with safe_open(path, framework="pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}
                metadata = file.metadata()
        except (OSError, SafetensorError, LookupError, ValueError, TypeError):
            tensors, metadata = {}, None
        if metadata != self._metadata(index, tensors):
            say(f"{path} is damaged: computing it again")
            return None
        return InvertedNoise(**tensors)

    def _metadata(self, index: int, tensors: dict[str, Tensor]) -> dict[str, str]:
        return {"key": self.key, "shard": str(index), "sha256": tensors_hash(tensors)}


def _file_name(index: int) -> str:
    return f"shard-{index:05d}.safetensors"
