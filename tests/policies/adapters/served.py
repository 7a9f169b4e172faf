"""Policy servers in a thread of the test."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
from websockets.sync.server import serve

from dsrl_torchrl.policies.adapters.policy_server import PolicyServer
from dsrl_torchrl.policies.adapters.serve_policy import MAX_BATCH, Policy, listening


def walk(observation, noise):
    """``[B, 2]``, ``[B, 4, 2] -> [B, 4, 2]``: slowly to the middle (``examples/own_policy.py``)."""
    toward = np.clip(-10 * observation["observation"], -0.4, 0.4)
    return np.clip(toward[:, None] + 0.5 * noise, -1, 1)


WALK = Policy("walk", walk, (4, 2), (4, 2), {"observation": ("float32", (2,))}, content_hash="walk 1")


def walking(**changes) -> Policy:
    return replace(WALK, **changes)


@contextmanager
def served(policy: Policy = WALK, port: int = 0, max_batch: int = MAX_BATCH, max_bytes: int = 2**24) -> Iterator[str]:
    """The url of a server of ours."""
    with listening(policy, "127.0.0.1", port, max_batch, max_bytes) as server, _in_a_thread(server):
        yield f"ws://127.0.0.1:{server.socket.getsockname()[1]}"


@contextmanager
def scripted(handler, port: int = 0) -> Iterator[str]:
    """The url of a server of somebody else: ``handler(connection)``."""
    with serve(handler, "127.0.0.1", port, compression=None, close_timeout=1) as server, _in_a_thread(server):
        yield f"ws://127.0.0.1:{server.socket.getsockname()[1]}"


@contextmanager
def _in_a_thread(server) -> Iterator[None]:
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join()


@contextmanager
def steered(url: str, **options) -> Iterator[PolicyServer]:
    """The client, frozen."""
    policy = PolicyServer(url, **options).freeze()
    try:
        yield policy
    finally:
        policy.connection.close()
