import gc
import subprocess
import sys
import weakref

import pytest

from dsrl_torchrl.envs.headless import ensure_renderless, keep_renderer_open, rendering_available


def test_importing_envs_imports_no_simulator():
    names = ("maniskill", "toy", "demonstrations")
    modules = ", ".join(["sys", *(f"dsrl_torchrl.envs.{name}" for name in names)])
    code = f"import {modules}; print({{'sapien', 'mani_skill'}} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "set()"


def test_the_reason_is_one_line():
    _, reason = rendering_available()
    assert reason and "\n" not in reason


def test_placeholders_only_without_a_device():
    render = pytest.importorskip("sapien.render")
    original = render.RenderMaterial
    if ensure_renderless():
        assert render.RenderMaterial is original
        return
    placeholder = render.RenderMaterial
    material = placeholder(base_color=[1, 0, 0, 1])
    material.roughness = 0.5
    assert material.base_color == [1, 0, 0, 1] and material.roughness == 0.5 and material.metallic is None
    from sapien.wrapper import urdf_loader

    assert urdf_loader.RenderMaterial is placeholder
    ensure_renderless()
    assert render.RenderMaterial is placeholder


@pytest.mark.parametrize("kept", ["RenderSystem", "RenderMaterial", None])
def test_what_keeps_the_renderer_open_lives_as_long_as_the_process(kept, monkeypatch):
    """SAPIEN closes its renderer with the last object that holds it; NVIDIA's driver opens no more than a few dozen."""
    render = pytest.importorskip("sapien.render")
    pytest.importorskip("mani_skill")
    opened = []

    class Opened:
        def __init__(self, *device):
            if device and kept == "RenderMaterial":
                raise RuntimeError("failed to create renderer on device")
            opened.append(weakref.ref(self))

    monkeypatch.setattr(render, "RenderSystem", Opened)
    monkeypatch.setattr(render, "RenderMaterial", Opened)
    monkeypatch.setattr("dsrl_torchrl.envs.headless.rendering_available", lambda: (kept is not None, ""))
    keep_renderer_open.cache_clear()
    try:
        keep_renderer_open()
        keep_renderer_open()
        gc.collect()
        assert [each() is not None for each in opened] == [True] * (kept is not None)
    finally:
        keep_renderer_open.cache_clear()
