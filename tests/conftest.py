import pytest
import torch

# CI machines are shared: OpenMP threads that compete for cores make small networks ten times slower.
torch.set_num_threads(1)


def pytest_collection_modifyitems(items):
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """A finished run of the whole pipeline, made once."""
    from dsrl_torchrl.cli.main import main

    from .cli.pipeline_run import TINY

    folder = tmp_path_factory.mktemp("finished")
    main(["run", *TINY, f"output={folder}", "name=a"])
    return folder
