"""``python -m dsrl_torchrl`` is the ``dsrl`` command."""

from dsrl_torchrl.cli.main import main

main()
