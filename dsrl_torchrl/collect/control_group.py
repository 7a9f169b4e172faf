"""What a container or a job may use of its machine: the limits of its control group, version 2."""

from __future__ import annotations

from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")


def cores_of_group() -> float | None:
    """CPU seconds a second (``docker --cpus``, a pod's limit); ``None`` where nothing limits them."""
    limits = []
    for folder in _groups():
        quota, _, period = _read(folder / "cpu.max").partition(" ")
        if quota.isdigit() and int(period or 0):
            limits.append(int(quota) / int(period))
    return min(limits, default=None)


def memory_of_group() -> int | None:
    """Bytes that are left (``docker -m``, SLURM's ``--mem``), the page cache being free; ``None`` without a limit."""
    left = []
    for folder in _groups():
        limit, used = _read(folder / "memory.max"), _read(folder / "memory.current")
        if limit.isdigit() and used.isdigit():
            fields = dict(line.split() for line in _read(folder / "memory.stat").splitlines())
            cache = sum(int(fields.get(name, 0)) for name in ("inactive_file", "active_file"))
            left.append(max(0, int(limit) - int(used) + cache))
    return min(left, default=None)


def _groups() -> list[Path]:
    """The group of this process and those above it, which limit it, too."""
    path = next((line[3:] for line in _read(MEMBERSHIP).splitlines() if line.startswith("0::")), "")
    group = ROOT / path.lstrip("/")
    return [folder for folder in (group, *group.parents) if folder == ROOT or ROOT in folder.parents]


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:  # no control groups, another version, another system
        return ""
