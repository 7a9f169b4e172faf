"""Serves a policy to DSRL from the policy's own Python environment: observations and noises in, action chunks out.

    python serve_policy.py --lerobot checkpoints/smolvla --task "pick up the black bowl"
    python serve_policy.py --callable my_policy:decode

One file, to be copied anywhere: beside the policy's own packages it needs numpy, msgpack and websockets (13 or newer).
`--lerobot` serves SmolVLA, π0 and π0.5; `--callable` any function

    decode(observation, noise) -> chunk   # {name: [B, ...]}, [B, *noise_shape] float32 -> [B, *chunk_shape]

whose attributes say what it is: `decode.noise_shape`, `decode.chunk_shape`, `decode.entries = {name: (dtype, shape)}`,
and, if wanted, `decode.first_action` (0), `decode.n_action_steps` (how many actions to execute) and
`decode.content_hash` (a text that changes with the weights).

The protocol, msgpack over a websocket: the server first announces all of that, then answers each request
`{"observation": {name: [B, ...]}, "noise": [B, ...]}` by `{"chunk": [B, ...]}` or `{"error": one line}`.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib
import json
import logging
import math
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
from websockets.exceptions import ConnectionClosed
from websockets.sync.server import Server, serve

PROTOCOL, VERSION = "dsrl-policy", 1
#: Numbers, and nothing that could hold a pointer. A foreign text is looked up here, never given to ``np.dtype``.
NAMES = {f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)} | {
    "bool",
    "float16",
    "float32",
    "float64",
}
DTYPES = {np.dtype(name).newbyteorder("<").str: np.dtype(name).newbyteorder("<") for name in NAMES}
MAX_BATCH, MAX_MEGABYTES = 256, 256
CLOSING_SECONDS = 3.0
LEROBOT_TYPES = ("smolvla", "pi0", "pi05")
#: Files of a LeRobot checkpoint. Its loaders go on with random weights where the second is missing.
LEROBOT_FILES = ("config.json", "model.safetensors", "policy_preprocessor.json", "policy_postprocessor.json")


class Refused(ValueError):
    """A mistake of whoever asks, in one line."""


def pack(message: Any) -> bytes:
    """Maps, lists, texts, numbers and numpy arrays of numbers as msgpack."""
    return msgpack.packb(message, default=_pack_array)


def _pack_array(value: Any) -> dict[str, Any]:
    if not isinstance(value, np.ndarray):
        raise Refused(f"cannot send a {type(value).__name__}, only numpy arrays of numbers")
    dtype = DTYPES.get(value.dtype.newbyteorder("<").str)
    if dtype is None or not value.size:
        raise Refused(f"cannot send an array {list(value.shape)} of {value.dtype}, only numbers, and not none of them")
    return {"__array__": dtype.str, "shape": list(value.shape), "data": value.astype(dtype, copy=False).tobytes()}


def unpack(data: bytes) -> Any:
    """The inverse of :func:`pack`; raises :class:`Refused` for whatever that could not have written."""
    try:  # the limits: a claim of few bytes must not reserve memory
        return msgpack.unpackb(
            data,
            object_hook=_unpack_array,
            max_array_len=64,
            max_map_len=1024,
            max_str_len=65_536,
            max_ext_len=0,
        )
    except Refused:
        raise
    except Exception as error:  # msgpack raises six kinds
        raise Refused(f"not a message of this protocol ({type(error).__name__}: {one_line(error)})") from None


def _unpack_array(value: dict[str, Any]) -> Any:
    if "__array__" not in value:
        return value
    name, shape, data = (value.get(part, 0) for part in ("__array__", "shape", "data"))
    dtype = DTYPES.get(name) if isinstance(name, str) else None
    known = len(value) == 3 and isinstance(shape, list) and isinstance(data, bytes)
    if dtype is None or not known or len(shape) > 8 or not all(map(_positive, shape)):
        raise Refused(f"an array has to be numbers, their shape and their bytes; got {str(name)[:20]!r}, {shape!r}")
    if math.prod(shape) * dtype.itemsize != len(data):  # Python's integers: the product cannot overflow
        raise Refused(f"an array {shape} of {dtype} does not have {len(data)} bytes")
    return np.frombuffer(data, dtype).reshape(shape).copy()  # writable: policies work in place


def one_line(error: object) -> str:
    """The text of an error, shortened."""
    return " ".join(str(error).split())[:400]


@dataclass(frozen=True)
class Policy:
    """A policy and its sizes.

    Attributes:
        name: what it is.
        decode: ``{name: [B, ...]}, [B, *noise_shape] -> [B, *chunk_shape]``.
        noise_shape: steps and size of the noise.
        chunk_shape: actions in a chunk, size of an action.
        entries: dtype and shape of each observation entry.
        first_action: index of the chunk that is executed first.
        n_action_steps: how many actions are meant to be executed from there on.
        content_hash: changes with the weights; ``None`` if unknown.
    """

    name: str
    decode: Callable[[dict[str, np.ndarray], np.ndarray], Any]
    noise_shape: tuple[int, int]
    chunk_shape: tuple[int, int]
    entries: dict[str, tuple[str, tuple[int, ...]]]
    first_action: int = 0
    n_action_steps: int | None = None
    content_hash: str | None = None

    def announcement(self, max_batch: int, max_bytes: int) -> dict[str, Any]:
        """What a client has to know."""
        rest = self.chunk_shape[0] - self.first_action
        return {
            "protocol": PROTOCOL,
            "version": VERSION,
            "policy": self.name,
            "noise_shape": list(self.noise_shape),
            "chunk_shape": list(self.chunk_shape),
            "first_action": self.first_action,
            "n_action_steps": rest if self.n_action_steps is None else self.n_action_steps,
            "entries": {name: {"dtype": dtype, "shape": list(shape)} for name, (dtype, shape) in self.entries.items()},
            "differentiable": False,
            "content_hash": self.content_hash,
            "max_batch": max_batch,
            "max_bytes": max_bytes,
        }

    def answer(self, request: Any, max_batch: int = MAX_BATCH) -> np.ndarray:
        """The chunks ``[B, *chunk_shape]`` of a request; raises :class:`Refused` if it does not fit."""
        if not isinstance(request, dict) or request.keys() != {"observation", "noise"}:
            raise Refused("a request should be a map of 'observation' and 'noise'")
        observation, noise = request["observation"], request["noise"]
        self._check("noise", noise, len(noise) if isinstance(noise, np.ndarray) and noise.ndim else 0, "float32")
        if len(noise) > max_batch:
            raise Refused(f"a request should have at most {max_batch} observations, got {len(noise)}")
        if not isinstance(observation, dict) or observation.keys() != self.entries.keys():
            got = list(map(str, observation)) if isinstance(observation, dict) else type(observation).__name__
            raise Refused(f"the observation should have the entries {sorted(self.entries)}, got {got}")
        for name, (dtype, _) in self.entries.items():
            self._check(name, observation[name], len(noise), dtype)
        chunk = np.asarray(self.decode(observation, noise))
        if chunk.shape != (len(noise), *self.chunk_shape) or chunk.dtype.kind not in "iuf":
            expected = [len(noise), *self.chunk_shape]
            raise Refused(f"{self.name} should return numbers {expected}, got {chunk.dtype} {list(chunk.shape)}")
        return chunk.astype(np.float32)

    def _check(self, name: str, value: Any, batch: int, dtype: str) -> None:
        shape = self.noise_shape if name == "noise" else self.entries[name][1]
        if not isinstance(value, np.ndarray) or value.shape != (batch, *shape) or value.dtype != dtype:
            got = f"{value.dtype} {list(value.shape)}" if isinstance(value, np.ndarray) else type(value).__name__
            raise Refused(f"{name} should be {dtype} {['batch', *shape]}, got {got}".replace("'", ""))


def callable_policy(name: str) -> Policy:
    """The function that ``module:function`` names, imported from the working directory or an installed package."""
    module, _, attribute = name.partition(":")
    if not module or not attribute:
        raise Refused(f"--callable should be module:function, got {name!r}")
    try:
        decode = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise Refused(f"--callable: cannot import {name} ({one_line(error)})") from None
    if not callable(decode):
        raise Refused(f"--callable: {name} is not callable")
    noise_shape, chunk_shape = (_two_sizes(decode, name, size) for size in ("noise_shape", "chunk_shape"))
    entries = getattr(decode, "entries", None)
    if not isinstance(entries, dict) or not entries or not all(map(_is_entry, entries.items())):
        raise Refused(
            f"--callable: {name}.entries should be {{name: (dtype, shape)}}, dtype of numbers; got {entries!r}"
        )
    first, steps = getattr(decode, "first_action", 0), getattr(decode, "n_action_steps", None)
    rest = chunk_shape[0] - first if type(first) is int and first >= 0 else 0
    if rest < 1 or not (steps is None or (_positive(steps) and steps <= rest)):
        raise Refused(f"--callable: {name}.first_action {first!r} and n_action_steps {steps!r} should lie in the chunk")
    content_hash = getattr(decode, "content_hash", None)
    if not isinstance(content_hash, (str, type(None))):
        raise Refused(f"--callable: {name}.content_hash should be a text, got {content_hash!r}")
    return Policy(
        name,
        decode,
        noise_shape,
        chunk_shape,
        {str(key): (str(np.dtype(dtype)), tuple(shape)) for key, (dtype, shape) in entries.items()},
        first,
        steps,
        content_hash,
    )


def _two_sizes(decode: Any, name: str, attribute: str) -> tuple[int, int]:
    value = getattr(decode, attribute, None)
    if not isinstance(value, (tuple, list)) or len(value) != 2 or not all(map(_positive, value)):
        raise Refused(f"--callable: {name}.{attribute} should be two positive numbers, (steps, size); got {value!r}")
    return value[0], value[1]


def _positive(value: Any) -> bool:
    return type(value) is int and value > 0


def _is_entry(item: tuple[Any, Any]) -> bool:
    try:
        name, (dtype, shape) = item
        return isinstance(name, str) and str(np.dtype(dtype)) in NAMES and all(map(_positive, shape))
    except (TypeError, ValueError):
        return False


def lerobot_policy(folder: str, task: str, device: str | None) -> Policy:
    """SmolVLA, π0 or π0.5 in a folder that LeRobot saved, with its pre- and postprocessors, for one instruction."""
    path = Path(folder)
    for file in LEROBOT_FILES:
        if not (path / file).is_file():
            raise Refused(f"--lerobot: {path} has no {file}; it should be a folder as `hf download <repo>` writes it")
    try:
        kind = dict(json.loads((path / "config.json").read_bytes())).get("type")
    except (TypeError, ValueError) as error:
        raise Refused(f"--lerobot: {path / 'config.json'} is damaged ({one_line(error)})") from None
    if kind not in LEROBOT_TYPES:
        raise Refused(f"--lerobot serves {', '.join(LEROBOT_TYPES)}, {path} is a {kind}; wrap it for --callable")
    try:
        import torch
        from lerobot.configs.policies import PreTrainedConfig
        from lerobot.policies.factory import get_policy_class, make_pre_post_processors
    except ImportError as error:
        raise Refused(f"--lerobot needs LeRobot in this environment ({one_line(error)}); run me in that one") from None
    try:
        config = PreTrainedConfig.from_pretrained(path)
        config.device = device = device or config.device or "cpu"
        policy = get_policy_class(kind).from_pretrained(path, config=config).to(device).eval()
        there = {"device_processor": {"device": device}}
        pre, post = make_pre_post_processors(config, str(path), preprocessor_overrides=there)
    except Exception as error:  # a tokenizer that is not there, another version, no memory
        raise Refused(f"--lerobot: LeRobot cannot load {path} ({type(error).__name__}: {one_line(error)})") from None
    check_weights(policy, path / "model.safetensors")

    def decode(observation: dict[str, np.ndarray], noise: np.ndarray) -> np.ndarray:
        batch: dict[str, Any] = {name: torch.from_numpy(entry) for name, entry in observation.items()}
        images = {name: entry.float() / 255 for name, entry in batch.items() if entry.dtype == torch.uint8}
        policy.reset()  # else what is left of the chunk before answers
        chunk = policy.predict_action_chunk(
            pre(batch | images | {"task": [task] * len(noise)}), noise=torch.from_numpy(noise).to(device)
        )
        return post(chunk).float().cpu().numpy()

    features = {name: feature for name, feature in config.input_features.items() if ".empty_camera_" not in name}
    return Policy(
        kind,
        decode,
        (config.chunk_size, config.max_action_dim),
        (config.chunk_size, config.output_features["action"].shape[0]),
        {
            name: ("uint8" if feature.type.value == "VISUAL" else "float32", tuple(feature.shape))
            for name, feature in features.items()
        },
        n_action_steps=config.n_action_steps,
        content_hash=folder_hash(path, task),
    )


def check_weights(policy: Any, file: Path) -> None:
    """Raises :class:`Refused` where the weights are not the file's: π0's loaders go on with random ones."""
    from safetensors import safe_open

    with safe_open(file, framework="pt", device="cpu") as weights:
        stored = {name.removeprefix("model."): name for name in weights.keys()}
        loaded = {name.removeprefix("model."): value for name, value in policy.state_dict().items()}
        common = stored.keys() & loaded.keys()
        other = [name for name in sorted(common) if not _same(weights.get_tensor(stored[name]), loaded[name])]
    kept = {loaded[name].data_ptr() for name in common}  # of tied weights, one is stored
    other += [name for name in sorted(loaded.keys() - common) if loaded[name].data_ptr() not in kept]
    if other:
        raise Refused(f"--lerobot: {len(other)} weights are not those of {file}, e.g. {other[0]}: another version?")


def _same(stored: Any, loaded: Any) -> bool:
    return stored.shape == loaded.shape and bool((stored.to(loaded.dtype) == loaded.cpu()).all())


def folder_hash(folder: Path, *more: str) -> str:
    """SHA-256 of the folder's JSON and safetensors files and of ``more``."""
    digest = hashlib.sha256(json.dumps(more).encode())
    for file in sorted(file for file in folder.iterdir() if file.suffix in (".json", ".safetensors")):
        digest.update(file.name.encode())
        with file.open("rb") as content:
            while block := content.read(2**24):
                digest.update(block)
    return digest.hexdigest()


