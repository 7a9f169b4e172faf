"""Makes the data sets beside this file with LeRobot itself: `python tests/data/lerobot/make.py`, LeRobot 0.6.1.

`video` has its pictures in an mp4, `pictures` in the parquet. Every number says where it is from: the state of step t
of episode e is [100 e + t, e, t], the action [e / 10, t / 10], and the picture is grey, 20 (e + 1) + 10 t.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as parquet
from lerobot.datasets.lerobot_dataset import LeRobotDataset

LENGTHS = (5, 3)
SIZE = 64


def make(root: Path, dtype: str) -> None:
    shutil.rmtree(root, ignore_errors=True)
    features = {
        "observation.state": {"dtype": "float32", "shape": (3,), "names": None},
        "action": {"dtype": "float32", "shape": (2,), "names": None},
        "observation.images.main": {
            "dtype": dtype,
            "shape": (SIZE, SIZE, 3),
            "names": ["height", "width", "channels"],
        },
    }
    data = LeRobotDataset.create("tiny/tiny", fps=10, features=features, root=root, use_videos=dtype == "video")
    for e, length in enumerate(LENGTHS):
        for t in range(length):
            frame = {
                "observation.state": np.array([100 * e + t, e, t], dtype=np.float32),
                "action": np.array([e / 10, t / 10], dtype=np.float32),
                "observation.images.main": np.full((SIZE, SIZE, 3), 20 * (e + 1) + 10 * t, dtype=np.uint8),
                "task": f"task {e}",
            }
            data.add_frame(frame)
        data.save_episode()
    data.finalize()
    # Statistics, which nothing reads here, are most of the bytes.
    (root / "meta" / "stats.json").unlink()
    for path in (root / "meta" / "episodes").rglob("*.parquet"):
        table = parquet.read_table(path)
        parquet.write_table(table.select([name for name in table.column_names if not name.startswith("stats/")]), path)


if __name__ == "__main__":
    folder = Path(__file__).parent
    make(folder / "video", "video")
    make(folder / "pictures", "image")
