"""The wire format: numbers come back bit for bit, and nothing else comes in."""

from __future__ import annotations

import msgpack
import numpy as np
import pytest

from dsrl_torchrl.policies.adapters.serve_policy import NAMES, Refused, pack, unpack

from .served import WALK


@pytest.mark.parametrize("name", sorted(NAMES))
@pytest.mark.parametrize("shape", [(), (1,), (3, 2), (2, 1, 4, 3)])
def test_every_dtype_and_shape_comes_back(name, shape):
    bits = np.random.default_rng(0).integers(0, 2, size=shape) * 100
    array = np.asarray(bits).astype(name)
    back = unpack(pack({"a": [array]}))["a"][0]
    assert back.dtype == name and back.shape == shape and back.flags.writeable
    assert back.tobytes() == array.tobytes()


def test_nan_and_infinity_come_back_bit_for_bit():
    array = np.array([np.nan, -np.inf, -0.0, 5e-324])
    assert unpack(pack(array)).tobytes() == array.tobytes()


def test_strides_and_byte_order_do_not_matter():
    array = np.arange(24, dtype=">i4").reshape(2, 3, 4)
    for view in (array, array.transpose(2, 0, 1), array[:, ::-1, 1:]):
        back = unpack(pack(view))
        assert np.array_equal(back, view) and back.dtype == "<i4"


def test_the_announcement_comes_back():
    announced = WALK.announcement(8, 1000)
    assert unpack(pack(announced)) == announced


@pytest.mark.parametrize(
    "value",
    [
        np.array([object()]),
        np.array(["a text"]),
        np.array([b"bytes"]),
        np.array(["2026-01-01"], dtype="datetime64[D]"),
        np.zeros(2, dtype=[("a", "f4")]),
        np.zeros(2, dtype="complex64"),
        np.zeros((0, 3)),
        np.float32(1),
        object(),
        {1, 2},
    ],
    ids=lambda value: f"{type(value).__name__} {getattr(value, 'dtype', '')}",
)
def test_only_arrays_of_numbers_are_sent(value):
    with pytest.raises(Refused, match="cannot send"):
        pack({"a": value})


def array(dtype="<f4", shape=(2,), data=bytes(8), **more):
    return msgpack.packb({"__array__": dtype, "shape": shape, "data": data, **more})


@pytest.mark.parametrize(
    "message",
    [
        array(dtype="|O"),
        array(dtype="O"),
        array(dtype="|S4"),
        array(dtype="<U2"),
        array(dtype="<c8", shape=(1,)),
        array(dtype="|V8", shape=(1,)),
        array(dtype="<M8[D]", shape=(1,)),
        array(dtype="f4,f4", shape=(1,)),
        array(dtype=["<f4"]),
        array(dtype=None),
        array(shape=(3,)),
        array(shape=(1,)),
        array(shape=(-2, -1)),
        array(shape=(2**62, 2**62, 4)),
        array(shape=(0, 2**62), data=b""),
        array(shape=(2.0,)),
        array(shape=(True, 2)),
        array(shape="2"),
        array(shape=[1] * 9 + [2]),
        array(data="eight by"),
        array(data=[0] * 8),
        array(more=1),
    ],
)
def test_an_array_that_is_none_is_refused(message):
    with pytest.raises(Refused) as refused:
        unpack(message)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"\xc1",
        b"\x80\x80",
        msgpack.packb(msgpack.ExtType(5, b"x")),
        msgpack.packb(msgpack.Timestamp(1)),
        msgpack.packb({(1, 2): 3}),
        msgpack.packb({3: 4}),
        b"\xdd\xff\xff\xff\xff",
        b"\xdf\xff\xff\xff\xff",
        b"\xc6\xff\xff\xff\xff",
        b"\x91" * 100_000,
        b"\xdc\x00\x40" * 2_000,
    ],
    ids=range(12),
)
def test_what_is_no_message_is_refused(message):
    """Huge claims, unknown types, endless nesting: without the memory that they claim."""
    with pytest.raises(Refused, match="not a message of this protocol"):
        unpack(message)


def test_cut_and_altered_messages_never_raise_anything_else():
    generator = np.random.default_rng(0)
    whole = pack({"observation": {"a": np.ones((2, 3), np.float32)}, "noise": np.ones((2, 4), np.float32)})
    for _ in range(2_000):
        damaged = bytearray(whole[: generator.integers(1, len(whole) + 1)])
        damaged[generator.integers(len(damaged))] = generator.integers(256)
        try:
            unpack(bytes(damaged))
        except Refused as refused:
            assert "\n" not in str(refused)
