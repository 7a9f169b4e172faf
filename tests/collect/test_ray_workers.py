"""Ray workers on this machine: what they send is a function of seed and weights, and their end is one line."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from copy import deepcopy

import pytest
import torch

from dsrl_torchrl.collect import ray_workers
from dsrl_torchrl.collect.ray_workers import RayWorkers, SegmentCollector, check_weights
from dsrl_torchrl.collect.spawned_process import WorkerError, WorkerKilledError
from dsrl_torchrl.errors import UserError
from dsrl_torchrl.latent_env.macro_step import STEPS_KEY
from dsrl_torchrl.latent_env.prior_noise import PriorNoise
from tests.processes import children, command, wait_until_gone
from tests.training.toy import DSRLSAC, TD3, BestOfN, make_agent, make_env

KEYS = ["observation", "action", ("next", "observation"), ("next", "reward"), ("next", STEPS_KEY)]
#: Of a worker's own collector: a step of each of its eight envs.
LIKE_A_WORKER = {"frames_per_batch": 8, "total_frames": -1, "auto_register_policy_transforms": False}


def make_envs_that_break():
    """An env whose fourth step divides by zero; pickled by name, as every ``make_env``."""
    env, left = make_env(), [3]
    step = env._step

    def counted(tensordict):
        left[0] -= 1
        return step(tensordict) if left[0] >= 0 else 1 / 0

    env._step = counted
    return env


def make_no_env():
    raise UserError("no simulator here: install one")


def same(batch, other):
    return all(torch.equal(batch[key], other[key]) for key in KEYS)


def pid(place):
    return int(place.split()[1])


def test_without_ray(monkeypatch):
    monkeypatch.setattr(ray_workers, "ray", None)
    with pytest.raises(UserError, match=r"dsrl-torchrl\[ray\]"):
        RayWorkers(make_env, 2)


def test_no_cluster_at_the_address():
    pytest.importorskip("ray")
    with pytest.raises(UserError, match=r"no Ray cluster at 127\.0\.0\.1:1 "):
        RayWorkers(make_env, 2, address="127.0.0.1:1")


def test_policies_whose_weights_can_be_sent():
    for kind in (DSRLSAC, TD3):
        check_weights(make_agent(kind).policy)
    check_weights(PriorNoise(2))
    with pytest.raises(UserError, match="BestOfNPolicy acts by weights that are not its own"):
        check_weights(make_agent(BestOfN).policy)


@pytest.mark.slow
def test_batches_are_those_of_the_same_collectors_here():
    """Of each worker: the prior's, and a policy's whose weights change after every round."""
    pytest.importorskip("ray")
    learned = [make_agent(DSRLSAC, seed=seed).policy for seed in range(3)]
    with RayWorkers(make_env, 2) as workers:
        for policy, weights in ((PriorNoise(2), [{}, {}]), (learned[0], [each.state_dict() for each in learned[1:]])):
            here = deepcopy(policy)
            for seed in (5, 6, 5):
                received, meanwhile = [], []
                with workers.collecting(policy, seed, lambda: meanwhile.append(len(received))) as rounds:  # noqa: B023
                    for newest in weights:
                        policy.load_state_dict(newest)
                        received.append(next(rounds))
                assert meanwhile == [0, 1]  # before each batch has come
                assert received[0].shape == (2, 8, 1)
                for worker, its_seed in enumerate((seed, ray_workers.seed_generator(seed))):
                    collector = SegmentCollector(make_env, here, **LIKE_A_WORKER)
                    collector.restart(its_seed)
                    for batch, newest in zip(received, weights, strict=True):
                        here.load_state_dict(newest)
                        assert same(batch[worker], collector.next())
        ended = [pid(place) for place in workers._places]
        with workers.collecting(learned[0], 7) as rounds:
            next(rounds)
            os.kill(ended[1], signal.SIGKILL)
            with pytest.raises(WorkerKilledError, match=rf"Ray worker 1 \(pid {ended[1]} on .*\) is gone") as failure:
                for _ in range(3):
                    next(rounds)
        assert "\n" not in str(failure.value)
    wait_until_gone(ended)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (make_envs_that_break, "a Ray worker failed: ZeroDivisionError: division by zero"),
        (make_no_env, "a Ray worker failed: no simulator here: install one"),
    ],
)
def test_an_error_in_a_worker_is_one_line(make, message):
    pytest.importorskip("ray")
    handler = signal.getsignal(signal.SIGTERM)
    failing = pytest.raises(WorkerError, match=message)
    with RayWorkers(make, 1) as workers, failing as failure, workers.collecting(PriorNoise(2), 0) as rounds:
        for _ in range(5):
            next(rounds)
    assert "\n" not in str(failure.value)
    assert signal.getsignal(signal.SIGTERM) is handler  # Ray has one of its own
    assert not ray_workers.ray.is_initialized()


SCRIPT = """
from dsrl_torchrl.collect.ray_workers import RayWorkers
from dsrl_torchrl.latent_env.prior_noise import PriorNoise
from tests.training.toy import make_env
with RayWorkers(make_env, 1) as workers, workers.collecting(PriorNoise(2), 0) as rounds:
    for _ in rounds:
        print("collected", flush=True)
"""


@pytest.mark.slow
def test_nothing_outlives_a_main_process_that_is_killed():
    pytest.importorskip("ray")
    main = subprocess.Popen([sys.executable, "-c", SCRIPT], env=os.environ | {"PYTHONPATH": os.getcwd()}, stdout=-1)
    assert main.stdout.readline() == b"collected\n"
    started, seen = [main.pid], []
    while started:
        seen.append(started.pop())
        started += children(seen[-1])
    of_ray = [pid for pid in seen[1:] if "Agent" not in command(pid)]  # two agents of Ray's take a minute more
    main.kill()
    main.wait()
    main.stdout.close()
    assert len(of_ray) > 3
    wait_until_gone(of_ray)
