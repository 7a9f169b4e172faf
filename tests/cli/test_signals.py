"""A signal wherever Python may be when it comes."""

from __future__ import annotations

import os
import signal
import sys
import time

import pytest

from dsrl_torchrl.cli.signals import Interruption


class Dying:
    """Gets a signal in its finaliser, from where no exception comes out."""

    def __init__(self, number):
        self.number = number

    def __del__(self):
        os.kill(os.getpid(), self.number)
        time.sleep(0)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_in_a_finaliser_is_not_lost(capsys, number):
    hook, interruption = sys.unraisablehook, Interruption()
    interruption.take()
    interruption.working = True
    try:
        with pytest.raises(KeyboardInterrupt):
            Dying(number)
            time.sleep(60)
        assert interruption.received == number
    finally:
        interruption.restore()
    assert sys.unraisablehook is hook
    assert capsys.readouterr().err == ""


def test_another_error_in_a_finaliser_is_shown_as_ever(monkeypatch):
    shown = []
    monkeypatch.setattr(sys, "unraisablehook", shown.append)
    interruption = Interruption()
    interruption.take()

    class Failing:
        def __del__(self):
            raise ValueError("in the finaliser")

    try:
        Failing()
    finally:
        interruption.restore()
    assert [error.exc_type for error in shown] == [ValueError]
