"""Aliased noise on disk: computed once per base policy and data set, resumable shard by shard (SPEC §4.4)."""

from __future__ import annotations

import json
import os
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from tensordict import TensorDictBase
from torch import Tensor
from tqdm import tqdm

from dsrl_torchrl.inversion.search import AliasedNoise, AliasMethod, alias_noise, executed_actions
from dsrl_torchrl.errors import UserError
from dsrl_torchrl.latent_env.noise_decoder import NoiseDecoder
from dsrl_torchrl.policies.content_hash import policy_hash, tensors_hash
from dsrl_torchrl.policies.storage import write_atomically
from dsrl_torchrl.cli.artifacts import config_hash

FORMAT = "dsrl_torchrl.alias_cache"
VERSION = 1  # raise it when the numbers of the same description change
DESCRIPTION_FILE = "alias.json"
#: Elements per file, and the most that an interruption costs.
SHARD_SIZE = 256
#: Default of what counts as reconstructed: 2.5 % of the action range.
TOLERANCE = 0.05


@dataclass(frozen=True)
class AliasReport:
    """How well the found noise reconstructs the data, over its ``count`` elements.

    Errors are :func:`~dsrl_torchrl.inversion.search.alias_noise`'s: RMS, in half action ranges.
    """

    method: AliasMethod
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


def alias_transitions(
    transitions: TensorDictBase,
    decoder: NoiseDecoder,
    method: AliasMethod,
    folder: str | os.PathLike[str],
    *,
    seed: int = 0,
    batch_size: int = 1024,
    tolerance: float = TOLERANCE,
    progress: bool = False,
) -> tuple[TensorDictBase, AliasReport]:
    """Fills in the noise of macro transitions that came without: ``action`` such that it decodes to what was executed.

    A tool for data whose noise is unknown; DSRL-NA itself needs none (SPEC §3). Elements that the base policy cannot
    reproduce get the nearest noise all the same: read the report before trusting them.

    Args:
        transitions: a flat batch ``[n]`` of the schema in :mod:`~dsrl_torchrl.data.macro_transitions`, without ``action``.
        decoder: the frozen base policy with its noise layout and ``action_magnitude``.
        method: how noise is found.
        folder: of the cache; holds one subfolder per base policy, data set, method and decoder settings.
        seed: of the initial noise.
        batch_size: noises decoded at once.
        tolerance: what the report calls reconstructed, in half action ranges.
        progress: show a progress bar.

    Returns:
        A shallow copy with ``action`` ``[n, latent_dim]``, and the report.

    Raises:
        UserError: entries that are missing or do not fit, ``action`` already there, or a folder not to be written.
        NonFiniteError: NaN or infinity in the data or in every decoded candidate of an element.
    """
    keys = ("observation", ("next", "executed_chunk"), ("next", "macro_steps"))
    missing = [str(key) for key in keys if transitions.get(key, None) is None]
    if missing or transitions.ndim != 1 or not len(transitions):
        raise UserError(
            f"expected a flat, non-empty batch of macro transitions; got batch size {list(transitions.batch_size)}"
            + (f" without {', '.join(missing)}" if missing else "")
        )
    if transitions.get("action", None) is not None:
        raise UserError("these transitions hold their noise already: leave out 'action' to have it found anew")
    observation, chunk, macro_steps = (transitions.get(key) for key in keys)
    cache = AliasCache(folder, decoder, method, observation, chunk, macro_steps, seed=seed)
    noise, error = cache.load_or_compute(batch_size=batch_size, progress=progress)
    report = AliasReport(
        method,
        count=len(error),
        mean=float(error.mean()),
        median=float(error.median()),
        p90=float(error.quantile(0.9)),
        tolerance=tolerance,
        within_tolerance=float((error < tolerance).float().mean()),
    )
    return transitions.copy().set("action", noise.to(observation.device)), report


