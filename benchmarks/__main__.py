"""``python -m benchmarks <name>``: what things cost, as ratios from one run.

    python -m benchmarks update            # one benchmark
    python -m benchmarks all               # but for gpu and those that train: cold_start, critic_targets,
    #                                        methods, offline_failures
    python -m benchmarks all --smoke       # with tiny sizes: that they run, not what they measure
    python -m benchmarks gpu               # where there is a graphics card
    python -m benchmarks methods suite=small    # every method on the same frozen base policies

Results go to ``benchmarks/results/<name>.json`` and ``.png`` (``--out`` for another folder).
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import torch
from torchrl import logger

from benchmarks import (
    cold_start,
    critic_targets,
    end_to_end,
    gpu,
    latent_env,
    limits,
    methods,
    na_cost,
    offline_failures,
    pixels,
    policy_server,
    scaling,
    simulator,
    suites,
    update,
)
from dsrl_torchrl.errors import UserError

HERE = Path(__file__).parent
SUITE: dict[str, ModuleType] = {
    "update": update,
    "pixels": pixels,
    "na_cost": na_cost,
    "simulator": simulator,
    "suites": suites,
    "latent_env": latent_env,
    "end_to_end": end_to_end,
    "scaling": scaling,
    "limits": limits,
    "policy_server": policy_server,
}


def main(argv: Sequence[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else list(argv)
    arguments = _parser(smoke="--smoke" in argv).parse_args(argv)
    logger.setLevel("WARNING")
    logging.getLogger("tensordict").setLevel("WARNING")  # it tells of every CUDA graph
    torch.set_num_threads(arguments.threads)
    if arguments.benchmark != "all":
        try:
            arguments.main(arguments)
        except UserError as error:  # of a word that is meant for the library
            raise SystemExit(f"benchmarks: error: {error}") from None
        return
    for name in SUITE:
        print(f"\n== {name} ==", flush=True)
        main([name, *argv[1:]])


def _parser(smoke: bool) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--repeats", type=int, default=9, help="turns of each side")
    common.add_argument("--threads", type=int, default=1, help="of torch, on every side")
    common.add_argument(
        "--out", type=Path, default=HERE / ("out" if smoke else "results"), help="folder of the results"
    )
    common.add_argument("--smoke", action="store_true", help="tiny sizes, into benchmarks/out")
    names = parser.add_subparsers(dest="benchmark", required=True, metavar="name")
    for name, module in {**SUITE, "gpu": gpu}.items():
        benchmark = _add(names, name, module, [common])
        if smoke:
            benchmark.set_defaults(**module.SMOKE)
    trainings = {
        "cold_start": cold_start,
        "critic_targets": critic_targets,
        "methods": methods,
        "offline_failures": offline_failures,
    }
    for name, trains in trainings.items():
        _add(names, name, trains, []).set_defaults(threads=1)
    names.add_parser("all", parents=[common], help=f"{', '.join(SUITE)}, one after the other")
    return parser


def _add(names, name: str, module: ModuleType, parents: list[argparse.ArgumentParser]) -> argparse.ArgumentParser:
    description = module.__doc__ or ""
    parser = names.add_parser(
        name,
        parents=parents,
        help=description.splitlines()[0],
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    module.add_arguments(parser)
    parser.set_defaults(main=module.main)
    return parser


if __name__ == "__main__":
    main()
