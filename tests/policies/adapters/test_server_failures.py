"""Every failure of server or client is one line, and the other end lives on."""

from __future__ import annotations

import socket
import time

import msgpack
import numpy as np
import pytest
import torch
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from dsrl_torchrl.errors import UserError
from dsrl_torchrl.policies.adapters.policy_server import PolicyServer
from dsrl_torchrl.policies.adapters.serve_policy import pack, unpack

from .served import WALK, scripted, served, steered, walk, walking

OBSERVATION, NOISE = torch.zeros(2, 2), torch.zeros(2, 4, 2)
REQUEST = {"observation": {"observation": np.zeros((2, 2), np.float32)}, "noise": np.zeros((2, 4, 2), np.float32)}


def refusal(call, *arguments, **options):
    with pytest.raises(UserError) as refused:
        call(*arguments, **options)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def changed(**changes):
    return REQUEST | changes


@pytest.mark.parametrize(
    ("request_", "error"),
    [
        (3, "a request should be a map of 'observation' and 'noise'"),
        ({"observation": {}}, "a request should be a map"),
        (changed(noise=1.0), "noise should be float32 [batch, 4, 2], got float"),
        (changed(noise=np.float64(NOISE)), "noise should be float32 [batch, 4, 2], got float64 [2, 4, 2]"),
        (changed(noise=np.zeros((2, 4, 3), np.float32)), "got float32 [2, 4, 3]"),
        (changed(noise=np.zeros((5, 4, 2), np.float32)), "at most 4 observations, got 5"),
        (changed(observation={}), "should have the entries ['observation'], got []"),
        (changed(observation={b"observation": 1, "a": 2}), "got [\"b'observation'\", 'a']"),
        (changed(observation=[]), "should have the entries ['observation'], got list"),
        (changed(observation={"observation": np.zeros((3, 2), np.float32)}), "got float32 [3, 2]"),
        (changed(observation={"observation": np.zeros((2, 2), np.uint8)}), "got uint8 [2, 2]"),
        (changed(observation={"observation": "a text"}), "got str"),
        (b"\xc1", "not a message of this protocol"),
        ("a text frame", "a request should be a map"),
    ],
)
def test_a_wrong_request_is_answered_and_the_server_lives_on(request_, error):
    with served(max_batch=4) as url, connect(url) as client:
        assert unpack(client.recv())["protocol"] == "dsrl-policy"
        client.send(request_ if isinstance(request_, (str, bytes)) else pack(request_))
        answer = unpack(client.recv())
        assert error in answer["error"] and "\n" not in answer["error"]
        client.send(pack(REQUEST))
        assert unpack(client.recv())["chunk"].shape == (2, 4, 2)


def test_a_request_beyond_the_limit_ends_its_connection_alone():
    with served(max_bytes=2_000) as url, connect(url) as client:
        client.recv()
        client.send(bytes(3_000))
        with pytest.raises(ConnectionClosed, match="1009"):
            client.recv()
        with connect(url) as other:
            other.recv()
            other.send(pack(REQUEST))
            assert "chunk" in unpack(other.recv())


def test_a_web_page_is_not_let_in():
    with served() as url, pytest.raises(InvalidStatus, match="403"), connect(url, origin="http://localhost:8000"):
        pass


def test_an_observation_beyond_the_limit_is_refused_here():
    with served(max_bytes=16_400) as url, steered(url) as policy:
        assert "larger --max-megabytes" in refusal(policy, OBSERVATION, NOISE)


@pytest.mark.parametrize(
    ("result", "error"),
    [
        (lambda noise: noise[:, :3], "walk should return numbers [2, 4, 2], got float32 [2, 3, 2]"),
        (lambda noise: noise.astype(str), "should return numbers [2, 4, 2], got <U"),
        (lambda noise: None, "should return numbers [2, 4, 2], got object []"),
        (lambda noise: noise * np.nan, "answered with NaN or infinite actions"),
        (lambda noise: noise + np.inf, "answered with NaN or infinite actions"),
        (lambda noise: noise @ noise, "walk raised ValueError: matmul"),
    ],
)
def test_a_wrong_chunk_is_told_and_both_live_on(result, error, capfd):
    broken = []

    def decode(observation, noise):
        return result(noise) if broken else walk(observation, noise)

    with served(walking(decode=decode)) as url, steered(url) as policy:
        broken.append(True)
        assert error in refusal(policy, OBSERVATION, NOISE)
        broken.clear()
        assert policy(OBSERVATION, NOISE).shape == (2, 4, 2)


def free_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


def test_nobody_is_there():
    message = refusal(PolicyServer, f"ws://127.0.0.1:{free_port()}")
    assert "no policy server answers" in message and "serve-policy" in message


@pytest.mark.parametrize("url", ["", "127.0.0.1:8000", "http://127.0.0.1:8000", "ws://127.0.0.1:eight", "ws://"])
def test_what_is_no_url(url):
    assert "ws://" in refusal(PolicyServer, url)


def test_a_server_that_reads_no_further_does_not_hold_the_client():
    """Its 20 MB are more than the system takes over for a server that is stopped, or that has refused them."""
    entries = {"observation": {"dtype": "float32", "shape": [5_000_000]}}

    def handle(connection):
        connection.send(announced(entries=entries, max_bytes=2**30))
        time.sleep(1)

    with scripted(handle) as url, steered(url, timeout=0.3) as policy:
        assert "is gone" in refusal(policy, torch.zeros(1, 5_000_000), NOISE[:1])


@pytest.mark.parametrize("timeout", [0, -1, float("nan"), float("inf"), "5", True])
def test_what_is_no_time(timeout):
    assert "timeout should be a positive number of seconds" in refusal(PolicyServer, timeout=timeout)


