"""The smallest run of the whole pipeline, and how tests start, kill and misuse it."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from dsrl_torchrl.cli.main import main

SMOKE = ["task=toy", "experiment=smoke", "collector.num_workers=1", "progress=false"]
#: The same, and the actors are trained from early on.
TINY = [*SMOKE, "algorithm.critic_only_updates=5", "stage1.algorithm.critic_only_updates=5"]


def loaded(folder):
    """A base policy that exists already."""
    return ["base_policy=checkpoint", f"base_policy.load.folder={folder}"]


def fails(capsys, *arguments):
    """The one line that a mistake prints; exit code 1."""
    with pytest.raises(SystemExit) as stopped:
        main(list(arguments))
    assert stopped.value.code == 1
    error = capsys.readouterr().err.strip()
    assert error.startswith("dsrl: error: ")
    assert "\n" not in error
    return error


def start(*arguments, **options):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "dsrl_torchrl", *arguments]
    return subprocess.Popen(
        command, env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, **options
    )


def wait_for(path, process, seconds=120):
    deadline = time.monotonic() + seconds
    while not list(path.parent.glob(path.name)):
        if time.monotonic() > deadline:
            process.kill()  # so that what it printed can be read
        assert time.monotonic() < deadline and process.poll() is None, process.communicate(timeout=30)
        time.sleep(0.05)


def wait_until_empty(group, seconds=30):
    """Until no process of the group is left."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return
        assert time.monotonic() < deadline, subprocess.run(["ps", "-eo", "pgid,pid,args"], capture_output=True)
        time.sleep(0.1)
