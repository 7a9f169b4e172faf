"""Which reset seeds belong to what: one map, disjoint for every run seed, so that no evidence is trained on."""

from __future__ import annotations

from dsrl_torchrl.errors import UserError

#: Run seeds that the map has room for.
RUN_SEEDS = range(4_000)
#: Each run seed has so many starts of its own for demonstrations.
DEMONSTRATIONS_PER_RUN = 100_000
DEMONSTRATIONS = range(0, 400_000_000)
#: Unseeded resets of every env: base rollouts and online training draw their starts from here.
TRAINING = range(400_000_000, 900_000_000)
#: Checks of stage 1 in the env.
CHECKS = range(900_000_000, 950_000_000)
#: ``dsrl diagnose``: decisions are taken from it (magnitude, layout, whether to train at all). Every
#: step that takes a base policy first asks it for chunks at the first few of them, and executes none.
DIAGNOSIS = range(950_000_000, 1_000_000_000)
#: The evaluation's: nothing else ever resets to these.
HELD_OUT = range(1_000_000_000, 1_100_000_000)
#: Evaluations during training: learning curves, which methods and hyper-parameters may be chosen by.
PROGRESS = range(1_100_000_000, 1_150_000_000)

#: Streams of one run that must not repeat each other; the seeds of generators, not of resets, below 2**32. The first
#: segments of online training have those below 400 million.
ROLLOUT_STREAM = 800_000_000
SEARCH_STREAM = 801_000_000
TRIAL_STREAM = 802_000_000
FIRST_SEGMENTS = range(1_000)
LATER_STREAMS = range(1_000_000_000, 4_200_000_000)


def first(seeds: range, count: int) -> list[int]:
    """The first ``count`` seeds of a range: the same list for every run."""
    if not 1 <= count <= len(seeds):
        raise UserError(f"expected between 1 and {len(seeds)} resets, got {count}")
    return list(seeds[:count])


def demonstration_seeds(run_seed: int) -> range:
    """The starts that the demonstrations of one run may use.

    Raises:
        UserError: a run seed that the map has no room for.
    """
    _check_run_seed(run_seed)
    begin = run_seed * DEMONSTRATIONS_PER_RUN
    return DEMONSTRATIONS[begin : begin + DEMONSTRATIONS_PER_RUN]


def segment_stream(run_seed: int, segment: int) -> int:
    """Seed of the resets of one segment of online training, which lies between two checkpoints.

    No two segments of no two runs have the same, and none is a :data:`ROLLOUT_STREAM`.

    Raises:
        UserError: a run seed or segment that the map has no room for.
    """
    _check_run_seed(run_seed)
    if segment < len(FIRST_SEGMENTS):
        return (run_seed * len(FIRST_SEGMENTS) + segment) * 100
    per_run = len(LATER_STREAMS) // len(RUN_SEEDS)
    later = segment - len(FIRST_SEGMENTS)
    if later >= per_run:
        raise UserError(f"a run has at most {len(FIRST_SEGMENTS) + per_run} segments: raise checkpoint_env_steps")
    return LATER_STREAMS[run_seed * per_run + later]


def _check_run_seed(run_seed: int) -> None:
    if run_seed not in RUN_SEEDS:
        raise UserError(f"seed must lie in {RUN_SEEDS.start}..{RUN_SEEDS.stop - 1}, got {run_seed}")
