"""The pictures of a LeRobot data set: frames of an mp4, or PNG and JPEG inside of the parquet."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dsrl_torchrl.errors import UserError

#: 29.97 is called 30.
FPS_TOLERANCE = 0.005


def video_frames(path: Path, ranges: Sequence[tuple[int, int]], fps: float) -> Iterator[Tensor]:
    """Frames of an mp4, decoded by imageio's ffmpeg in one pass, as they are asked for.

    Args:
        path: of the file.
        ranges: first frame and number of frames of each episode, in ascending order.
        fps: frames a second of the data set.

    Yields:
        For each range uint8 ``[n, 3, H, W]``.

    Raises:
        UserError: the file is missing, damaged, shorter, or of another frame rate, or ranges overlap.
    """
    from imageio_ffmpeg import read_frames

    if not path.is_file():
        raise UserError(f"demonstrations not found: the video {path}")
    # An mp4 and nothing else: a playlist of that name would make ffmpeg open what it names.
    reader = read_frames(
        str(path),
        pix_fmt="rgb24",
        input_params=["-protocol_whitelist", "file", "-f", "mp4"],
        output_params=["-fps_mode", "passthrough"],
    )
    number = 0
    try:
        about = next(reader)
        width, height = about["size"]
        if abs(about["fps"] / fps - 1) > FPS_TOLERANCE:  # its frames would be of other steps
            raise UserError(
                f"{path} has {about['fps']:g} frames a second, its data set {fps:g}: encode it at that rate"
            )
        for begin, count in ranges:
            if begin < number:
                raise UserError(
                    f"{path}: an episode begins at frame {begin}, which is another's: its description is wrong"
                )
            frames = np.empty((count, height, width, 3), dtype=np.uint8)
            while number < begin + count:
                frame = next(reader)
                if number >= begin:
                    frames[number - begin] = np.frombuffer(frame, dtype=np.uint8).reshape(height, width, 3)
                number += 1
            yield torch.from_numpy(frames).permute(0, 3, 1, 2).contiguous()
    except UserError:
        raise
    except (StopIteration, OSError, RuntimeError, ValueError, KeyError, MemoryError) as error:
        reason = "" if isinstance(error, StopIteration) else f" ({' '.join(str(error).split())[:200]})"
        raise UserError(f"{path} is damaged, or ends before the data set says: no frame {number}{reason}") from None
    finally:
        reader.close()  # ends ffmpeg


def embedded_pictures(column: Sequence[Any], what: str) -> Tensor:
    """Pictures of a parquet column, each ``{"bytes": ..., "path": ...}``: uint8 ``[n, 3, H, W]``.

    Raises:
        UserError: a picture lies elsewhere, is damaged, or of another size than the first.
    """
    from PIL import Image

    pictures: list[np.ndarray] = []
    for i, cell in enumerate(column):
        data = cell.get("bytes") if isinstance(cell, dict) else None
        if not data:
            raise UserError(f"{what} of step {i} is not in the parquet itself")
        try:
            # The formats that LeRobot writes: others would start other decoders.
            with Image.open(io.BytesIO(data), formats=("PNG", "JPEG")) as picture:
                pictures.append(np.asarray(picture.convert("RGB")))
        except Exception as error:  # whatever a decoder raises
            raise UserError(f"{what} of step {i} is damaged ({' '.join(str(error).split())})") from None
        if pictures[i].shape != pictures[0].shape:
            raise UserError(f"{what} of step {i} has another size than the first")
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous()
