"""What the images of a run will take in memory, said before it starts."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path

from dsrl_torchrl.errors import UserError

#: Offline data hold s and s' in full, beside the frames that the replay keeps of them.
COPIES_OFFLINE = 3
GB = 1e9


def image_memory(shapes: Iterable[tuple[int, ...]], *, offline: int, online: int) -> int:
    """Bytes of the images of ``offline`` and ``online`` macro transitions.

    Args:
        shapes: ``[C, H, W]`` of each image entry that is kept, history included: as many new frames per transition.
        offline, online: macro transitions.
    """
    return sum(math.prod(shape) for shape in shapes) * (COPIES_OFFLINE * offline + online)


def check_image_memory(needed: int, available: int | None) -> str:
    """A line that says how much; :class:`UserError` where there is less."""
    line = f"images: about {needed / GB:.2f} GB of memory"
    if available is not None and needed > available:
        raise UserError(
            f"{line}, but {available / GB:.2f} GB are available: lower stage1.rollout_env_steps, "
            "latent.centre_env_steps, stage2.replay_size or the image size, set stage2.replay_memmap=true, or let the "
            "policy's encoder make latent.base_features"
        )
    return line


def available_memory(meminfo: Path = Path("/proc/meminfo")) -> int | None:
    """Bytes that new data can take without swapping; ``None`` where the system does not tell (macOS)."""
    try:
        fields = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
        return int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return None
