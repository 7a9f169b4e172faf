"""Pictures of MuJoCo scenes: one GL context for all simulations of a process that show the same model."""

from __future__ import annotations

import atexit
import importlib
import os
from typing import Any

import numpy as np

from dsrl_torchrl.errors import UserError


def choose_gl() -> None:
    """Settles how MuJoCo renders where nobody did: EGL, which needs no display, on the first device.

    To be called before the simulator is imported: it reads ``MUJOCO_GL`` and ``MUJOCO_EGL_DEVICE_ID`` once.
    """
    os.environ.setdefault("MUJOCO_GL", "egl")
    # robosuite refuses a device that CUDA_VISIBLE_DEVICES hides, and knows devices by number only.
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")[0].strip()
    if os.environ["MUJOCO_GL"] == "egl" and (not visible or visible.isdigit()):
        os.environ.setdefault("MUJOCO_EGL_DEVICE_ID", visible or "0")


class MujocoCamera:
    """Renders off screen; simulations of the same model share its context, textures and meshes.

    Args:
        model: the ``mujoco.MjModel`` whose meshes and textures are loaded.
        height: of a picture, in pixels.
        width: of a picture, in pixels.
        fast: no shadows, reflections and multisampling: several times as fast without a GPU, and other pictures than
            those that foreign policies were trained on.
        geom_groups: the groups of geometries that are drawn; robosuite has visual meshes in group 1.

    Raises:
        UserError: there is no GL that renders off screen.
    """

    def __init__(self, model: Any, height: int, width: int, *, fast: bool, geom_groups: tuple[int, ...] = (1,)) -> None:
        import mujoco

        backend = os.environ.get("MUJOCO_GL", "egl")
        try:
            # Not mujoco.GLContext, which was settled when mujoco was imported first, by whomever.
            self._gl = importlib.import_module(f"mujoco.{backend}").GLContext(width, height)
        except Exception as error:  # whatever the driver raises
            reason = " ".join(str(error).split())
            raise UserError(
                f"MuJoCo cannot render with MUJOCO_GL={backend} ({reason}): install Mesa's EGL (Debian: libegl1), or "
                "libosmesa6 and set MUJOCO_GL=osmesa"
            ) from None
        self._gl.make_current()
        if fast:
            model.vis.quality.offsamples = model.vis.quality.shadowsize = 0
        model.vis.global_.offwidth = max(model.vis.global_.offwidth, width)
        model.vis.global_.offheight = max(model.vis.global_.offheight, height)
        self._scene = mujoco.MjvScene(model, maxgeom=1000)
        if fast:
            for flag in (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION):
                self._scene.flags[flag] = 0
        self._options, self._perturbation, self._view = mujoco.MjvOption(), mujoco.MjvPerturb(), mujoco.MjvCamera()
        self._options.geomgroup[:] = 0
        self._options.geomgroup[list(geom_groups)] = 1
        self._view.type = mujoco.mjtCamera.mjCAMERA_FIXED
        self._context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_150)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._context)
        self._viewport = mujoco.MjrRect(0, 0, width, height)
        self._open = True
        atexit.register(self.close)  # MuJoCo ends GL when the interpreter ends, and complains of what is left

    def picture(self, model: Any, data: Any, camera: str) -> np.ndarray:
        """What ``camera`` sees of a simulation now: uint8 ``[height, width, 3]``, OpenGL's rows: the lowest first."""
        import mujoco

        self._gl.make_current()
        self._view.fixedcamid = model.camera(camera).id
        mujoco.mjv_updateScene(
            model, data, self._options, self._perturbation, self._view, mujoco.mjtCatBit.mjCAT_ALL, self._scene
        )
        mujoco.mjr_render(self._viewport, self._scene, self._context)
        pixels = np.empty((self._viewport.height, self._viewport.width, 3), dtype=np.uint8)
        mujoco.mjr_readPixels(pixels, None, self._viewport, self._context)
        return pixels

    def close(self) -> None:
        """Frees the context."""
        if self._open:
            self._open = False
            atexit.unregister(self.close)
            self._gl.make_current()
            self._context.free()
            self._gl.free()
