"""The client's end of a policy server: one websocket, one request at a time, every failure one line."""

from __future__ import annotations

import contextlib
import math
import socket
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np

from dsrl_torchrl.errors import UserError
from dsrl_torchrl.options import shown

try:
    from websockets.exceptions import InvalidURI, WebSocketException
    from websockets.sync.client import ClientConnection, connect

    from dsrl_torchrl.policies.adapters.serve_policy import NAMES, PROTOCOL, VERSION, Refused, one_line, pack, unpack
except ImportError as error:
    needed = "a policy server needs msgpack and websockets: pip install 'dsrl-torchrl[server]'"
    raise UserError(f"{needed} ({error})") from None  # an ImportError would be lost where a _target_ is resolved

#: What a request takes beside its arrays' bytes.
OVERHEAD_BYTES = 16_384
#: In one entry, noise or chunk: an announcement of a few bytes must not reserve memory.
MOST_NUMBERS = 2**26
#: In an answer; a batch is asked for in parts whose chunks fit.
MOST_BYTES = 2**28
STOCK_OPENPI = (
    "a stock openpi server takes no noise and cannot be steered: wrap its policy in `def decode(observation, noise): "
    'return np.stack([policy.infer({k: v[i] for k, v in observation.items()}, noise=w)["actions"] for i, w in '
    "enumerate(noise)])` and serve that by `dsrl serve-policy --callable module:decode` (docs/policy-server.md)"
)


