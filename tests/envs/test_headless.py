import subprocess
import sys

import pytest

from dsrl_torchrl.envs.headless import ensure_renderless, rendering_available


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
