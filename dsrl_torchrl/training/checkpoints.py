"""What the checkpoints of both stages share: counters, and finding the newest one that can be read."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from torchrl.checkpoint import Checkpoint, CheckpointRotation

from dsrl_torchrl.errors import CheckpointError


@dataclass
class Counters:
    """How far a run is, as one checkpoint component."""

    env_steps: int = 0
    macro_steps: int = 0
    updates: int = 0
    segments: int = 0
    wall_seconds: float = 0.0

    def state_dict(self) -> dict:
        """The counters by name."""
        return asdict(self)

    def load_state_dict(self, state: dict) -> None:
        """Restores :meth:`state_dict`."""
        for name, value in state.items():
            setattr(self, name, value)


def load_newest(checkpoint: Checkpoint, rotation: CheckpointRotation) -> None:
    """Restores the newest readable checkpoint; does nothing where none was ever written.

    Raises:
        CheckpointError: all are unreadable, or the newest is damaged or another run's.
    """
    newest = rotation.latest()
    if newest is None:
        if any(rotation.directory.glob("checkpoint*")):
            raise CheckpointError(
                f"no readable checkpoint is left in {rotation.directory}; start anew with another name="
            )
        return
    try:
        checkpoint.load(newest)
    # TorchRL reports damage by whatever its readers raise: KeyError, RuntimeError, OSError, JSONDecodeError...
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise CheckpointError(
            f"{newest} is damaged or belongs to another run ({reason}); remove it to resume from the one before it"
        ) from error