class AliasCache:
    """One data set's aliased noise under ``folder/<key>/``: a description in JSON and shards in safetensors.

    The key is a hash of everything that the result depends on, see :attr:`description`. Devices and the batch size are
    left out: they change the result by rounding only.

    Args:
        folder: of all caches.
        decoder: as for :func:`~dsrl_torchrl.inversion.search.alias_noise`, like ``method`` to ``seed``.

    Raises:
        UserError, NonFiniteError: the data does not fit or is not finite.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        decoder: NoiseDecoder,
        method: AliasMethod,
        observation: Tensor,
        executed_chunk: Tensor,
        macro_steps: Tensor | None = None,
        *,
        seed: int = 0,
    ) -> None:
        chunk, executed = executed_actions(decoder, observation, executed_chunk, macro_steps)
        self.decoder, self.method, self.seed = decoder, method, seed
        self.observation, self.chunk, self.macro_steps = observation, chunk, executed.sum(-1, keepdim=True)
        #: What the result depends on, as plain JSON values; what was not executed is no part of the data.
        self.description: dict[str, Any] = {
            "format": FORMAT,
            "version": VERSION,
            "base_policy": policy_hash(decoder.base_policy),
            "data": tensors_hash(
                {"observation": observation, "executed_chunk": chunk, "macro_steps": self.macro_steps}
            ),
            "count": len(observation),
            "method": {"name": type(method).__name__, **asdict(method)},
            "noise_layout": asdict(decoder.layout),
            "action_magnitude": decoder.action_magnitude,
            "seed": seed,
            "shard_size": SHARD_SIZE,
        }
        self.key = config_hash(self.description)
        self.folder = Path(folder) / self.key

    def load_or_compute(self, *, batch_size: int = 1024, progress: bool = False) -> AliasedNoise:
        """Noise ``[n, latent_dim]`` and error ``[n]`` on the CPU; computes and writes only the shards that are missing.

        Args:
            batch_size: noises decoded at once.
            progress: show a progress bar.

        Raises:
            UserError: the folder cannot be written.
        """
        shards = []
        with tqdm(total=len(self.observation), desc="alias noise", unit="element", disable=not progress) as bar:
            for index in range(-(-len(self.observation) // SHARD_SIZE)):
                shard = self._read(index) or self._compute(index, batch_size)
                shards.append(shard)
                bar.update(len(shard.error))
        return AliasedNoise(*map(torch.cat, zip(*shards, strict=True)))

    def _compute(self, index: int, batch_size: int) -> AliasedNoise:
        if not (self.folder / DESCRIPTION_FILE).exists():  # also finds out that one cannot write, before long work
            self._write(DESCRIPTION_FILE, (json.dumps(self.description, indent=2) + "\n").encode())
        part = self._part(index)
        found = alias_noise(
            self.decoder,
            self.observation[part],
            self.chunk[part],
            self.method,
            self.macro_steps[part],
            seed=self.seed,
            first_index=part.start,
            batch_size=batch_size,
        )
        tensors = {name: tensor.cpu().contiguous() for name, tensor in found._asdict().items()}
        self._write(_file_name(index), safetensors.torch.save(tensors, metadata=self._metadata(index, tensors)))
        return AliasedNoise(**tensors)

    def _read(self, index: int) -> AliasedNoise | None:
        path = self.folder / _file_name(index)
        if not path.exists():
            return None
        try:
            with safe_open(path, framework="pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}
                metadata = file.metadata()
        except (OSError, SafetensorError):
            tensors, metadata = {}, None
        if metadata != self._metadata(index, tensors):
            warnings.warn(f"{path} is damaged: computing it again", stacklevel=4)
            return None
        return AliasedNoise(**tensors)

    def _write(self, name: str, data: bytes) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_atomically(self.folder / name, data)
        except OSError as error:
            raise UserError(f"cannot write the alias cache to {self.folder}: {error.strerror}") from error

    def _metadata(self, index: int, tensors: dict[str, Tensor]) -> dict[str, str]:
        return {"key": self.key, "shard": str(index), "sha256": tensors_hash(tensors)}

    def _part(self, index: int) -> slice:
        return slice(index * SHARD_SIZE, min((index + 1) * SHARD_SIZE, len(self.observation)))


def _file_name(index: int) -> str:
    return f"shard-{index:05d}.safetensors"
