"""Checkpoints of both stages: safetensors and JSON alone, each byte accounted for, whole after a power cut.

A checkpoint is a folder::

    checkpoint-000005000/
        <component>.safetensors   its tensors
        state.json                everything else of all components
        manifest.json             size and SHA-256 of these, what the checkpoint is of, versions; its own SHA-256

It is written under another name, synced and renamed, so that it is there as a whole or not at all. Nothing else is ever
read, and nothing of it before all of it was compared with the manifest.
"""

from __future__ import annotations

import json
import re
import shutil
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import safetensors.torch
import torch
from torch import Tensor

from dsrl_torchrl.errors import CheckpointError, NonFiniteError
from dsrl_torchrl.files import check_file, file_record, remove_folder, seal, unseal, write_folder_atomically
from dsrl_torchrl.tensor_files import check_finite_tensors, load_tensors, storable
from dsrl_torchrl.versions import installed_versions

FORMAT = "dsrl_torchrl.checkpoint"
VERSION = 2
MANIFEST, STATE = "manifest.json", "state.json"
NAME = re.compile(r"checkpoint-\d+", re.ASCII)
#: The components that must be finite.
LEARNED = ("agent", "optimisers")
#: A tensor in ``state.json`` is a dict of this key and its name in the component's file.
TENSOR = "__tensor__"


class Component(Protocol):
    """What a checkpoint holds: nested dicts (of text keys) and lists of tensors and JSON values."""

    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any], /) -> Any: ...