def test_what_is_no_websocket():
    with socket.create_server(("127.0.0.1", 0)) as listening:
        message = refusal(PolicyServer, f"ws://127.0.0.1:{listening.getsockname()[1]}", timeout=0.2)
    assert "no websocket at" in message


def test_a_server_that_was_restarted_is_asked_again():
    port = free_port()
    with served(port=port) as url:
        policy = PolicyServer(url)
        chunk = policy(OBSERVATION, NOISE + 1)
    assert "is gone" in refusal(policy, OBSERVATION, NOISE)
    with served(port=port):
        assert torch.equal(policy(OBSERVATION, NOISE + 1), chunk)
    with served(walking(content_hash="walk 2"), port=port):
        assert "as another one (content_hash changed)" in refusal(policy, OBSERVATION, NOISE)
    with served(port=port):
        assert torch.equal(policy(OBSERVATION, NOISE + 1), chunk)
        policy.connection.close()


def test_a_late_answer_is_not_the_next_ones():
    slow = []

    def decode(observation, noise):
        if slow:
            time.sleep(slow.pop())
        return walk(observation, noise)

    with served(walking(decode=decode)) as url, steered(url, timeout=0.3) as policy:
        slow.append(0.6)
        assert "did not answer in 0.3 s" in refusal(policy, OBSERVATION, NOISE + 5)
        time.sleep(0.5)
        assert torch.equal(policy(OBSERVATION, NOISE), torch.zeros(2, 4, 2))


def announcing(message):
    def handle(connection):
        connection.send(message)
        for _ in connection:
            connection.send(pack({"actions": np.zeros((4, 2), np.float32)}))

    return handle


def announced(**changes):
    return pack(WALK.announcement(8, 2**20) | changes)


@pytest.mark.parametrize(
    "metadata",
    [
        msgpack.packb({}),
        msgpack.packb({"reset_pose": [0.0] * 14}),
        msgpack.packb({"image": {b"__ndarray__": True, b"data": b"x", b"dtype": "|O", b"shape": (1,)}}),
        "a text frame",
    ],
)
def test_a_stock_openpi_server_is_refused_with_the_wrapper_that_mends_it(metadata):
    """It announces its metadata, a free map, and takes observations alone."""
    with scripted(announcing(metadata)) as url:
        message = refusal(PolicyServer, url)
    assert "stock openpi server takes no noise" in message and "policy.infer(" in message and "noise=w" in message


def test_a_server_that_announces_nothing():
    with scripted(lambda connection: time.sleep(0.5)) as url:
        message = refusal(PolicyServer, url, timeout=0.1)
    assert "did not answer in 0.1 s" in message and "stock openpi" in message


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"version": 2}, "speaks version 2 of dsrl-policy"),
        ({"noise_shape": [4]}, "announces itself in a wrong way"),
        ({"noise_shape": [4, 0]}, "announces itself in a wrong way"),
        ({"chunk_shape": [4, 2.5]}, "announces itself in a wrong way"),
        ({"chunk_shape": [2**40, 2**40]}, "announces itself in a wrong way"),
        ({"chunk_shape": [4, 2**33]}, "announces itself in a wrong way"),
        ({"first_action": 4}, "announces itself in a wrong way"),
        ({"first_action": 1}, "announces itself in a wrong way"),
        ({"entries": {}}, "announces itself in a wrong way"),
        ({"entries": {"a": {"dtype": "object", "shape": [2]}}}, "announces itself in a wrong way"),
        ({"entries": {"a": {"dtype": "O", "shape": [2]}}}, "announces itself in a wrong way"),
        ({"max_batch": 0}, "announces itself in a wrong way"),
        ({"content_hash": 3}, "announces itself in a wrong way"),
    ],
    ids=str,
)
def test_a_wrong_announcement(changes, error):
    with scripted(announcing(announced(**changes))) as url:
        assert error in refusal(PolicyServer, url)


@pytest.mark.parametrize(
    "answer",
    [
        {"actions": np.zeros((2, 4, 2), np.float32)},
        {"chunk": np.zeros((1, 4, 2), np.float32)},
        {"chunk": np.zeros((2, 4, 2))},
        {"chunk": "a text"},
        {"error": 3},
        [1],
    ],
    ids=range(6),
)
def test_a_wrong_answer(answer):
    def handle(connection):
        connection.send(announced())
        for _ in connection:
            connection.send(pack(answer))

    with scripted(handle) as url, steered(url) as policy:
        assert "should answer float32 [2, 4, 2], got" in refusal(policy, OBSERVATION, NOISE)


@pytest.mark.parametrize(
    ("entries", "error"),
    [
        ({}, "entries should name what stands for each of the server's: observation (float32 [2])"),
        ({"state": "observation"}, "entries should name"),
        ({"observation": "observation", "image": "pixels"}, "entries should name"),
    ],
)
def test_entries_that_the_server_does_not_have(entries, error):
    with served() as url:
        assert error in refusal(PolicyServer, url, entries=entries)


@pytest.mark.parametrize(
    ("observation", "error"),
    [
        (
            torch.zeros(2, 3),
            "the server's observation should be float32 [2, 2], the env's observation is float32 [2, 3]",
        ),
        (torch.zeros(2, 2, dtype=torch.uint8), "is uint8 [2, 2]"),
        (torch.zeros(3, 2), "is float32 [3, 2]"),
    ],
)
def test_an_entry_that_does_not_fit(observation, error):
    with served() as url, steered(url) as policy:
        assert error in refusal(policy, observation, NOISE)