@contextlib.contextmanager
def listening(policy: Policy, host: str, port: int, max_batch: int, max_bytes: int) -> Iterator[Server]:
    """A server whose ``serve_forever()`` is still to be called; closes its connections in the end."""
    announcement = pack(policy.announcement(max_batch, max_bytes))
    one_at_a_time = threading.Lock()  # policies have state, and a device of their own
    connections = set()

    def reply(message: str | bytes) -> bytes:
        try:
            request = unpack(message) if isinstance(message, bytes) else None
            with one_at_a_time:
                return pack({"chunk": policy.answer(request, max_batch)})
        except Refused as error:
            return pack({"error": one_line(error)})
        except Exception as error:  # whatever the policy raises; the next request may be a better one
            traceback.print_exc()
            return pack({"error": f"{policy.name} raised {type(error).__name__}: {one_line(error)}"})

    def handle(connection: Any) -> None:
        connections.add(connection)
        with contextlib.suppress(ConnectionClosed):
            connection.send(announcement)
            for message in connection:
                connection.send(reply(message))
        connections.discard(connection)

    logger = logging.getLogger("serve_policy")  # a client that is no websocket is not worth a traceback
    logger.setLevel(logging.CRITICAL)
    # Browsers say where a page came from: no page that somebody looks at here shall reach the server.
    options: dict[str, Any] = {"origins": [None], "compression": None, "max_size": max_bytes, "close_timeout": 1}
    try:
        server = serve(handle, host, port, logger=logger, **options)
    except OSError as error:
        raise Refused(f"cannot listen at {host}:{port} ({one_line(error)}); choose another --port") from None
    try:
        yield server
    finally:
        # Each waits for ever where a client does not read its answers, or has not said what it wants.
        ends = [connection.close for connection in list(connections)] + [server.shutdown]
        closing = [threading.Thread(target=end, daemon=True) for end in ends]
        for thread in closing:
            thread.start()
        last = time.monotonic() + CLOSING_SECONDS
        for thread in closing:
            thread.join(max(0.0, last - time.monotonic()))