class ServerConnection:
    """Asks a policy server for chunks; connects anew once where the connection was lost.

    Args:
        url: ``ws://host:port``.
        timeout: seconds to wait for an announcement or an answer.

    Attributes:
        announcement: what the server says of its policy (:mod:`dsrl_torchrl.policies.adapters.serve_policy`).

    Raises:
        UserError: no policy server at ``url``, or one of another protocol.
    """

    def __init__(self, url: str, timeout: float) -> None:
        if not isinstance(url, str):
            raise UserError(f"url should be ws://host:port, got {url!r}")
        if isinstance(timeout, bool) or not isinstance(timeout, (int, float)) or not 0 < timeout < math.inf:
            raise UserError(f"timeout should be a positive number of seconds, got {timeout!r}")
        self.url, self.timeout = url, timeout
        self._websocket: ClientConnection | None = None
        try:
            self.announcement = self._connect()
        except (OSError, WebSocketException) as error:
            raise UserError(
                f"no policy server answers at {url} ({_reason(error)}); start one in the policy's environment: "
                "dsrl serve-policy --help"
            ) from None

    def decode(self, observation: Mapping[str, np.ndarray], noise: np.ndarray) -> np.ndarray:
        """``{name: [B, ...]}, [B, *noise_shape] float32 -> [B, *chunk_shape]``, in as few requests as the server takes.

        Raises:
            UserError: the server refused the request, is gone, too late or another one, or the chunk is not what it
                announced, or not finite.
        """
        row_bytes = sum(entry[:1].nbytes for entry in (*observation.values(), noise))
        rows = min(self.announcement["max_batch"], (self.announcement["max_bytes"] - OVERHEAD_BYTES) // row_bytes)
        if rows < 1:
            raise UserError(
                f"one observation has {row_bytes} bytes, the policy server at {self.url} takes requests of "
                f"{self.announcement['max_bytes']}: start it with a larger --max-megabytes"
            )
        rows = max(1, min(rows, (MOST_BYTES - OVERHEAD_BYTES) // (4 * math.prod(self.announcement["chunk_shape"]))))
        starts = range(0, len(noise), rows)
        return np.concatenate(
            [
                self._chunk({name: entry[i : i + rows] for name, entry in observation.items()}, noise[i : i + rows])
                for i in starts
            ]
        )

    def close(self) -> None:
        """Leaves the server; the next request connects again."""
        websocket, self._websocket = self._websocket, None
        if websocket is not None:
            with contextlib.suppress(OSError, WebSocketException):
                websocket.close()

    def _chunk(self, observation: dict[str, np.ndarray], noise: np.ndarray) -> np.ndarray:
        answer = self._ask(pack({"observation": observation, "noise": noise}))
        if isinstance(answer, dict) and isinstance(answer.get("error"), str):
            raise UserError(f"the policy server at {self.url}: {one_line(answer['error'])}")
        chunk = answer.get("chunk") if isinstance(answer, dict) else None
        expected = (len(noise), *self.announcement["chunk_shape"])
        if not isinstance(chunk, np.ndarray) or chunk.shape != expected or chunk.dtype != np.float32:
            got = f"{chunk.dtype} {list(chunk.shape)}" if isinstance(chunk, np.ndarray) else one_line(shown(answer))
            raise UserError(f"the policy server at {self.url} should answer float32 {list(expected)}, got {got}")
        if not np.isfinite(chunk).all():
            raise UserError(f"the policy server at {self.url} answered with NaN or infinite actions")
        return chunk

    def _ask(self, request: bytes) -> Any:
        for last in (False, True):
            try:
                if self._websocket is None:
                    self._check_same(self._connect())
                assert self._websocket is not None
                self._websocket.send(request)
                return self._receive()
            except UserError:
                self.close()
                raise
            except (OSError, WebSocketException) as error:
                self.close()
                if last:
                    raise UserError(
                        f"the policy server at {self.url} is gone ({_reason(error)}); start it again"
                    ) from None
            except BaseException:  # Ctrl-C: an answer that comes later must not be the next request's
                self.close()
                raise
        raise AssertionError

    def _receive(self) -> Any:
        assert self._websocket is not None
        try:
            message = self._websocket.recv(timeout=self.timeout)
        except TimeoutError:
            raise UserError(
                f"the policy server at {self.url} did not answer in {self.timeout:g} s; a larger timeout waits longer"
            ) from None
        try:
            return unpack(message) if isinstance(message, bytes) else message
        except Refused as error:
            raise UserError(f"the policy server at {self.url} sent {error}") from None

    def _connect(self) -> dict[str, Any]:
        try:
            # Pings would end a connection while the server compiles; no proxy stands between a learner and its policy.
            connecting = connect(
                self.url,
                compression=None,
                max_size=MOST_BYTES,
                ping_interval=None,
                proxy=None,
                open_timeout=self.timeout,
                close_timeout=1,
            )
            self._websocket = connecting.__enter__()  # it stays open until close()
            # A server that is stopped reads no more of a request; websockets itself would wait for ever.
            wait = struct.pack("ll", int(self.timeout), int(self.timeout % 1 * 1e6) or 1)
            self._websocket.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, wait)
        except (InvalidURI, ValueError) as error:
            raise UserError(f"url should be ws://host:port, got {self.url!r} ({_reason(error)})") from None
        except TimeoutError as error:  # an OSError, which would be tried again
            raise UserError(f"no websocket at {self.url} ({_reason(error)})") from None
        try:
            announced = self._receive()
        except UserError as error:
            self.close()
            raise UserError(f"{error}; {STOCK_OPENPI}") from None
        try:
            _check_announcement(announced, self.url)
        except UserError:
            self.close()
            raise
        return announced

    def _check_same(self, announced: dict[str, Any]) -> None:
        if changed := sorted(key for key in announced if announced[key] != self.announcement.get(key)):
            raise UserError(
                f"the policy server at {self.url} came back as another one ({', '.join(changed)} changed); start "
                "the one that this run began with"
            )


def _check_announcement(announced: Any, url: str) -> None:
    if not isinstance(announced, dict) or announced.get("protocol") != PROTOCOL:
        raise UserError(f"the server at {url} does not speak {PROTOCOL}; {STOCK_OPENPI}")
    if announced.get("version") != VERSION:
        version = one_line(shown(announced.get("version")))
        raise UserError(
            f"the policy server at {url} speaks version {version} of {PROTOCOL}, this dsrl_torchrl {VERSION}: start it "
            "with the file that `dsrl serve-policy --print` writes"
        )
    entries = announced.get("entries")
    sound = all(_sizes(announced.get(name), 2) for name in ("noise_shape", "chunk_shape"))
    sound &= all(map(_positive, (announced.get(name) for name in ("n_action_steps", "max_batch", "max_bytes"))))
    first = announced.get("first_action")
    sound = sound and type(first) is int and 0 <= first <= announced["chunk_shape"][0] - announced["n_action_steps"]
    sound &= isinstance(announced.get("content_hash"), (str, type(None)))
    sound &= isinstance(entries, dict) and bool(entries) and all(map(_is_entry, entries.values()))
    if not sound:
        raise UserError(f"the policy server at {url} announces itself in a wrong way: {one_line(shown(announced))}")


def _is_entry(entry: Any) -> bool:
    return isinstance(entry, dict) and entry.get("dtype") in NAMES and _sizes(entry.get("shape"))


def _sizes(value: Any, length: int | None = None) -> bool:
    numbers = isinstance(value, list) and all(map(_positive, value))
    return numbers and length in (None, len(value)) and math.prod(value) <= MOST_NUMBERS


def _positive(value: Any) -> bool:
    return type(value) is int and value > 0


def _reason(error: BaseException) -> str:
    return one_line(error) or type(error).__name__
