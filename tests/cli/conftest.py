"""What the tests of the command share."""

import signal
from pathlib import Path

import pytest

from ..faults.commands import Forks


@pytest.fixture
def in_an_empty_folder(tmp_path, monkeypatch):
    """Run folders go to ``runs/`` below the working directory."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="session")
def forks():
    """Starts commands that need not import anything, in the working directory."""
    if not Path("/proc/self/stat").exists():
        pytest.skip("started commands are watched through /proc")
    forks = Forks()
    yield forks
    forks.close()


@pytest.fixture
def start(forks, tmp_path_factory):
    """A function that starts a command in a process group of its own, all of which end with the test."""
    started = []

    def start(*arguments):
        started.append(forks.start(arguments, tmp_path_factory.mktemp("streams") / "command"))
        return started[-1]

    yield start
    for command in started:
        if not command.ended:
            command.signal(signal.SIGKILL)
            command.wait()