def check(policy: Policy) -> None:
    """One request before any client comes: whatever does not work says so now."""
    observation = {name: np.zeros((1, *shape), dtype) for name, (dtype, shape) in policy.entries.items()}
    start = time.perf_counter()
    policy.answer({"observation": observation, "noise": np.zeros((1, *policy.noise_shape), np.float32)})
    milliseconds = 1e3 * (time.perf_counter() - start)
    entries = ", ".join(f"{name} {dtype} {list(shape)}" for name, (dtype, shape) in policy.entries.items())
    print(f"{policy.name}: {entries}; noise {list(policy.noise_shape)} -> chunk {list(policy.chunk_shape)}")
    print(f"the first chunk took {milliseconds:.0f} ms", flush=True)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> Any:
        raise Refused(f"{message}; --help lists the options")


def main(arguments: list[str] | None = None) -> None:
    """The command; a mistake ends it with one line and exit code 1, Ctrl-C with 130, SIGTERM with 143."""
    parser = _Parser("serve_policy", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lerobot", metavar="FOLDER", help="a checkpoint of SmolVLA, pi0 or pi05")
    parser.add_argument("--callable", metavar="MODULE:FUNCTION", help="a function of yours")
    parser.add_argument("--task", help="the instruction, with --lerobot")
    parser.add_argument("--device", help="with --lerobot, e.g. cuda; the checkpoint's by default")
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 lets everybody in: there is no password")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--max-batch", type=int, default=MAX_BATCH, help="observations in a request")
    parser.add_argument("--max-megabytes", type=int, default=MAX_MEGABYTES, help="of a request")
    stopped: list[int] = []

    def stop(number: int, frame: object) -> None:
        if stopped:  # the second one: it does not wait for the chunk that is being decoded
            os._exit(128 + number)
        stopped.append(number)
        raise KeyboardInterrupt

    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:  # so the shell starts commands in the background
            signal.signal(number, stop)
    try:
        given = parser.parse_args(arguments)
        if (given.lerobot is None) == (given.callable is None):
            raise Refused("give --lerobot FOLDER or --callable MODULE:FUNCTION")
        if given.lerobot is not None and not given.task:
            raise Refused('--lerobot needs the instruction, e.g. --task "pick up the black bowl"')
        if not 0 <= given.port < 65_536 or min(given.max_batch, given.max_megabytes) < 1:
            raise Refused("--port should be from 0 to 65535, --max-batch and --max-megabytes at least 1")
        if given.lerobot is not None:
            policy = lerobot_policy(given.lerobot, given.task, given.device)
        else:
            policy = callable_policy(given.callable)
        check(policy)
        with listening(policy, given.host, given.port, given.max_batch, given.max_megabytes * 2**20) as server:
            host, port = server.socket.getsockname()[:2]
            print(f"serving {policy.name} at ws://{host}:{port}, Ctrl-C ends it", flush=True)
            server.serve_forever()
    except Refused as error:
        print(f"serve_policy: error: {one_line(error)}", file=sys.stderr)
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        print("serve_policy: ended", file=sys.stderr, flush=True)
        if any(not thread.daemon and thread is not threading.main_thread() for thread in threading.enumerate()):
            os._exit(128 + stopped[0])  # Python would wait for their clients
        raise SystemExit(128 + stopped[0]) from None


if __name__ == "__main__":
    # The working directory instead of this file's folder, whose neighbours may be called like the policy's packages.
    sys.path[0] = os.getcwd()
    main()
