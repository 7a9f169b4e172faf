"""Images of a replay buffer, every different frame once: transitions hold numbers of frames in their place.

A transition's s' is the next one's s, and consecutive stacks of a history share all frames but one. Frames are known by
their contents, so it does not matter in which order transitions come, or that an episode's last s' is nowhere else. A
frame whose last transition is overwritten makes room.
"""

from __future__ import annotations

import hashlib
import math
import os
import tempfile
from typing import Any

import numpy as np
import torch
from tensordict import MemoryMappedTensor, TensorDictBase
from tensordict.utils import NestedKey
from torch import Tensor

from dsrl_torchrl.data.macro_transitions import stored_name

#: A history is taken apart into frames of so many channels, where its channels are a multiple of it.
RGB = 3
#: Frames that memory is taken for at a time; the system commits it as they are written.
BLOCK = 4096


def is_image(value: Tensor, batch_dims: int) -> bool:
    """Whether an entry of a batch is an image: uint8 with three axes behind the batch's."""
    return value.dtype == torch.uint8 and value.ndim >= batch_dims + 3


class FramePool:
    """Takes the images out of transitions and puts them back.

    Args:
        memmap: keep frames on disk.
    """

    def __init__(self, memmap: bool = False) -> None:
        self._memmap = memmap
        self._shelves: dict[tuple[int, ...], _Shelf] = {}  # by the shape of a frame
        self._shapes: dict[NestedKey, tuple[int, ...]] = {}  # of the entries that are images, [C, H, W]

    def take(self, transitions: TensorDictBase) -> TensorDictBase:
        """``[n]`` with images ``[n, C, H, W]`` -> a copy with numbers ``[n, k]`` of their k frames."""
        packed = transitions.copy()
        for key, image in transitions.items(True, True):
            if is_image(image, 1):
                self._shapes[key] = tuple(image.shape[1:])
                frames, shelf = self._frames(image), self._shelf(key)
                numbers = shelf.put(frames.flatten(0, 1)).view(frames.shape[:2])
                shelf.hold(numbers)
                packed.set(key, numbers)
        return packed

    def give(self, batch: TensorDictBase) -> TensorDictBase:
        """A copy of ``[*B]`` with the images in place of their numbers."""
        batch = batch.copy()
        for key in self._keys_in(batch):
            numbers = batch.get(key)
            images = self._shelf(key).frames(numbers.flatten())
            batch.set(key, images.view(*batch.shape, *self._shapes[key]))
        return batch

    def release(self, packed: TensorDictBase) -> None:
        """Forgets transitions ``[n]`` that :meth:`take` gave; what only they showed makes room."""
        for key in self._keys_in(packed):
            self._shelf(key).release(packed.get(key))

    def save(self, packed: TensorDictBase) -> tuple[TensorDictBase, dict[str, Any]]:
        """A copy of ``packed`` ``[n]`` with other numbers, and the frames that they are of, as a dict of tensors."""
        packed, keys = packed.copy(), self._keys_in(packed)
        frames = {}
        for shape, shelf in self._shelves.items():
            of_shelf = [key for key in keys if self._shelf(key) is shelf]
            if of_shelf:
                shown = torch.cat([packed.get(key).flatten() for key in of_shelf])
                kept, numbers = shown.unique(return_inverse=True)
                frames["x".join(map(str, shape))] = shelf.frames(kept)
                for key, part in zip(
                    of_shelf, numbers.split([packed.get(key).numel() for key in of_shelf]), strict=True
                ):
                    packed.set(key, part.view(packed.get(key).shape).int())
        return packed, {"frames": frames, "shapes": {stored_name(key): torch.tensor(self._shapes[key]) for key in keys}}

    def load(self, packed: TensorDictBase, saved: dict[str, Any]) -> TensorDictBase:
        """Keeps the frames of :meth:`save`; ``packed`` ``[n]`` by the numbers that they have now."""
        packed = packed.copy()
        keys = {stored_name(key): key for key in packed.keys(True, True)}
        self._shapes |= {keys[name]: tuple(shape.tolist()) for name, shape in saved["shapes"].items()}
        for name in saved["shapes"]:
            shelf = self._shelf(keys[name])
            numbers = shelf.put(saved["frames"]["x".join(map(str, shelf.shape))])
            packed.set(keys[name], numbers[packed.get(keys[name]).long()])
            shelf.hold(packed.get(keys[name]))
        return packed

    @property
    def nbytes(self) -> int:
        """Of the frames that are kept."""
        return sum(shelf.kept * math.prod(shelf.shape) for shelf in self._shelves.values())

    def _frames(self, image: Tensor) -> Tensor:
        channels = image.shape[1]
        return image.unflatten(1, (-1, RGB) if channels % RGB == 0 else (1, channels))  # (n, k, c, H, W)

    def _keys_in(self, batch: TensorDictBase) -> list[NestedKey]:
        return [key for key in self._shapes if batch.get(key, None) is not None]

    def _shelf(self, key: NestedKey) -> _Shelf:
        channels, *size = self._shapes[key]
        shape = (RGB if channels % RGB == 0 else channels, *size)
        if shape not in self._shelves:
            self._shelves[shape] = _Shelf(shape, self._memmap)
        return self._shelves[shape]


