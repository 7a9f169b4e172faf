"""A policy behind a server, steered by the command, and the command that serves it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from dsrl_torchrl.cli.main import main
from dsrl_torchrl.policies import adapters
from dsrl_torchrl.policies.adapters import serve_policy
from dsrl_torchrl.policies.adapters.policy_server import PolicyServer

from ..policies.adapters.served import served, walk, walking
from .pipeline_run import TINY, fails

pytestmark = pytest.mark.usefixtures("in_an_empty_folder")

WALK = """
import numpy as np

def decode(observation, noise):
    return np.clip(np.clip(-10 * observation["observation"], -0.4, 0.4)[:, None] + 0.5 * noise, -1, 1)

decode.noise_shape = decode.chunk_shape = (4, 2)
decode.entries = {"observation": ("float32", (2,))}
"""


@pytest.fixture
def url():
    with served() as url:
        yield url


#: Enough for every part of the stages; tests/cli/test_main.py has the rest.
FEW = ["stage1.rollout_env_steps=60", "stage1.updates=8", "stage1.check_episodes=2", "stage2.total_env_steps=120"]
FEW += ["stage2.warmup_env_steps=60", "evaluation.episodes=2", "task.demonstrations.count=2"]


def steer(url, *words):
    step, *more = words
    return [step, *TINY, *more, "base_policy=server", f"base_policy.load.url={url}"]


@pytest.mark.slow
def test_diagnose(url, capsys):
    main(steer(url, "diagnose", "name=d", "diagnosis.resets=2", "diagnosis.repeats=2"))
    assert "steerability.png" in capsys.readouterr().out
    assert json.loads(Path("runs/d/diagnosis/steerability.json").read_text())["aliasing"] is None


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["dsrl_aw_mle", "dsrl_sac"])
def test_a_whole_steering(url, capsys, algorithm):
    main(steer(url, "run", f"algorithm={algorithm}", "name=s", *FEW))
    assert "stage2_deterministic" in capsys.readouterr().out
    summary = json.loads(Path("runs/s/summary.json").read_text())
    assert summary["updates"] > 0 and "stage2_stochastic" in summary["evaluations"]


@pytest.mark.slow
def test_a_run_that_lost_its_policy_goes_on(capsys):
    """A request that fails ends stage 2 in one line, after its first checkpoint; ``resume=true`` does the rest."""
    left = [10_000]

    def decode(observation, noise):
        left[0] -= 1
        return walk(observation, noise) if left[0] >= 0 else noise[:, :1]

    words = ["algorithm=dsrl_sac", "stage2.total_env_steps=400", "stage2.warmup_env_steps=40", "name=r"]
    with served(walking(decode=decode)) as url:
        left[0] = 60
        message = fails(capsys, *steer(url, "stage2", *words))
        assert "the policy server at" in message and "walk should return numbers" in message
        left[0] = 10_000
        main(steer(url, "stage2", *words, "resume=true"))
    assert "stage 2: " in capsys.readouterr().out


def test_other_weights_are_noticed(capsys):
    for content, noticed in (("weights 1", False), ("weights 2", True)):
        with served(walking(content_hash=content)) as url:
            words = steer(url, "stage1", "name=h", *FEW)
            if noticed:
                message = fails(capsys, *words)
                assert "content_hash" in message and "url" not in message  # each of the servers has its own port
            else:
                main(words)


def test_a_policy_that_cannot_be_steered(capsys):
    def deaf(observation, noise):
        return walk(observation, 0 * noise)

    with served(walking(decode=deaf)) as url:
        assert "ignores its noise" in fails(capsys, *steer(url, "stage2"))
    assert not os.path.exists("runs")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["base_policy.load.url=ws://127.0.0.1:1"], "no policy server answers at ws://127.0.0.1:1"),
        (["base_policy.load.url=localhost"], "url should be ws://host:port, got 'localhost'"),
        (["base_policy.load.timeout=0"], "base_policy.load.timeout should be greater than 0, got 0"),
        (["base_policy.load.timout=1"], "did you mean base_policy.load.timeout?"),
        (["base_policy.load.entries=3"], "base_policy.load.entries should"),
        (["base_policy.load.entries={state: observation}"], "observation (float32 [2])"),
        (["base_policy.load.entries={observation: state}"], "state"),
        (["task.act_horizon=4", "task.pred_horizon=8", "task.obs_horizon=2"], "obs_horizon"),
    ],
)
def test_mistakes(url, capsys, words, message):
    assert message in fails(capsys, *steer(url, "stage2"), *words)
    assert not os.path.exists("runs")


def test_entries_are_named_on_the_command_line(capsys):
    entries = {"observation.state": ("float32", (2,))}

    def decode(observation, noise):
        return walk({"observation": observation["observation.state"]}, noise)

    with served(walking(decode=decode, entries=entries)) as url:
        main(steer(url, "base", "base_policy.load.entries={observation.state: observation}"))
    assert "fits toy" in capsys.readouterr().out


def serving(*arguments):
    """``dsrl serve-policy`` and its url."""
    Path("my_policy.py").write_text(WALK)
    command = [sys.executable, "-m", "dsrl_torchrl", "serve-policy", *arguments]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert server.stdout is not None
    lines = [server.stdout.readline() for _ in range(3)]
    return server, lines[-1].split(" at ")[-1].split(",")[0]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_command_serves_until_a_signal(number):
    server, url = serving("--callable", "my_policy:decode", "--port", "0")
    policy = PolicyServer(url)
    assert (policy.pred_horizon, policy.action_dim) == (4, 2)
    server.send_signal(number)
    _, error = server.communicate(timeout=60)
    assert (server.returncode, error) == (128 + number, "serve_policy: ended\n")


def test_a_client_that_never_says_hello_does_not_keep_the_server():
    server, url = serving("--callable", "my_policy:decode", "--port", "0")
    with socket.create_connection(("127.0.0.1", int(url.rsplit(":", 1)[1]))) as client:
        client.send(b"GET / HTTP/1.1\r\n")
        PolicyServer(url).connection.close()  # which came later: by now the server has let both in
        server.send_signal(signal.SIGINT)
        server.communicate(timeout=8)  # the server waits 10 s for a request
    assert server.returncode == 130


def test_the_printed_server_is_the_file(capsys):
    main(["serve-policy", "--print"])
    assert capsys.readouterr().out == Path(serve_policy.__file__).read_text()
    assert "takes no other word" in fails(capsys, "serve-policy", "--print", "--port", "1")


def test_without_its_packages_both_ends_say_what_to_install(capsys, monkeypatch):
    for module in ("policy_server", "server_connection"):
        monkeypatch.delitem(sys.modules, f"{adapters.__name__}.{module}")
        monkeypatch.delattr(adapters, module)
    monkeypatch.setitem(sys.modules, "websockets.sync.client", None)
    assert "pip install 'dsrl-torchrl[server]'" in fails(capsys, *steer("ws://127.0.0.1:1", "base"))
    monkeypatch.setattr("dsrl_torchrl.cli.serve_policy.find_spec", {"msgpack": True}.get)
    assert "serve-policy needs websockets: pip install" in fails(capsys, "serve-policy", "--port", "1")


BROKEN = {
    "size": f"{WALK}\ndecode.noise_shape = (4,)",
    "entries": f"{WALK}\ndecode.entries = {{'a': ('O', (2,))}}",
    "steps": f"{WALK}\ndecode.n_action_steps = 5",
    "hashed": f"{WALK}\ndecode.content_hash = 3",
    "needs": "import nowhere_to_be_found",
}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give --lerobot FOLDER or --callable MODULE:FUNCTION"),
        (["--lerobot", "a", "--callable", "b"], "give --lerobot FOLDER or --callable"),
        (["--port", "eight"], "invalid int value: 'eight'; --help"),
        (["--nope"], "unrecognized arguments: --nope; --help"),
        (["--callable", "my_policy"], "should be module:function, got 'my_policy'"),
        (["--callable", "nowhere:decode"], "cannot import nowhere:decode (No module named 'nowhere')"),
        (["--callable", "needs:decode"], "cannot import needs:decode (No module named 'nowhere_to_be_found')"),
        (["--callable", "size:nope"], "cannot import size:nope"),
        (["--callable", "math:pi"], "math:pi is not callable"),
        (["--callable", "size:decode"], "size:decode.noise_shape should be two positive numbers"),
        (["--callable", "entries:decode"], "entries:decode.entries should be {name: (dtype, shape)}"),
        (["--callable", "steps:decode"], "n_action_steps 5 should lie in the chunk"),
        (["--callable", "hashed:decode"], "hashed:decode.content_hash should be a text, got 3"),
        (["--lerobot", "nowhere"], 'needs the instruction, e.g. --task "pick up'),
        (["--lerobot", "nowhere", "--task", "x"], "nowhere has no config.json"),
        (["--lerobot", "act", "--task", "x"], "serves smolvla, pi0, pi05, act is a act"),
        (["--callable", "math:pi", "--port", "65536"], "--port should be from 0 to 65535"),
    ],
)
def test_mistakes_of_the_server_are_one_line(arguments, message, capsys, monkeypatch):
    monkeypatch.syspath_prepend(os.getcwd())
    for name, text in BROKEN.items():
        Path(f"{name}.py").write_text(text)
    os.mkdir("act")
    for name in serve_policy.LEROBOT_FILES:
        Path("act", name).write_text('{"type": "act"}')
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    try:
        with pytest.raises(SystemExit) as stopped:
            serve_policy.main(arguments)
    finally:
        for number, handler in zip((signal.SIGINT, signal.SIGTERM), handlers, strict=True):
            signal.signal(number, handler)
        for name in BROKEN:
            sys.modules.pop(name, None)
    error = capsys.readouterr().err
    assert stopped.value.code == 1 and error.startswith("serve_policy: error: ") and error.count("\n") == 1
    assert message in error
