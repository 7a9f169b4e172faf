"""State-only ManiSkill on a machine without a Vulkan driver: a fresh server, CI, most containers.

``python -m dsrl_torchrl.envs.headless <module> <arguments>`` runs one of ManiSkill's own tools there, such as
``mani_skill.trajectory.replay_trajectory``.
"""

from __future__ import annotations

import functools
import logging
import multiprocessing
import runpy
import sys
import warnings
from typing import Any

from dsrl_torchrl.envs.software_rendering import skip_brdf_table, use_mesa

_NEEDS_VULKAN = ("RenderMaterial", "RenderTexture2D")


class _InertVisual:
    """Takes any argument and keeps any attribute: what a scene builder wants of a material nobody will see."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.__dict__.update(kwargs)

    def __getattr__(self, name: str) -> Any:
        # Dunders must fail, or copy and pickle would take this object for one that implements them.
        if name.startswith("__"):
            raise AttributeError(name)
        return None


@functools.cache
def rendering_available() -> tuple[bool, str]:
    """Whether this process can render, and why (not), in one line.

    Asks for a material, the very call that ManiSkill's builders die of, because a listed device may still lack a
    feature the renderer needs (Mesa 22's lavapipe). A few milliseconds where there is no device; where there is one, it
    opens the renderer, as ManiSkill would.

    Returns:
        ``(available, reason)``.
    """
    use_mesa()
    with warnings.catch_warnings():
        # SAPIEN's "Failed to find system libvulkan" says the same as our one line, in four.
        warnings.simplefilter("ignore")
        try:
            import sapien.render
        except ImportError as error:
            return False, f"SAPIEN cannot be imported ({error}): pip install mani_skill"
        try:
            sapien.render.RenderMaterial()
        except RuntimeError as error:
            return False, (
                f"no Vulkan device ({error}): physics and state observations work, images do not; "
                "install a GPU driver with Vulkan, or Mesa >= 25 to render on the CPU (docs/cameras.md)"
            )
    skip_brdf_table()
    return True, "a Vulkan device was found"


@functools.cache
def keep_renderer_open() -> Any:
    """Keeps SAPIEN's renderer open for as long as the process lives; call it where ManiSkill envs are made.

    SAPIEN closes it with the last object that needs it, and a scene that nobody sees holds none for long. Each rebuild
    of the scene (a seeded reset) would open two, which takes half of its time, and after a few dozen NVIDIA's driver
    opens no more: ``vk::createInstanceUnique: ErrorIncompatibleDriver``. It is no part of :func:`rendering_available`,
    after which ManiSkill's own tools fork: an open renderer does not work in a fork.

    Returns:
        What keeps it open; None where nothing can render.
    """
    if not rendering_available()[0]:
        return None
    import sapien.render
    from mani_skill.envs.utils.system.backend import parse_sim_and_render_backend

    # ManiSkill's device: SAPIEN renders on the first that it opened, and refuses every other.
    device = parse_sim_and_render_backend("physx_cpu", "gpu").render_device
    try:
        return sapien.render.RenderSystem(device)
    except RuntimeError:  # a CUDA device that does not draw, in a container beside Mesa: only materials work there
        return sapien.render.RenderMaterial()


def ensure_renderless() -> bool:
    """Makes ManiSkill usable for state observations where nothing can render; does nothing where something can.

    ManiSkill's scene builders create ``RenderMaterial`` and ``RenderTexture2D`` even with ``render_backend="none"``,
    and both need a Vulkan device. Without one they are replaced by inert placeholders, in every loaded SAPIEN and
    ManiSkill module, as some bind the names at import. Call it before ``import mani_skill``; calling it again is free.

    Returns:
        Whether rendering is available, as :func:`rendering_available` tells.
    """
    available, _ = rendering_available()
    if not available:
        placeholders = {name: type(name, (_InertVisual,), {}) for name in _NEEDS_VULKAN}
        for module in list(sys.modules.values()):
            if not getattr(module, "__name__", "").startswith(("sapien", "mani_skill")):
                continue
            for name, placeholder in placeholders.items():
                present = vars(module).get(name)
                if present is not None and not issubclass(present, _InertVisual):
                    setattr(module, name, placeholder)
    return available


def import_mani_skill() -> bool:
    """Imports ManiSkill so that it neither needs a renderer nor writes into a progress bar.

    Returns:
        Whether rendering is available.
    """
    available = ensure_renderless()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import gymnasium
        import mani_skill.envs  # noqa: F401  registers the tasks

    # ManiSkill's logger is called "mani_skill ", with a space, and writes at INFO to stderr.
    logging.getLogger("mani_skill ").setLevel(logging.ERROR)
    gymnasium.logger.min_level = gymnasium.logger.ERROR
    return available


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit("usage: python -m dsrl_torchrl.envs.headless <module> <arguments>")
    import_mani_skill()
    multiprocessing.set_start_method(None, force=True)  # TorchRL has chosen one; ManiSkill's tools choose their own
    sys.argv = sys.argv[1:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
