"""Publishing a trajectory: the h5 and its json appear together and complete, or not at all."""

from __future__ import annotations

import io
import json
import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dsrl_torchrl.errors import UserError

#: Name of the pair inside the folder that :func:`publishing` lends.
STEM = "trajectory"
#: How that folder's own name begins; a killed recording leaves it behind.
RECORDING = ".recording-"


@contextmanager
def publishing(path: Path, provenance: dict[str, Any]) -> Iterator[Path]:
    """Lends a folder to write ``trajectory.h5`` and ``trajectory.json`` in, and moves them to ``path`` on a clean exit.

    Args:
        path: the ``.h5`` to publish; the ``.json`` goes beside it.
        provenance: how the file was made; read at exit, and kept in the json under ``dsrl_torchrl``.
    """
    if path.suffix != ".h5":
        raise UserError(f"demonstrations are written to a .h5 file, got {path}")
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=RECORDING, dir=path.parent) as name:
        folder = Path(name)
        yield folder
        description = json.loads((folder / f"{STEM}.json").read_text())
        (folder / f"{STEM}.json").write_text(json.dumps(description | {"dsrl_torchrl": provenance}, indent=2))
        # The h5 last: a path that exists is complete.
        os.replace(folder / f"{STEM}.json", path.with_suffix(".json"))
        os.replace(folder / f"{STEM}.h5", path)


@contextmanager
def written_at_once(path: Path) -> Iterator[Any]:
    """A new h5 file that is in memory until it is closed: HDF5 crashes when a disk fills while a file is open."""
    import h5py

    image = io.BytesIO()
    with h5py.File(image, "w") as file:
        yield file
    path.write_bytes(image.getvalue())


def join_parts(parts: Iterable[Path], folder: Path) -> None:
    """Writes ``trajectory.h5`` and ``trajectory.json`` in ``folder``, from files of one episode each, in their order.

    ManiSkill's ``merge_trajectories`` does the same, but with it the simulator is imported: 5 seconds.
    """
    import h5py

    description: dict[str, Any] = {}
    episodes: list[dict[str, Any]] = []
    with h5py.File(folder / f"{STEM}.h5", "w") as joined:
        for number, part in enumerate(parts):
            description = json.loads(part.with_suffix(".json").read_text())
            episodes.append(description["episodes"][0] | {"episode_id": number})
            with h5py.File(part, "r") as file:
                file.copy("traj_0", joined, f"traj_{number}")
    (folder / f"{STEM}.json").write_text(json.dumps(description | {"episodes": episodes}))
