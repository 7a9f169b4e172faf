"""``_target_`` dicts are judged by the signature of what they name, before anything is called."""

from __future__ import annotations

import pytest
import torch
from torchrl.envs import EnvBase

from dsrl_torchrl.cli.targets import argument_meanings, check_target, find_target, make, parameters
from dsrl_torchrl.errors import UserError


class Thing:
    """A thing.

    Args:
        size: how large; a number.
        colour, shade: as in :class:`~torch.nn.Linear`,
            but longer.
    """

    def __init__(self, size, colour="red", shade=None):
        self.size, self.colour = size, colour


class Env(EnvBase):
    def __init__(self, level=1):
        pass

    def _reset(self, tensordict, **kwargs): ...

    def _step(self, tensordict): ...

    def _set_seed(self, seed): ...


def typed(count: int, share: float | None = None, names: list[str] = (), own: Thing | None = None):
    return count


def anything(first, **kwargs):
    return first, kwargs


def broken():
    return 1 / 0


def spec(name, **keywords):
    return {"_target_": f"{__name__}.{name}", **keywords}


def test_what_fits_passes():
    check_target(spec("Thing", size=3, colour="blue"), "x")
    check_target(spec("Thing", colour="blue"), "x", ["size"])
    check_target(spec("Thing", colour="blue"), "x", positional=1)
    check_target(spec("anything", first=1, more=2), "x")
    check_target({"_target_": "torch.nn.Linear", "in_features": 1, "out_features": 2}, "x")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            spec("Thing", size=1, color="blue"),
            r"unknown option x\.color: Thing has no such argument; did you mean x\.col",
        ),
        (spec("Thing"), r"x\.size is missing: Thing needs it"),
        (spec("Nothing"), r"x\._target_: cannot import .*Nothing \(AttributeError"),
        ({"_target_": "no_such_package.Thing"}, r"x\._target_: cannot import no_such_package\.Thing \(ModuleNotFound"),
        ({"_target_": "torch.pi"}, "is not callable"),
        ({"size": 1}, r"x needs a _target_"),
        (None, r"x needs a _target_"),
        (spec("Thing", size=spec("Thing", size=1, hue=1)), r"unknown option x\.size\.hue"),
        # TorchRL's metaclass hides the constructor's signature.
        (spec("Env", levle=1), r"unknown option x\.levle: Env has no such argument; did you mean x\.level\?"),
    ],
)
def test_mistakes(given, message):
    with pytest.raises(UserError, match=message) as caught:
        check_target(given, "x")
    assert "\n" not in str(caught.value)


def test_numbers_flags_and_texts_are_checked_by_their_annotation():
    check_target(spec("typed", count=1, share=2, names=["a"], own=3), "x")  # of somebody's class, nothing is known
    check_target(spec("typed", count=1, share=None), "x")
    with pytest.raises(UserError, match=r"x\.count should be a valid integer, got 1\.5"):
        check_target(spec("typed", count=1.5), "x")
    with pytest.raises(UserError, match=r"x\.share should be a valid number, got 'much'"):
        check_target(spec("typed", count=1, share="much"), "x")


def test_a_target_that_cannot_take_what_it_is_given():
    with pytest.raises(UserError, match=r"x\._target_: Thing must take the argument seed"):
        check_target(spec("Thing", size=1), "x", ["seed"])


def test_make_calls_with_plain_values():
    assert make(spec("anything", first=[1, 2]), more={"a": (1,)}) == ([1, 2], {"more": {"a": [1]}})
    assert make(spec("Thing"), size=3).size == 3
    with pytest.raises(ZeroDivisionError) as raised:  # not Hydra's exception around it
        make(spec("broken"))
    assert raised.value.__context__ is None


def test_meanings_come_from_the_docstring():
    meanings = argument_meanings(spec("Thing"))
    assert meanings["_target_"] == "A thing."
    assert meanings["size"] == "how large"
    assert meanings["colour"] == meanings["shade"] == "as in Linear, but longer"
    assert argument_meanings({"kind": "mlp"}) == {}


def test_parameters_of_classes_and_functions():
    assert list(parameters(Thing)) == ["size", "colour", "shade"]
    assert list(parameters(anything)) == ["first", "kwargs"]
    assert find_target({"_target_": "torch.nn.Linear"}, "x") is torch.nn.Linear