class Checkpoints:
    """The newest checkpoints of one stage.

    Args:
        folder: holds them; leftovers of interrupted writes are removed from it.
        identity: what the checkpoints are of, as JSON values: those of anything else are refused.
        components: by name; saved and restored together.
        keep: how many.
        say: prints one line to the user.
    """

    def __init__(
        self,
        folder: Path,
        identity: Mapping[str, Any],
        components: Mapping[str, Component],
        *,
        keep: int = 2,
        say: Callable[[str], None] = warnings.warn,
    ) -> None:
        self.folder, self.identity, self.components = folder, json.loads(json.dumps(identity)), components
        self.keep, self.say = keep, say
        for leftover in folder.glob(".checkpoint-*"):
            shutil.rmtree(leftover, ignore_errors=True)

    def start(self, resume: bool) -> None:
        """Goes on from the newest checkpoint, if any; without ``resume`` there must be none.

        Raises:
            CheckpointError: there are some, and none can be used or ``resume`` is False.
        """
        if resume:
            self.restore()
        elif checkpoints_in(self.folder):
            raise CheckpointError(f"{self.folder} holds the checkpoints of a run: resume it, or choose another folder")

    def save(self, step: int) -> None:
        """Writes a checkpoint, then removes the oldest.

        Raises:
            NonFiniteError: a learned tensor is NaN or infinite; the checkpoint before it stays the newest.
        """
        path = self.folder / f"checkpoint-{step:09d}"
        write_folder_atomically(path, lambda folder: self._write(folder, step))
        # One beyond this step is none that this run could use.
        self._prune([other for other in checkpoints_in(self.folder) if other.name <= path.name])

    def restore(self) -> bool:
        """Restores the newest checkpoint that is whole and of this run; says which ones it passed over.

        Returns:
            Whether there was any.

        Raises:
            CheckpointError: there are some, and none can be used.
        """
        found = checkpoints_in(self.folder)
        for index, path in reversed(list(enumerate(found))):
            try:
                self._load(path)
            except CheckpointError as error:
                self.say(f"{error}; taking the one before it")
                continue
            self._prune(found[: index + 1])  # the run may have been killed before it did
            return True
        if found:
            raise CheckpointError(
                f"no checkpoint of this run is left in {self.folder} that can be used; start anew with another name="
            )
        return False

    def _prune(self, found: list[Path]) -> None:
        for old in found[: -self.keep]:
            remove_folder(old)

    def _write(self, folder: Path, step: int) -> None:
        plain = {}
        for name, component in self.components.items():
            tensors: dict[str, Tensor] = {}
            plain[name] = _split(component.state_dict(), tensors, ())
            if name in LEARNED:
                for key, tensor in tensors.items():
                    if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                        raise NonFiniteError(f"{name} {key}", step, "step", "lower the learning rates")
            if tensors:
                # Not by way of bytes: a replay of images takes gigabytes.
                safetensors.torch.save_file(storable(tensors), folder / f"{name}.safetensors")
        (folder / STATE).write_text(json.dumps(plain))
        manifest = {"format": FORMAT, "version": VERSION, "step": step, "identity": self.identity}
        files = {path.name: file_record(path) for path in sorted(folder.iterdir())}
        (folder / MANIFEST).write_bytes(seal(manifest | {"versions": installed_versions(), "files": files}))

    def _load(self, path: Path) -> None:
        manifest = unseal(path / MANIFEST)
        if (manifest.get("format"), manifest.get("version")) != (FORMAT, VERSION):
            raise CheckpointError(f"{path} is of another format than {FORMAT} {VERSION}")
        for name in sorted(self.identity.keys() | manifest["identity"].keys()):
            there, here = manifest["identity"].get(name), self.identity.get(name)
            if isinstance(there, dict) and isinstance(here, dict):
                differ = {key for key in there.keys() | here.keys() if there.get(key) != here.get(key)}
                there, here = ({key: side.get(key) for key in sorted(differ)} for side in (there, here))
            if there != here:
                raise CheckpointError(f"{path} is of another run: {name} is {there} there, {here} here")
        if path.name != f"checkpoint-{manifest['step']:09d}":
            raise CheckpointError(f"{path} is the checkpoint of step {manifest['step']}")
        for name, record in manifest["files"].items():
            check_file(path / name, record)
        plain = json.loads((path / STATE).read_bytes())
        for name, component in self.components.items():
            file = path / f"{name}.safetensors"
            tensors = load_tensors(file) if file.name in manifest["files"] else {}
            if name in LEARNED:
                check_finite_tensors(tensors, file)
            try:
                component.load_state_dict(_join(plain[name], tensors))
            # What a network, an optimiser or a buffer raises for a state that is not its own.
            except (KeyError, ValueError, TypeError, RuntimeError, IndexError) as error:
                reason = " ".join(str(error).split())[:200]
                raise CheckpointError(f"{path}: {name} does not fit this run ({reason})") from error
        here = installed_versions()
        changed = [f"{k} {v} (here {here.get(k)})" for k, v in manifest["versions"].items() if v != here.get(k)]
        if changed:
            self.say(f"{path.name} was written by {', '.join(changed)}: the run goes on, but not bit for bit")


def checkpoints_in(folder: Path) -> list[Path]:
    """The checkpoints there, oldest first, whether or not they can be read; a copy of another name is the user's."""
    return sorted(path for path in folder.glob("checkpoint-*") if NAME.fullmatch(path.name))


def _split(value: Any, tensors: dict[str, Tensor], path: tuple[str, ...]) -> Any:
    """``value`` as JSON, its tensors aside; one that is there under several names is kept once."""
    if isinstance(value, Tensor):
        for name, tensor in tensors.items():
            if tensor is value or (
                tensor.data_ptr() == value.data_ptr() != 0
                and (tensor.shape, tensor.stride(), tensor.dtype) == (value.shape, value.stride(), value.dtype)
            ):
                return {TENSOR: name}
        name = json.dumps(path)
        tensors[name] = value
        return {TENSOR: name}
    if isinstance(value, Mapping):
        if not all(isinstance(key, str) for key in value):
            raise TypeError(f"keys should be texts, got {list(value)}")
        return {key: _split(item, tensors, (*path, key)) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_split(item, tensors, (*path, str(index))) for index, item in enumerate(value)]
    return value


def _join(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, dict):
        return tensors[value[TENSOR]] if TENSOR in value else {key: _join(v, tensors) for key, v in value.items()}
    return [_join(item, tensors) for item in value] if isinstance(value, list) else value
