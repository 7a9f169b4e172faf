import os
import shutil

import pytest
import torch
from filelock import FileLock

# CI machines are shared: OpenMP threads that compete for cores make small networks ten times slower, here and in
# every process that a test starts.
os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)


def pytest_collection_modifyitems(items):
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """A finished run of the whole pipeline, made once for all processes that test; each has its own copy."""
    from dsrl_torchrl.cli.main import main

    from .cli.pipeline_run import TINY

    everybodys = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        everybodys = everybodys.parent
    made = everybodys / "finished"
    with FileLock(f"{made}.lock"):
        if not (made / "a" / "summary.json").exists():
            shutil.rmtree(made, ignore_errors=True)
            main(["run", *TINY, f"output={made}", "name=a"])
    folder = tmp_path_factory.mktemp("finished")
    return shutil.copytree(made, folder, dirs_exist_ok=True)
