"""What the machine refuses is one line, and the run goes on when it does so no more."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import subprocess
from pathlib import Path

import pytest

from dsrl_torchrl.cli.faults import machine_faults
from dsrl_torchrl.cli.main import main
from dsrl_torchrl.collect.spawned_process import WorkerError, WorkerKilledError
from dsrl_torchrl.errors import UserError

from .pipeline_run import SMOKE, TINY, fails, loaded

pytestmark = pytest.mark.usefixtures("in_an_empty_folder")


@contextlib.contextmanager
def limit(kind, value):
    """A soft limit of this process, raised again at the end."""
    soft, hard = resource.getrlimit(kind)
    resource.setrlimit(kind, (value, hard))
    try:
        yield
    finally:
        resource.setrlimit(kind, (soft, hard))


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device", "runs/a/x"),
        RuntimeError("PytorchStreamWriter failed: No space left on device"),
        ValueError("h5py: errno = 122, Disk quota exceeded"),
    ],
)
def test_a_full_disk_is_one_line_whoever_reports_it(tmp_path, error):
    line = r"(runs/a/x|place): (no space left|disk quota).*; free some .*resume=true"
    with pytest.raises(UserError, match=line), machine_faults(Path("place")):
        try:
            raise error
        except Exception as cause:
            raise RuntimeError("in the middle of something") from cause


REFUSED = [errno.EACCES, errno.EPERM, errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.EROFS, errno.ENAMETOOLONG]


@pytest.mark.parametrize("number", REFUSED, ids=errno.errorcode.get)
@pytest.mark.parametrize("file", ["place/stage1/actor.safetensors", "place", "."])
def test_what_is_refused_in_the_run_folder_is_one_line(number, file):
    with pytest.raises(UserError, match=f"^{file}: .*choose a"), machine_faults(Path("place")):
        raise OSError(number, os.strerror(number), file)


@pytest.mark.parametrize(
    "error",
    [
        *(OSError(number, os.strerror(number), "/assets/robot.urdf") for number in REFUSED),
        PermissionError(errno.EPERM, "no file is named"),
        FileNotFoundError(errno.ENOENT, "missing", "place/file"),
        KeyError("missing"),
    ],
    ids=repr,
)
def test_a_bug_keeps_its_traceback(error):
    with pytest.raises(type(error)) as raised, machine_faults(Path("place")):
        raise error
    assert raised.value is error


def test_a_killed_worker_says_how_to_go_on():
    line = "env worker 0 was killed; run it again: .*resume=true"
    with pytest.raises(UserError, match=line), machine_faults(Path("place")):
        raise WorkerKilledError("env worker 0 was killed")
    with pytest.raises(WorkerError, match=r"^env worker 0 failed$"), machine_faults(Path("place")):
        raise WorkerError("env worker 0 failed")


@pytest.mark.parametrize("output", ["/dev/null", "file", "file/below"])
def test_an_output_that_is_no_folder(tmp_path, capsys, output):
    (tmp_path / "file").write_text("kept")
    error = fails(capsys, "demos", *SMOKE, f"output={output}")
    assert output.split("/below")[0] in error
    assert "choose another output=" in error and "resume" not in error
    assert (tmp_path / "file").read_text() == "kept"


def test_a_run_folder_that_is_a_file(tmp_path, capsys):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "a").write_text("kept")
    assert "runs/a" in fails(capsys, "demos", *SMOKE, "name=a")
    assert (tmp_path / "runs" / "a").read_text() == "kept"


def test_too_many_open_files(capsys):
    free = os.open(os.devnull, os.O_RDONLY)
    os.close(free)
    with limit(resource.RLIMIT_NOFILE, free + 1):  # for the lock alone
        assert "ulimit -n" in fails(capsys, "demos", *SMOKE)


def test_too_many_open_files_before_the_run_begins(capsys):
    free = os.open(os.devnull, os.O_RDONLY)
    os.close(free)
    with limit(resource.RLIMIT_NOFILE, free):
        error = fails(capsys, "demos", *SMOKE)
    assert "ulimit -n" in error and "resume" not in error


def limit_that_stops(run, pattern):
    """A file size below that of the first file of this pattern, and above those of all that a run writes before."""
    files = sorted((path for path in run.rglob("*") if path.is_file()), key=lambda path: path.stat().st_mtime_ns)
    first = next(place for place, path in enumerate(files) if path.match(pattern))
    before = max((path.stat().st_size for path in files[:first]), default=0)
    size = files[first].stat().st_size
    assert before < size, f"a limit that stops {files[first]} stops an earlier file: choose another one here"
    return (before + size) // 2


def same_as(finished, output):
    """Whether a run came to the results of the uninterrupted one."""
    resumed, whole = (folder / "a" / "stage2" / "actor.safetensors" for folder in (output, finished))
    return resumed.read_bytes() == whole.read_bytes()


#: In the order in which a run writes them, each the largest so far.
FILES = (
    "demos/*.h5",
    "stage1/rollouts.safetensors",
    "stage1/checkpoints/*/agent.*",
    "stage1/checkpoints/*/optimisers.*",
    "*.png",
)


@pytest.mark.slow
def test_limits_of_the_file_size_stop_each_step_in_one_line(tmp_path, finished, capsys):
    """One after the other in the same run folder, which ends as if there had been none."""
    for pattern in FILES:
        with limit(resource.RLIMIT_FSIZE, limit_that_stops(finished / "a", pattern)):
            error = fails(capsys, "run", *TINY, "name=a", "resume=true")
        assert not [path for path in (tmp_path / "runs" / "a").rglob("*") if path.match(pattern)], pattern
        assert "file too large" in error and "ulimit -f" in error
    main(["run", *TINY, "name=a", "resume=true"])
    assert same_as(finished, tmp_path / "runs")
    assert not list((tmp_path / "runs").rglob(".*"))


@pytest.fixture
def small_disk(tmp_path):
    """A function that makes ``disk`` a file system of that many KiB, or resizes it."""
    disk = tmp_path / "disk"
    disk.mkdir()

    def mount(options):
        kind = ["-o", f"remount,{options}"] if disk.is_mount() else ["-t", "tmpfs", "-o", options, "tmpfs"]
        if subprocess.run(["mount", *kind, disk], capture_output=True).returncode:
            pytest.skip("this user may not mount a tmpfs")

    yield mount
    subprocess.run(["umount", disk], capture_output=True)


@pytest.mark.slow
def test_a_full_disk_stops_a_run_in_one_line_and_loses_nothing(tmp_path, finished, capsys, small_disk):
    """Again and again, on a disk that grows too little each time."""
    for kib in (20, 100, 300, 500):
        small_disk(f"size={kib}k")
        assert "no space left" in fails(capsys, "run", *TINY, "output=disk", "name=a", "resume=true"), kib
    small_disk("size=20m")
    main(["run", *TINY, "output=disk", "name=a", "resume=true"])
    assert same_as(finished, tmp_path / "disk")
    small_disk("ro")
    assert "read-only" in fails(capsys, "eval", *TINY, "output=disk", "name=a")


@pytest.mark.slow
def test_diagnosis_on_a_full_disk(tmp_path, finished, capsys, small_disk):
    small_disk("size=40k")
    few = ["diagnosis.resets=3", "diagnosis.repeats=2"]
    arguments = [*TINY, *loaded(finished / "a" / "base"), *few, "output=disk"]
    assert "no space left" in fails(capsys, "diagnose", *arguments)
