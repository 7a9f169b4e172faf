"""Collecting in turn with the updates and beside them: the same macro steps, errors that surface, no process left."""

from __future__ import annotations

import multiprocessing

import pytest
import torch

from dsrl_torchrl.errors import CollectionError
from dsrl_torchrl.networks.behaviour_policy import BehaviourPolicy
from dsrl_torchrl.latent_env.prior_noise import PriorNoise
from dsrl_torchrl.collect.collection import CollectionInTurn, OverlappedCollection, _begin_worker
from dsrl_torchrl.training.latent_networks import make_actor

from tests.training.test_online import SMALL, make_env


class BrokenEnv(Exception):
    pass


def make_breaking_env():
    """Fails in the tenth primitive step."""
    env, steps = make_env(), 0
    base = env.base_env.base_env
    advance = base._advance

    def breaking(action):
        nonlocal steps
        steps += 1
        if steps >= 10:
            raise BrokenEnv("the gripper\nfell off")
        return advance(action)

    base._advance = breaking
    return env


def make_no_env():
    raise BrokenEnv("no simulator here")


def make_dying_env():
    """Takes its process with it, as a simulator's segmentation fault does."""
    import os

    env = make_env()
    env.base_env.base_env._advance = lambda action: os._exit(139)
    return env


@pytest.fixture
def actor():
    torch.manual_seed(0)
    return make_actor(make_env(), SMALL)


def set_mean(actor, value):
    """Makes the actor's mean ``value`` before the squashing, everywhere."""
    head = actor.module[0].module[2]
    with torch.no_grad():
        head.weight.zero_()
        head.bias[:2] = value
        head.bias[2:] = -20.0  # hardly any spread


def sign(batch):
    assert (batch["action"] > 0).all() or (batch["action"] < 0).all()
    return float(batch["action"].flatten()[0].sign())


def test_in_turn_the_newest_weights_collect(actor):
    collection = CollectionInTurn(make_env(), BehaviourPolicy(actor), 16)
    assert collection.begin_segment(0)
    for value in (1.0, -1.0, 1.0):
        set_mean(actor, value)
        assert sign(next(collection)) == value
    collection.close()


def test_overlapped_weights_are_one_round_old(actor):
    """Batch k + 1 is collected by the weights that were there when batch k was handed over, whatever comes later."""
    set_mean(actor, 1.0)
    policy = BehaviourPolicy(actor)
    collection = OverlappedCollection(make_env, policy, 16)
    try:
        assert collection.begin_segment(0)
        assert sign(next(collection)) == 1.0
        set_mean(actor, -1.0)  # batch 2 is under way, with the weights of the first
        assert sign(next(collection)) == 1.0
        assert not collection.begin_segment(1)  # the process and its episodes go on
        assert sign(next(collection)) == -1.0
        assert not any(parameter.is_shared() for parameter in actor.parameters())
    finally:
        collection.close()
    assert not multiprocessing.active_children()


def test_overlapped_warm_up_ends_without_a_new_process(actor):
    set_mean(actor, 1.0)
    policy = BehaviourPolicy(actor, warm_up=PriorNoise(2))
    policy.warming_up = True
    collection = OverlappedCollection(make_env, policy, 16)
    try:
        collection.begin_segment(0)
        prior = next(collection)["action"]
        assert prior.min() < 0 < prior.max()
        policy.warming_up = False
        next(collection)
        assert sign(next(collection)) == 1.0
    finally:
        collection.close()


def test_both_ways_give_the_same_entries_and_first_batch(actor):
    set_mean(actor, 0.3)
    batches = []
    for collection in (
        CollectionInTurn(make_env(), BehaviourPolicy(actor), 16),
        OverlappedCollection(make_env, BehaviourPolicy(actor), 16),
    ):
        torch.manual_seed(5)
        collection.begin_segment(5)
        batches.append(next(collection))
        collection.close()
    here, there = batches
    assert here.shape == there.shape
    assert set(here.keys(True, True)) == set(there.keys(True, True))
    assert torch.equal(here["observation"][:, 0], there["observation"][:, 0])  # the same resets


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (make_breaking_env, r"BrokenEnv: the gripper fell off"),
        (make_no_env, r"BrokenEnv: no simulator here"),
        (make_dying_env, r"exit code 139"),
    ],
)
def test_an_error_of_the_collecting_process_is_one_line(actor, broken, message):
    with pytest.raises(CollectionError, match=message) as raised:
        collection = OverlappedCollection(broken, BehaviourPolicy(actor), 16)
        try:
            collection.begin_segment(0)
            for _ in range(10):
                next(collection)
        finally:
            collection.close()
    assert "\n" not in str(raised.value)
    assert not multiprocessing.active_children()


def leave_unread(queue):
    _begin_worker()
    queue.put(bytes(10**7))  # more than a pipe holds


def test_a_worker_ends_although_nobody_reads_its_queue():
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=leave_unread, args=(queue,))
    process.start()
    process.join(timeout=120)
    ended = process.exitcode
    process.kill()
    assert ended == 0
