"""ManiSkill's pictures without a GPU: Mesa's lavapipe draws them, the first in a second instead of half a minute."""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
import warnings
from pathlib import Path

#: What the Vulkan loader reads to find its drivers, the present name and the old one.
LOADER_VARIABLES = ("VK_DRIVER_FILES", "VK_ICD_FILENAMES")
#: ManiSkill's default shader pack, of which the BRDF table goes, and what it includes.
PACK, INCLUDED = "minimal", "common"

#: "EnvBRDFApprox", the closed form of what the table holds: B. Karis, Physically Based Shading on Mobile (2014).
CLOSED_FORM = """\
vec2 environmentBRDF(float roughness, float dotNV) {
  vec4 r = roughness * vec4(-1, -0.0275, -0.572, 0.022) + vec4(1, 0.0425, 1.04, -0.04);
  float a004 = min(r.x * r.x, exp2(-9.28 * dotNV)) * r.x + r.y;
  return vec2(-1.04, 1.04) * a004 + r.zw;
}

"""
_DECLARED = re.compile(r"layout\s*\([^)]*\)\s*uniform\s+sampler2D\s+samplerBRDFLUT\s*;\s*?\n")
_LOOKED_UP = re.compile(r"texture\(samplerBRDFLUT, vec2\((\w+), (\w+)\)\)\.xy")
_CALLER = re.compile(r"^vec3 specularIBL\(", re.MULTILINE)


def cache_folder() -> Path:
    """Where Mesa and the shaders lie, ``~/.cache/dsrl-torchrl``, below ``XDG_CACHE_HOME`` if that is set."""
    # Path.home() raises for a user id without a name and a HOME, as in some containers.
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "dsrl-torchrl"


def use_mesa() -> None:
    """Tells the Vulkan loader of the Mesa in ``cache_folder() / "mesa"`` (docs/cameras.md), if there is one.

    Only where there is no graphics card, and the user's own ``VK_DRIVER_FILES`` goes first. Call it before SAPIEN opens
    its renderer; child processes inherit it.
    """
    # A picture of 64 x 64 is not worth a hand-over between threads, and env workers have a core each.
    os.environ.setdefault("LP_NUM_THREADS", "0")
    driver = cache_folder() / "mesa" / "lvp_icd.json"
    if driver.exists() and not os.environ.keys() & set(LOADER_VARIABLES) and not _graphics_cards():
        os.environ["VK_DRIVER_FILES"] = str(driver)


def _graphics_cards() -> list[Path]:
    return [*Path("/dev").glob("nvidia[0-9]*"), *Path("/dev/dri").glob("renderD*")]


def draws_in_software(device_summary: str) -> bool:
    """Whether lavapipe is all there is, by ``sapien.render.get_device_summary()``."""
    devices = re.findall(r"^GPU: (.*)$", device_summary, re.MULTILINE)
    return bool(devices) and all(name.startswith("llvmpipe") for name in devices)


def skip_brdf_table() -> None:
    """Lets ManiSkill's cameras draw without the table that SAPIEN integrates in every process, on lavapipe alone.

    SAPIEN makes a table of the environment's specular reflection for each shader pack that declares it, which takes the
    CPU half a minute. A copy of the pack computes it by a closed form in place. Pictures of ManiSkill's own scenes,
    which have no environment map, are the same to the bit.
    """
    import sapien.render

    # SAPIEN 3.1 chooses its shaders otherwise.
    if not hasattr(sapien.render, "set_camera_shader_dir") or not draws_in_software(sapien.render.get_device_summary()):
        return
    try:
        folder = _write_pack(Path(sapien.__file__).parent / "vulkan_shader")
    except (OSError, LookupError) as error:
        warnings.warn(f"the first picture will take half a minute: no copy of SAPIEN's shaders ({error})", stacklevel=2)
        return
    choose = sapien.render.set_camera_shader_dir
    sapien.render.set_camera_shader_dir = lambda name: choose(str(folder) if name == PACK else name)


def _write_pack(shaders: Path) -> Path:
    """The folder of the copy, which is named by its contents: whoever comes second finds it."""
    texts = {
        path.relative_to(shaders): path.read_text()
        for part in (PACK, INCLUDED)
        for path in sorted((shaders / part).iterdir())
    }
    looked_up = [path for path, text in texts.items() if _LOOKED_UP.search(text)]
    if not looked_up or not all(_CALLER.search(texts[path]) for path in looked_up):
        raise LookupError("they are others than those of SAPIEN 3.0")
    texts = {path: in_closed_form(text) for path, text in texts.items()}
    digest = hashlib.sha256(repr(sorted((str(path), text) for path, text in texts.items())).encode()).hexdigest()
    folder = cache_folder() / f"shaders-{digest[:16]}"
    if not folder.exists():
        cache_folder().mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".shaders-", dir=cache_folder()) as name:
            for path, text in texts.items():
                target = Path(name) / "whole" / path
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_text(text)
            try:
                os.rename(Path(name) / "whole", folder)
            except OSError:
                if not folder.exists():  # another process was first
                    raise
    return folder / PACK


def in_closed_form(shader: str) -> str:
    """A GLSL text without the table; as it is where that isn't used."""
    shader = _DECLARED.sub("", shader)
    if not _LOOKED_UP.search(shader):
        return shader
    shader = _LOOKED_UP.sub(r"environmentBRDF(\1, \2)", shader)
    return _CALLER.sub(lambda caller: CLOSED_FORM + caller.group(), shader)
