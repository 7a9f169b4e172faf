"""What needs no LIBERO: messages, the choice of a renderer, rotations."""

import os
import sys

import numpy as np
import pytest

from dsrl_torchrl.envs.libero import LiberoEnv
from dsrl_torchrl.envs.libero_task import _choose_gl, axis_angle
from dsrl_torchrl.errors import UserError


@pytest.fixture(autouse=True)
def environment_as_before():
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


def test_without_libero_a_line_says_what_to_install(monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "libero"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "libero", None)
    with pytest.raises(UserError, match=r"LIBERO is not installed .*pip install 'dsrl-torchrl\[libero\]'"):
        LiberoEnv()


def test_an_import_that_fails_otherwise_is_one_line(monkeypatch, tmp_path):
    (tmp_path / "libero").mkdir()
    (tmp_path / "libero/__init__.py").write_text("raise AttributeError('no eglQueryString\\nhere')")
    for name in [name for name in sys.modules if name.split(".")[0] == "libero"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=r"AttributeError: no eglQueryString here.*Debian: libegl1") as error:
        LiberoEnv()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("environment", "chosen"),
    [
        ({}, ("egl", "0")),
        ({"CUDA_VISIBLE_DEVICES": "2,3"}, ("egl", "2")),  # robosuite asserts that the device is among them
        ({"CUDA_VISIBLE_DEVICES": "GPU-8f3a"}, ("egl", None)),
        ({"MUJOCO_GL": "osmesa"}, ("osmesa", None)),
        ({"MUJOCO_EGL_DEVICE_ID": "5"}, ("egl", "5")),
    ],
)
def test_how_to_render_is_settled_where_nobody_did(monkeypatch, environment, chosen):
    for name in ("MUJOCO_GL", "MUJOCO_EGL_DEVICE_ID", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    _choose_gl()
    assert (os.environ["MUJOCO_GL"], os.environ.get("MUJOCO_EGL_DEVICE_ID")) == chosen


def test_axis_angle_of_a_hand_that_points_down_does_not_jump():
    near = [axis_angle(np.array([np.cos(e), 0, 0, np.sin(e)])) for e in (-1e-3, 1e-3)]
    assert np.allclose(near, [[np.pi, 0, 0]] * 2, atol=5e-3)
    assert np.allclose(axis_angle(np.array([0, 0, np.sin(0.1), np.cos(0.1)])), [0, 0, 0.2])
    assert (axis_angle(np.array([0.0, 0, 0, 1])) == 0).all()
