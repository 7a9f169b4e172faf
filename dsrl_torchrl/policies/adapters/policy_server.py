"""A base policy that decodes in another process: a VLA in its own environment, behind a websocket."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from pydantic import Field
from tensordict.utils import NestedKey
from torch import Tensor

from dsrl_torchrl.data.macro_transitions import entry_name
from dsrl_torchrl.errors import UserError
from dsrl_torchrl.policies.adapters.server_connection import ServerConnection
from dsrl_torchrl.policies.base_policy import BasePolicy


class PolicyServer(BasePolicy):
    """A policy that ``dsrl serve-policy`` serves; its sizes are what the server announces.

    A batch is one request, or as few as the server's limits allow. No gradient comes through.

    Args:
        url: of the server, ``ws://host:port``.
        entries: the server's observation entries, and the env's that they are, e.g. ``{observation.state: state}``;
            ``None`` where they have the same names.
        timeout: seconds to wait for an answer.

    Attributes:
        n_action_steps: how many actions of a chunk the policy's authors execute.

    Raises:
        UserError: no server of this protocol at ``url``, or entries that are not the server's.
    """

    differentiable = False
    picklable: ClassVar[bool] = False

    def __init__(
        self,
        url: str = "ws://127.0.0.1:8000",
        entries: Mapping[str, NestedKey] | None = None,
        timeout: Annotated[float, Field(gt=0)] = 120.0,
    ) -> None:
        connection = ServerConnection(url, timeout)
        announced = connection.announcement
        wanted = announced["entries"]
        entries = {name: name for name in wanted} if entries is None else dict(entries)
        if entries.keys() != wanted.keys():
            connection.close()
            missing = ", ".join(f"{name} ({e['dtype']} {e['shape']})" for name, e in wanted.items())
            raise UserError(f"entries should name what stands for each of the server's: {missing}; got {entries}")
        (noise_horizon, noise_dim), (pred_horizon, action_dim) = announced["noise_shape"], announced["chunk_shape"]
        super().__init__(
            action_dim,
            pred_horizon,
            in_keys=list(entries.values()),
            noise_horizon=noise_horizon,
            noise_dim=noise_dim,
            first_action=announced["first_action"],
        )
        self.entries = entries
        self.n_action_steps: int = announced["n_action_steps"]
        self.connection = connection

    def forward(self, *entries_and_noise: Tensor) -> Tensor:
        *entries, noise = entries_and_noise
        batch = noise.shape[:-2]
        observation = {name: self._rows(name, entry, batch) for name, entry in zip(self.entries, entries, strict=True)}
        rows = noise.detach().to("cpu", torch.float32).reshape(-1, *self._announced("noise_shape"))
        if not len(rows):
            return noise.new_empty(*batch, self.pred_horizon, self.action_dim)
        chunk = torch.from_numpy(self.connection.decode(observation, rows.numpy()))
        return chunk.reshape(*batch, self.pred_horizon, self.action_dim).to(noise.device)

    def content_hash(self) -> str | None:
        content = self._announced("content_hash")
        if content is None:
            return None
        sizes = [self._announced(name) for name in ("noise_shape", "chunk_shape", "first_action")]
        facts = [content, *sizes, *sorted(map(str, self.entries.items()))]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()

    def _announced(self, name: str) -> Any:
        return self.connection.announcement[name]

    def _rows(self, name: str, entry: Tensor, batch: torch.Size) -> np.ndarray:
        """``[*B, ...]`` as the server wants it, ``[B, ...]``."""
        wanted = self._announced("entries")[name]
        tensor = entry.detach().cpu()
        array: np.ndarray = (tensor.float() if tensor.dtype is torch.bfloat16 else tensor).numpy()
        dtype, shape = np.dtype(wanted["dtype"]), (*batch, *wanted["shape"])
        fits = array.dtype == dtype or array.dtype.kind == dtype.kind == "f"
        if not fits or array.shape != shape:
            raise UserError(
                f"the server's {name} should be {dtype} {list(shape)}, the env's {entry_name(self.entries[name])} is "
                f"{array.dtype} {list(array.shape)}"
            )
        return array.astype(dtype, copy=False).reshape(-1, *wanted["shape"])
