"""Random shifts are crops of the padded image, all of them; colours change in HSV as the standard library says."""

from __future__ import annotations

import colorsys

import pytest
import torch
from tensordict import TensorDict
from torch.nn.functional import pad

from dsrl_torchrl.networks.augmentation import (
    augment,
    color_jitter,
    random_shift,
    scale_saturation,
    turn_hue,
)


def images(n, channels=3, size=(8, 8)):
    generator = torch.Generator().manual_seed(3)
    return torch.randint(256, (n, channels, *size), dtype=torch.uint8, generator=generator)


def crops(image, by):
    """Every crop of the image padded by its edge, ``[(2 by + 1)², C, H, W]``."""
    _, height, width = image.shape
    padded = pad(image.float().unsqueeze(0), (by,) * 4, mode="replicate")[0].to(image.dtype)
    shifts = range(2 * by + 1)
    return torch.stack([padded[:, y : y + height, x : x + width] for y in shifts for x in shifts])


@pytest.mark.parametrize("size", [(8, 8), (5, 9)])
def test_every_crop_of_the_padded_image_comes_equally_often_and_nothing_else(size):
    torch.manual_seed(0)
    image, n = images(1, channels=6, size=size)[0], 5_000
    shifted = random_shift(image.expand(n, -1, -1, -1), 2)
    equal = (shifted.unsqueeze(1) == crops(image, 2)).flatten(2).all(-1)  # (n, 25); a history's frames move together
    assert equal.any(1).all()
    share = equal.float().mean(0)
    assert (share - 1 / 25).abs().max() < 5 * (0.04 * 0.96 / n) ** 0.5
    assert shifted.dtype == torch.uint8


def test_no_shift_is_the_identity_and_images_shift_apart():
    torch.manual_seed(0)
    batch = images(1).expand(64, -1, -1, -1)
    assert torch.equal(random_shift(batch, 0), batch)
    assert len(torch.unique(random_shift(batch, 4).flatten(1), dim=0)) > 32


def test_a_shift_further_than_the_image_is_its_edge():
    torch.manual_seed(1)
    image = images(1, size=(2, 2))
    assert torch.isin(random_shift(image.expand(50, -1, -1, -1), 40), image).all()


def pixels(x):
    return x.movedim(-3, -1).reshape(-1, 3).double().tolist()


@pytest.mark.parametrize("factor", [0.0, 0.9, 1.1, 5.0])
def test_saturation_is_hsvs(factor):
    x = images(4).float() / 255
    expected = []
    for rgb in pixels(x):
        hue, saturation, value = colorsys.rgb_to_hsv(*rgb)
        expected.append(colorsys.hsv_to_rgb(hue, min(1.0, factor * saturation), value))
    found = torch.tensor(pixels(scale_saturation(x, torch.tensor(factor))))
    torch.testing.assert_close(found, torch.tensor(expected, dtype=found.dtype), atol=1e-5, rtol=0)


@pytest.mark.parametrize("turns", [-0.5, -0.03, 0.0, 0.03, 0.4])
def test_hue_is_hsvs(turns):
    grey, red = torch.full((1, 3, 8, 8), 0.3), torch.tensor([1.0, 0, 0]).reshape(1, 3, 1, 1).expand(1, 3, 8, 8)
    x = torch.cat([images(4).float() / 255, grey, red])
    expected = []
    for rgb in pixels(x):
        hue, saturation, value = colorsys.rgb_to_hsv(*rgb)
        expected.append(colorsys.hsv_to_rgb((hue + turns) % 1, saturation, value))
    found = torch.tensor(pixels(turn_hue(x, torch.tensor(turns))))
    torch.testing.assert_close(found, torch.tensor(expected, dtype=found.dtype), atol=1e-5, rtol=0)


def test_jitter_stays_in_range_leaves_a_fifth_alone_and_moves_a_history_together():
    torch.manual_seed(0)
    batch = images(1, size=(4, 4)).expand(4_000, -1, -1, -1)
    jittered = color_jitter(batch, 0.2, 0.1, 0.1, 0.03)
    assert jittered.dtype == torch.float32 and jittered.min() >= 0 and jittered.max() <= 255
    alone = ((jittered - batch).abs().amax((1, 2, 3)) < 1e-3).float().mean()
    assert abs(alone - 0.2) < 5 * (0.2 * 0.8 / 4_000) ** 0.5
    history = color_jitter(batch[:20].repeat(1, 3, 1, 1), 0.2, 0.1, 0.1, 0.03).unflatten(1, (3, 3))
    assert torch.equal(history[:, 0], history[:, 1]) and torch.equal(history[:, 0], history[:, 2])
    torch.testing.assert_close(color_jitter(batch[:5], 0, 0, 0, 0), batch[:5].float(), atol=1e-3, rtol=0)


@pytest.mark.parametrize(("amounts", "extreme"), [((0.2, 0, 0, 0), 0.2), ((0, 0.1, 0, 0), None)])
def test_amounts_of_brightness_and_contrast(amounts, extreme):
    torch.manual_seed(0)
    grey = torch.full((2_000, 3, 2, 2), 100, dtype=torch.uint8)
    grey[:, :, 0] = 150
    change = color_jitter(grey, *amounts) / 255 - grey / 255
    if extreme is not None:  # the same for every pixel, up to the amount
        assert change.flatten(1).std(1).max() < 1e-6
        assert 0.99 * extreme < change.max() <= extreme and -extreme <= change.min() < -0.99 * extreme
    else:  # in proportion to the distance from the mean, up to the amount
        assert change.mean((2, 3)).abs().max() < 1e-6
        assert 0.099 < change.abs().max() / (25 / 255) <= 0.1001


def test_only_images_change_in_a_copy():
    torch.manual_seed(0)
    td = TensorDict({"pixels": images(6).unflatten(0, (2, 3)), "observation": torch.randn(2, 3, 4)}, [2, 3])
    td["flags"] = torch.ones(2, 3, 2, dtype=torch.uint8)
    before = td.clone()
    out = augment(td, 2, (0.2, 0.1, 0.1, 0.03))
    assert (td == before).all()
    assert torch.equal(out["observation"], td["observation"]) and torch.equal(out["flags"], td["flags"])
    assert out["pixels"].shape == td["pixels"].shape and not torch.equal(out["pixels"], td["pixels"].float())
    single = augment(td[0, 0], 2, None)
    assert single["pixels"].shape == (3, 8, 8) and single["pixels"].dtype == torch.uint8
