"""Pictures of a MuJoCo simulation without a display, fast also where there is no GPU."""

from __future__ import annotations

import atexit
import importlib
import os
import sys
from collections.abc import Sequence
from typing import Any
from weakref import WeakSet

import numpy as np

from dsrl_torchrl.errors import UserError

#: Closed at exit at the latest: what is left then, MuJoCo frees after it has ended EGL, which prints an error.
_OPEN: WeakSet[MujocoPictures] = WeakSet()


class MujocoPictures:
    """Offscreen pictures of any state of one model, by its named cameras.

    ``fast`` has shadows, reflections and multisampling off: without a GPU they cost ten times the rest (Mesa's
    llvmpipe, 64² of Meta-World: 158 ms against 11). ``MUJOCO_GL`` says how to draw as everywhere in MuJoCo; where it is
    not set, EGL, which needs no display, whatever was imported before.

    Args:
        model: a ``mujoco.MjModel``. Models that differ in numbers alone (the same task started anew) may be drawn, too.
        size: height and width in pixels.
        fast: see above; ``False`` draws as the model says, for policies that were trained on such pictures.
        hidden: groups of geometries that are not drawn, beside those that MuJoCo hides; robosuite has collision meshes
            in group 0.

    Raises:
        UserError: there is no OpenGL to draw with.
    """

    def __init__(self, model: Any, size: int, *, fast: bool = True, hidden: Sequence[int] = ()) -> None:
        import mujoco

        self.size = size
        if fast:
            model.vis.quality.offsamples = model.vis.quality.shadowsize = 0
        model.vis.global_.offwidth = model.vis.global_.offheight = size
        self._gl = _gl_context(size)
        self._gl.make_current()
        self._scene = mujoco.MjvScene(model, maxgeom=10_000)
        for flag in (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION) if fast else ():
            self._scene.flags[flag] = 0
        self._context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_150)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._context)
        self._option, self._camera = mujoco.MjvOption(), mujoco.MjvCamera()
        self._option.geomgroup[list(hidden)] = 0
        self._camera.type = mujoco.mjtCamera.mjCAMERA_FIXED
        self._rect = mujoco.MjrRect(0, 0, size, size)
        _OPEN.add(self)
        atexit.unregister(_close_all)
        atexit.register(_close_all)  # runs before what MuJoCo registered with its first context

    def __call__(self, model: Any, data: Any, camera: str) -> np.ndarray:
        """``[size, size, 3]`` uint8, its first row on top."""
        import mujoco

        self._gl.make_current()
        self._camera.fixedcamid = model.camera(camera).id
        everything = mujoco.mjtCatBit.mjCAT_ALL.value
        mujoco.mjv_updateScene(model, data, self._option, None, self._camera, everything, self._scene)
        mujoco.mjr_render(self._rect, self._scene, self._context)
        picture = np.empty((self.size, self.size, 3), np.uint8)
        mujoco.mjr_readPixels(picture, None, self._rect, self._context)
        return picture[::-1]  # OpenGL's first row is the lowest

    def close(self) -> None:
        """Frees what the graphics driver holds."""
        if self in _OPEN:
            _OPEN.discard(self)
            self._gl.make_current()
            self._context.free()
            self._gl.free()

    def __del__(self) -> None:
        self.close()


def _close_all() -> None:
    for pictures in list(_OPEN):
        pictures.close()


def camera_names(model: Any) -> list[str]:
    """The cameras that a model has names for."""
    return [name for index in range(model.ncam) if (name := model.camera(index).name)]


def _gl_context(size: int) -> Any:
    backend = os.environ.get("MUJOCO_GL", "").lower() or ("egl" if sys.platform == "linux" else "")
    where = f"mujoco.{backend}" if backend in ("egl", "osmesa", "glfw") else "mujoco.gl_context"
    try:
        return importlib.import_module(where).GLContext(size, size)
    # A missing library is an ImportError, an AttributeError or the library's own; a missing device a RuntimeError.
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise UserError(
            f"no pictures: OpenGL by {backend or 'the default'} fails ({reason}); install Mesa's EGL (libegl1, "
            "libgl1-mesa-dri), or set MUJOCO_GL to egl, osmesa or glfw"
        ) from None
