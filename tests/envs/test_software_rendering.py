"""How lavapipe is found and hastened, without it."""

import os
from pathlib import Path

import pytest

from dsrl_torchrl.envs import software_rendering
from dsrl_torchrl.envs.software_rendering import draws_in_software, in_closed_form, use_mesa

SHADER = """\
layout(set = 3, binding = 7) uniform samplerCube samplerEnvironment;
layout(set = 3, binding = 8) uniform sampler2D samplerBRDFLUT;

vec3 specularIBL(vec3 fresnel, float roughness, vec3 N, vec3 V) {
  vec2 envBRDF = texture(samplerBRDFLUT, vec2(roughness, dotNV)).xy;
  return color * (fresnel * envBRDF.x + envBRDF.y);
}
"""


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for variable in (*software_rendering.LOADER_VARIABLES, "LP_NUM_THREADS"):
        monkeypatch.setenv(variable, "")  # what is set from now on is taken back
        monkeypatch.delenv(variable)
    monkeypatch.setattr(software_rendering, "_graphics_cards", list)
    return software_rendering.cache_folder()


def extract_mesa(cache):
    driver = cache / "mesa" / "lvp_icd.json"
    driver.parent.mkdir(parents=True)
    driver.write_text("{}")
    return str(driver)


def test_the_users_mesa_is_found(cache):
    use_mesa()
    assert "VK_DRIVER_FILES" not in os.environ and os.environ["LP_NUM_THREADS"] == "0"
    driver = extract_mesa(cache)
    use_mesa()
    assert os.environ["VK_DRIVER_FILES"] == driver


@pytest.mark.parametrize("variable", software_rendering.LOADER_VARIABLES)
def test_what_the_user_has_chosen_stays(cache, monkeypatch, variable):
    extract_mesa(cache)
    monkeypatch.setenv(variable, "another.json")
    use_mesa()
    chosen = {name: os.environ.get(name) for name in software_rendering.LOADER_VARIABLES}
    assert chosen == dict.fromkeys(software_rendering.LOADER_VARIABLES) | {variable: "another.json"}


def test_a_graphics_card_goes_first(cache, monkeypatch):
    extract_mesa(cache)
    monkeypatch.setattr(software_rendering, "_graphics_cards", lambda: [Path("/dev/nvidia0")])
    use_mesa()
    assert "VK_DRIVER_FILES" not in os.environ


def test_only_lavapipe_is_hastened():
    software = "GPU: llvmpipe (LLVM 15.0.6, 256 bits)\n  Supported: 1\n"
    assert draws_in_software(software)
    assert not draws_in_software(software + "GPU: NVIDIA H100\n  Supported: 1\n")
    assert not draws_in_software("")


def test_the_table_is_neither_declared_nor_looked_up():
    closed = in_closed_form(SHADER)
    assert "samplerBRDFLUT" not in closed and "samplerEnvironment" in closed
    assert closed.index("vec2 environmentBRDF(float") < closed.index("environmentBRDF(roughness, dotNV);")
    assert closed.count("specularIBL(") == 1
    other = "layout(location = 0) out vec4 outColor;\n"
    assert in_closed_form(other) == other


def test_the_copy_is_whole_and_made_once(cache, tmp_path):
    shaders = tmp_path / "vulkan_shader"
    for part, text in (("minimal", SHADER), ("common", "float f;\n")):
        (shaders / part).mkdir(parents=True)
        (shaders / part / "gbuffer.frag").write_text(text)
    folder = software_rendering._write_pack(shaders)
    assert folder.name == "minimal" and (folder.parent / "common" / "gbuffer.frag").read_text() == "float f;\n"
    assert (folder / "gbuffer.frag").read_text() == in_closed_form(SHADER)
    made = (folder / "gbuffer.frag").stat().st_mtime_ns
    assert software_rendering._write_pack(shaders) == folder
    assert (folder / "gbuffer.frag").stat().st_mtime_ns == made
    assert [path.name for path in cache.iterdir()] == [folder.parent.name]  # nothing is left beside it
    (shaders / "minimal" / "gbuffer.frag").write_text("void main() {}\n")
    with pytest.raises(LookupError, match="SAPIEN"):
        software_rendering._write_pack(shaders)


@pytest.mark.simulator
def test_the_shaders_of_this_sapien(cache):
    sapien = pytest.importorskip("sapien")
    folder = software_rendering._write_pack(Path(sapien.__file__).parent / "vulkan_shader")
    texts = [path.read_text() for path in folder.parent.rglob("*") if path.is_file()]
    assert len(texts) >= 8 and not any("samplerBRDFLUT" in text for text in texts)
    assert sum("environmentBRDF(roughness, dotNV)" in text for text in texts) == 1


def test_a_user_without_a_home(monkeypatch):
    """An id that no one has, as some containers run."""

    def home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(software_rendering.Path, "home", home)
    assert software_rendering.cache_folder().name == "dsrl-torchrl"
