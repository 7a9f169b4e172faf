"""The faults suite in short, some of each kind; ``make faults`` is the whole of it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from .references import arguments
from .results import differences, results
from .suite import Suite

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="the suite reads /proc")


@pytest.fixture(scope="module")
def suite(tmp_path_factory):
    made = Suite(tmp_path_factory.mktemp("faults"), seed=int.from_bytes(os.urandom(4), "big"), at_once=1)
    yield made
    made.close()


@pytest.mark.slow
@pytest.mark.timeout(1_200)
@pytest.mark.parametrize(
    "some_of",
    [
        lambda suite: suite.kills(1, with_workers=False),
        lambda suite: suite.damages(2),
        lambda suite: suite.disks(1, sample=1),
    ],
    ids=["kills", "damages", "disks"],
)
def test_random_faults_lose_nothing(suite, some_of):
    before = suite.tally.tried()
    some_of(suite)
    assert suite.tally.tried() > before
    assert not suite.tally.failures, f"seed {suite.seed}"


@pytest.mark.slow
def test_a_limit_in_the_middle_of_the_demonstrations(suite, tmp_path):
    """HDF5 crashes if a file cannot grow while it is open."""
    end = suite.forks.run(arguments(tmp_path), tmp_path / "limited", file_size=1_500)
    assert end.wrong(1, line="error: .*file too large") is None, end


def test_results_are_compared_to_the_last_byte_but_for_times(tmp_path):
    def write(run, *, weights=b"1", seconds=1.0, updates=5, generators=b"1"):
        checkpoint = tmp_path / run / "stage2" / "checkpoints" / "checkpoint-000000005"
        checkpoint.mkdir(parents=True)
        (checkpoint / "agent.safetensors").write_bytes(weights)
        (checkpoint / "rng.safetensors").write_bytes(generators)
        (tmp_path / run / "summary.json").write_text(json.dumps({"wall_seconds": seconds, "updates": updates}))
        return results(tmp_path / run)

    run = write("a")
    assert differences(write("b", seconds=2.0, generators=b"2"), run) == []
    assert differences(write("c", updates=6), run) == ["summary.json"]
    assert differences(write("d", weights=b"2"), run) == ["stage2/checkpoints/checkpoint-000000005/agent.safetensors"]
    (tmp_path / "a" / ".leftover").touch()
    assert differences(results(tmp_path / "a"), run) == [".leftover"]
