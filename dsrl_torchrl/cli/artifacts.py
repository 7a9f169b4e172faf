"""One step's result on disk: whether it is there, and what it was made with."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from dsrl_torchrl.cli.config_differences import at, config_differences, config_hash, differing, filled, without
from dsrl_torchrl.errors import CheckpointError, UserError
from dsrl_torchrl.files import check_file, file_record, seal, sync, unseal, write_atomically
from dsrl_torchrl.training.checkpoints import checkpoints_in

MARKER = "artifact.json"


class Artifact:
    """One step's result in a folder, finished when its marker file says so.

    The marker holds the configuration, size and SHA-256 of every file, and what else went into them; and its own
    SHA-256.

    Args:
        folder: where the step writes.
        config: the part of the configuration that the result depends on, as plain JSON values.
        default: the defaults of the same options. A folder survives an option that was added after it was made, if
            that is at its default.
        marker: name of the marker file.
        budget: path in ``config`` of a number that may grow: then the result goes on from its last checkpoint.
        resume: whether that is asked for.

    Attributes:
        inputs: hashes of what the result was made from, by name; those that are not known yet are not compared.
    """

    def __init__(
        self,
        folder: Path,
        config: dict[str, Any],
        default: dict[str, Any] | None = None,
        marker: str = MARKER,
        *,
        budget: tuple[str, ...] = (),
        resume: bool = False,
    ) -> None:
        self.folder = folder
        self.config, self.default = json.loads(json.dumps(config)), default or {}
        self.path = folder / marker
        self.inputs: dict[str, str] = {}
        self.budget, self.resume = budget, resume
        self._intact = False

    @property
    def exists(self) -> bool:
        """Whether the step finished here with this configuration.

        Raises:
            UserError: it finished here with another configuration or from other inputs, or left a checkpoint.
            CheckpointError: one of its files is not what was written.
        """
        stored = self._read()
        if stored is None or not (stored["finished"] or self.has_checkpoint):
            return False  # what failed at once claims nothing: the corrected command may begin anew
        there = filled(stored["config"], self.default)
        differences = list(config_differences(there, self.config))
        goes_on = bool(differences) and self._goes_on(there, stored["finished"])
        if differences and not goes_on:
            shown = ", ".join(differences[:3]) + (f" and {len(differences) - 3} more" if len(differences) > 3 else "")
            raise UserError(
                f"{self.folder} belongs to another configuration: {shown}; choose another name= or go back to that one"
            )
        for name in sorted(stored["inputs"].keys() & self.inputs.keys()):
            if stored["inputs"][name] != self.inputs[name]:
                raise UserError(
                    f"{self.folder} was made from other {name.replace('_', ' ')} than what is there now: choose "
                    f"another name=, or remove {self.folder} to make it again"
                )
        if goes_on:
            return False
        if stored["finished"] and not self._intact:
            for name, record in stored["files"].items():
                try:
                    check_file(self.folder / name, record)
                except CheckpointError as error:
                    raise CheckpointError(f"{error}; restore it, or remove {self.path} to make it again") from None
            self._intact = True
        return bool(stored["finished"])

    @property
    def has_checkpoint(self) -> bool:
        """Whether the step was interrupted here and can go on."""
        return bool(checkpoints_in(self.folder / "checkpoints"))

    @property
    def facts(self) -> dict[str, Any]:
        """What the finished step recorded about its result."""
        stored = self._read()
        return stored["facts"] if stored else {}

    @property
    def key(self) -> str:
        """Hash of the options but the budget, and of the base policy."""
        options = differing(without(self.config, self.budget), self.default)
        return config_hash({"options": options, "base_policy": self.inputs.get("base_policy")})

    @property
    def finished(self) -> bool:
        """Whether the step finished here, with whatever configuration."""
        stored = self._read()
        return stored is not None and stored["finished"]

    @property
    def begun(self) -> bool:
        """Whether there is anything that took work."""
        return self.finished or self.has_checkpoint

    @property
    def content(self) -> str | None:
        """Hash of the finished files, if it is finished."""
        stored = self._read()
        return config_hash(stored["files"]) if stored and stored["finished"] else None

    def begin(self) -> None:
        """Claims the folder for this configuration; a finished result that is given more stays what it is till then."""
        if not (self.exists or self.finished):
            self._write(finished=False, facts={}, files={})

    def finish(self, *files: Path, **facts: Any) -> None:
        """Marks the step as done, ``files`` being its result."""
        records = {}
        for path in files:
            sync(path)  # the record is: after a power cut it must not tell of more than there is
            records[os.path.relpath(path, self.folder)] = file_record(path)
        self._write(finished=True, facts=facts | self._extended(), files=records)

    def _goes_on(self, there: dict[str, Any], finished: bool) -> bool:
        """Whether only the budget has grown, and going on is asked for."""
        before, now = at(there, self.budget), at(self.config, self.budget)
        same = config_hash(without(there, self.budget)) == config_hash(without(self.config, self.budget))
        if not (self.budget and same and now > before):
            return False
        if not self.has_checkpoint:
            raise UserError(f"{self.folder} has no checkpoint to go on from: choose another name=")
        if not self.resume:
            done = "finished" if finished else "begun"
            raise UserError(
                f"{self.folder} was {done} with {'.'.join(self.budget)} {before}: resume=true goes on to {now}"
            )
        return True

    def _extended(self) -> dict[str, Any]:
        """The budgets that the result was finished with before."""
        stored = self._read()
        if stored is None or not (stored["finished"] and self.budget):
            return {}
        before = list(stored["facts"].get("extended_from", []))
        if at(stored["config"], self.budget) != at(self.config, self.budget):
            before.append(at(stored["config"], self.budget))
        return {"extended_from": before} if before else {}

    def _write(self, **record: Any) -> None:
        self._intact = False
        write_atomically(self.path, seal({"config": self.config, "inputs": self.inputs, **record}))

    def _read(self) -> dict[str, Any] | None:
        if not self.path.exists():
            return None
        try:
            stored = unseal(self.path)
        except CheckpointError as error:
            raise CheckpointError(f"{error}; move {self.folder} away or choose another name=") from None
        if not {"finished", "config", "facts", "files", "inputs"} <= stored.keys():
            raise UserError(f"{self.path} is not a record of a dsrl run: move the folder away or choose another name=")
        return stored