class _Shelf:
    """Frames of one shape ``[c, H, W]``, by number.

    They lie in blocks, which are taken as frames come: one tensor for the worst case, every transition with images of
    its own, would be more than a system promises whose memory has ample room for what comes.
    """

    def __init__(self, shape: tuple[int, ...], memmap: bool) -> None:
        self.shape, self._memmap = shape, memmap
        self._blocks: list[Tensor] = []
        self._numbers: dict[bytes, int] = {}
        self._contents: list[bytes] = []  # of each number that was ever given
        self._holders = np.zeros(0, dtype=np.int64)
        self._free: list[int] = []

    @property
    def kept(self) -> int:
        return len(self._numbers)

    def frames(self, numbers: Tensor) -> Tensor:
        """``[n]`` -> ``[n, c, H, W]``."""
        numbers = numbers.long()
        frames = torch.empty(len(numbers), *self.shape, dtype=torch.uint8)
        blocks, places = numbers // BLOCK, numbers % BLOCK
        for block in blocks.unique().tolist():
            (here,) = (blocks == block).nonzero(as_tuple=True)
            frames[here] = self._blocks[block][places[here]]
        return frames

    def put(self, frames: Tensor) -> Tensor:
        """``[n, c, H, W]`` -> numbers ``[n]`` int32; new frames are kept."""
        numbers = []
        for frame in frames.cpu().contiguous():
            content = hashlib.blake2b(memoryview(frame.numpy()), digest_size=16).digest()
            number = self._numbers.get(content)
            if number is None:
                number = self._new(content)
                self._blocks[number // BLOCK][number % BLOCK] = frame
            numbers.append(number)
        return torch.tensor(numbers, dtype=torch.int32)

    def _new(self, content: bytes) -> int:
        if self._free:
            number = self._free.pop()
            self._contents[number] = content
        else:
            number = len(self._contents)
            self._contents.append(content)
            if number == len(self._holders):
                shape = (BLOCK, *self.shape)
                self._blocks.append(on_disk(shape) if self._memmap else torch.empty(shape, dtype=torch.uint8))
                self._holders = np.concatenate([self._holders, np.zeros(BLOCK, dtype=np.int64)])
        self._numbers[content] = number
        return number

    def hold(self, numbers: Tensor) -> None:
        np.add.at(self._holders, numbers.flatten().numpy(), 1)

    def release(self, numbers: Tensor) -> None:
        flat = numbers.flatten().numpy()
        np.add.at(self._holders, flat, -1)
        for number in np.unique(flat[self._holders[flat] == 0]).tolist():
            del self._numbers[self._contents[number]]
            self._free.append(number)


def on_disk(shape: tuple[int, ...]) -> Tensor:
    """uint8 of this shape in a file that ends with the process, however it ends.

    In the folder for temporary files (``TMPDIR``). Where nobody says so, tensordict takes ``/dev/shm``: memory.
    """
    handle, name = tempfile.mkstemp(prefix="dsrl-frames-")
    os.close(handle)
    try:
        return MemoryMappedTensor.empty(shape, dtype=torch.uint8, filename=name, existsok=True)
    finally:
        os.unlink(name)  # what is mapped stays
