"""One prepared split on a device: training batches by step, whole pictures for evaluation.

All pictures lie in flat tensors, pixel after pixel, and a batch is one indexed read of them: no loop over samples,
whatever the pictures' sizes. A step's batch depends on (seed, step) alone, so that a resumed training sees what it
would have seen.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pipeline.data.degradations import Prepared, bicubic_upscale, darken, load_split
from pipeline.data.raw import Exposures, amplify, demosaic_amplified
from pipeline.errors import UserError

CANDIDATES = 4  # patches looked at for each one taken; the one with the largest variance is


@dataclass(frozen=True)
class Images:
    """A split of N pictures. Sizes and first pixels count input pixels, each over `scale`² target pixels."""

    task: str  # "super_resolution" or "low_light"
    names: list[str]
    scale: int
    sizes: np.ndarray  # int64 [N, 2]: input height and width
    first: np.ndarray  # int64 [N]: input pixels before each picture's own
    high: Tensor  # uint8 [pixels, 3]
    low: Tensor | None  # super-resolution: uint8 [pixels, 3]
    raw: Tensor | None  # low light with a fixed exposure: int16 [samples]
    ratio: Tensor | None  # low light with a fixed exposure: float32 [N]
    exposures: Exposures | None  # low light: what training draws from

    def __len__(self) -> int:
        return len(self.names)

    def batch(self, step: int, seed: int, batch: int, patch: int) -> tuple[Tensor, Tensor]:
        """One step's input [batch, C, patch, patch] and target [batch, 3, scale·patch, scale·patch], float32 in 0 … 1.

        C is 3 (super-resolution) or 4 (low light). Pictures and places are drawn evenly, the most varied of
        `CANDIDATES` places is taken, and flipped or turned in one of eight ways. In low light each patch gets a camera,
        an exposure ratio and noise of its own. Bit-equal for equal arguments on one device. Raises UserError for a
        patch larger than a picture.
        """
        smallest = int(self.sizes.min(axis=1).argmin())
        if patch > self.sizes[smallest].min():
            h, w = self.sizes[smallest]
            raise UserError(
                f"patch: {patch} input pixels are more than {self.names[smallest]} has ({w}×{h}); "
                f"at most {min(h, w)} are allowed"
            )
        rng = np.random.default_rng((seed, step))
        grid = self._choose(rng, batch, patch)
        pixels = _read(self.high, grid(self.scale))
        target = pixels.float().div_(255)
        if self.task == "super_resolution":
            return _read(self.low, grid(1)).float().div_(255), target
        # The turned full-resolution RGB is sampled by the mosaic, and not a mosaic turned: the latter would move red
        # away from the corner of the 2×2 cell.
        return amplify(*darken(pixels, rng, self.exposures)), target

    def pair(self, i: int) -> tuple[Tensor, Tensor]:
        """Picture `i` whole, always the same: input [1, C, h, w], target [1, 3, scale·h, scale·w], float32 in 0 … 1.

        In low light this needs a split with a fixed exposure: validation or test.
        """
        h, w = (int(side) for side in self.sizes[i])
        target = self._whole(self.high, i, self.scale).float().div_(255)
        if self.task == "super_resolution":
            return self._whole(self.low, i, 1).float().div_(255), target
        start = 4 * int(self.first[i])
        samples = self.raw[start : start + 4 * h * w].view(1, 4, h, w)
        return amplify(samples, self.ratio[i : i + 1]), target

    def reference(self, i: int) -> Tensor:
        """What to beat on picture `i`, [1, 3, scale·h, scale·w] in 0 … 1: bicubic, or the amplified input in RGB."""
        given, _ = self.pair(i)
        return bicubic_upscale(given, self.scale) if self.task == "super_resolution" else demosaic_amplified(given)

    def _whole(self, pixels: Tensor, i: int, scale: int) -> Tensor:
        h, w = (int(side) * scale for side in self.sizes[i])
        start = int(self.first[i]) * scale * scale
        return pixels[start : start + h * w].view(1, h, w, 3).permute(0, 3, 1, 2)

    def _choose(self, rng: np.random.Generator, batch: int, patch: int) -> _Grid:
        """Where the pixels of the chosen patches are."""
        count = batch * CANDIDATES
        picture = rng.integers(len(self), size=count)
        height, width = self.sizes[picture].T
        top = rng.integers(height - patch + 1)
        left = rng.integers(width - patch + 1)
        turn, flip_down, flip_right = rng.integers(2, size=(3, count)).astype(bool)
        columns = np.stack([picture, self.first[picture], width, top, left, turn, flip_down, flip_right])
        drawn = torch.from_numpy(columns).to(self.high.device)
        # One green sample for each input pixel is enough to rank places by variance. (Flips don't matter to it.)
        places = _Grid(drawn, patch)(self.scale, every=self.scale).flatten()
        green = self.high.view(-1).index_select(0, places.mul_(3).add_(1)).view(count, -1).float()
        variance = green.square().mean(dim=1) - green.mean(dim=1).square()
        best = variance.view(batch, CANDIDATES).argmax(dim=1) + torch.arange(batch, device=drawn.device) * CANDIDATES
        return _Grid(drawn[:, best], patch)


@dataclass(frozen=True)
class _Grid:
    """Where patches lie. `drawn`, int64 [8, B]: picture, first pixel, width, top, left, turn, flip down, flip right."""

    drawn: Tensor
    patch: int

    def __call__(self, scale: int, every: int = 1) -> Tensor:
        """Pixel numbers, int64 [B, side, side] with side = scale·patch/every, in pictures `scale` times the input.

        Pixel (i, j) of the turned patch is start + i·down + j·right, with strides that swap for a turn and reverse for
        a flip: the eight orientations need no copy of their own.
        """
        _, first, width, top, left, turn, flip_down, flip_right = self.drawn
        last = scale * self.patch - 1
        width = width * scale
        start = first * scale * scale + top * scale * width + left * scale
        down, right = torch.where(turn == 1, 1, width), torch.where(turn == 1, width, 1)
        start = start + last * (flip_down * down + flip_right * right)
        down, right = down * (1 - 2 * flip_down), right * (1 - 2 * flip_right)
        steps = torch.arange(0, scale * self.patch, every, device=self.drawn.device)
        rows = start[:, None] + down[:, None] * steps
        return rows[:, :, None] + (right[:, None] * steps)[:, None, :]


def _read(pixels: Tensor, grid: Tensor) -> Tensor:
    """[B, 3, side, side] of the flat [pixels, 3] at the pixel numbers [B, side, side]."""
    # index_select, as it is three times faster here than pixels[...].
    return pixels.index_select(0, grid.flatten()).view(*grid.shape, 3).permute(0, 3, 1, 2).contiguous()


def load_images(source: Path | Prepared, device: torch.device | str) -> Images:
    """A prepared split, or the file `save_split` made of it, on `device`. UserError for an unreadable file."""
    prepared = load_split(source) if isinstance(source, Path) else source

    def moved(key: str) -> Tensor | None:
        return torch.from_numpy(prepared[key]).to(device) if key in prepared else None

    pixels = prepared["sizes"].prod(axis=1)
    return Images(
        task=str(prepared["task"]),
        names=[str(name) for name in prepared["names"]],
        scale=int(prepared["scale"]),
        sizes=prepared["sizes"],
        first=np.cumsum(pixels) - pixels,
        high=moved("high"),
        low=moved("low"),
        raw=moved("raw"),
        ratio=moved("ratio"),
        exposures=Exposures(*map(tuple, prepared["exposures"])) if "exposures" in prepared else None,
    )
