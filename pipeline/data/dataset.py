"""One prepared split on a device: training batches by step, whole images for evaluation.

All images lie in flat tensors, pixel after pixel, and a batch is one indexed read of them: no loop over samples,
whatever the images' sizes. On a CPU the tensors are memory-mapped files, so that memory doesn't grow with a data set.
A step's batch depends on (seed, step) alone, so that a resumed training sees what it would have seen.
"""

from __future__ import annotations

import warnings
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pipeline.data.degradations import add_noise, bicubic_upscale, darken
from pipeline.data.luma import coloured, luma
from pipeline.data.raw import PACKING, Exposures, amplify, demosaic_amplified, pack_bayer
from pipeline.data.storage import Prepared, bytes_of, load_split
from pipeline.errors import UserError

CANDIDATES = 4  # patches looked at for each one taken; the one with the largest variance is
RESIDENT = 8 * 2**30  # bytes; a larger split stays in its files, and a GPU gets its batches one by one


@dataclass(frozen=True)
class Images:
    """A split of N images. Sizes and first pixels count input pixels, each over `scale`² target pixels."""

    task: str  # "super_resolution", "low_light" or "restoration"
    names: list[str]
    scale: int
    sizes: np.ndarray  # int64 [N, 2]: input height and width
    first: np.ndarray  # int64 [N]: input pixels before each image's own
    first_high: np.ndarray  # int64 [N]: target pixels before each image's target
    high: Tensor  # uint8 [pixels, 3]; of real raw int16, to be read as uint16
    low: Tensor | None  # inputs that aren't made while training: uint8 [pixels, 3]
    raw: Tensor | None  # low light with a fixed exposure: int16 [samples]
    ratio: Tensor | None  # low light with a fixed exposure: float32 [N]
    exposures: Exposures | None  # synthetic low light: what training draws from
    noise: float | None  # restoration of noise: σ in 8-bit levels
    channels: int  # of what is given out, but for raw: 3 (RGB), or 1 (luma of what is stored)
    seed: int  # what the noise of whole images is drawn from, with their names
    device: torch.device  # of what is given out; the tensors above may lie on the CPU

    def __len__(self) -> int:
        return len(self.names)

    def batch(self, step: int, seed: int, batch: int, patch: int) -> tuple[Tensor, Tensor]:
        """One step's input [batch, C, patch, patch] and target [batch, 3, scale·patch, scale·patch], float32 in 0 … 1.

        C is 3, or 4 in low light; of luma both have one channel. Images and places are drawn evenly, the most varied of
        `CANDIDATES` places is taken, and flipped or turned in one of eight ways. In synthetic low light each patch gets
        an exposure ratio and noise of its own, and a camera where these are random; Gaussian noise is as fresh, and may
        leave 0 … 1.
        Bit-equal for equal arguments on one device. Raises UserError for a patch larger than an image.
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
        pixels = self._read(self.high, grid.targets())
        target = self._unit(pixels)
        if self.low is not None:
            return self._unit(self._read(self.low, grid.inputs())), target
        if self.noise is not None:
            return add_noise(target, self.noise, rng), target
        if self.exposures is not None:
            # The turned full-resolution RGB is sampled by the mosaic, and not a mosaic turned: the latter would move
            # red away from the corner of the 2×2 cell.
            return amplify(*darken(pixels, rng, self.exposures)), target
        return self._amplified(grid.samples(), grid.images, patch, patch), target

    def pair(self, i: int) -> tuple[Tensor, Tensor]:
        """Image `i` whole, always the same: input [1, C, h, w], target [1, 3, scale·h, scale·w], float32 in 0 … 1.

        Of luma both have one channel. In low light this needs a split with a fixed exposure: validation or test.
        """
        h, w = (int(side) for side in self.sizes[i])
        target = self._unit(self._whole(self.high, int(self.first_high[i]), self.scale * h, self.scale * w))
        if self.low is not None:
            return self._unit(self._whole(self.low, int(self.first[i]), h, w)), target
        if self.noise is not None:  # on the CPU: the same on every device
            rng = np.random.default_rng((self.seed, zlib.crc32(self.names[i].encode())))
            return add_noise(target.cpu(), self.noise, rng).to(self.device), target
        start = 4 * int(self.first[i])
        return self._amplified(slice(start, start + 4 * h * w), slice(i, i + 1), h, w), target

    def reference(self, i: int) -> Tensor:
        """What to beat on image `i`, like its target: bicubic, the amplified input in RGB, or the input."""
        image, _ = self.pair(i)
        if self.task == "super_resolution":
            return bicubic_upscale(image, self.scale)
        return demosaic_amplified(image) if self.task == "low_light" else image

    def picture(self, i: int, frame: Tensor) -> Tensor:
        """An output or target of image `i` as RGB [1, 3, H, W], to look at.

        Of luma the colours are those of the input, enlarged bicubically; grey where noise was added to luma alone.
        """
        if frame.shape[1] == 3:
            return frame
        if self.low is None:
            return frame.expand(-1, 3, -1, -1)
        h, w = (int(side) for side in self.sizes[i])
        given = _unit(self._whole(self.low, int(self.first[i]), h, w))
        return coloured(frame, bicubic_upscale(given, self.scale), self.task)

    def _unit(self, pixels: Tensor) -> Tensor:
        """Stored RGB as what the network works with, in 0 … 1."""
        image = _unit(pixels)
        return luma(image, self.task) if self.channels == 1 else image

    @property
    def _real_raw(self) -> bool:
        return self.raw is not None and self.exposures is None

    def _amplified(self, samples: Tensor | slice, images: Tensor | slice, h: int, w: int) -> Tensor:
        """Stored raw samples of images, amplified by these images' ratios: [N, 4, h, w]."""
        assert self.raw is not None  # low light with a fixed exposure has both
        assert self.ratio is not None
        return amplify(self.raw[samples].to(self.device).view(-1, 4, h, w), self.ratio[images].to(self.device))

    def _whole(self, pixels: Tensor, start: int, h: int, w: int) -> Tensor:
        return pixels[start : start + h * w].to(self.device).view(1, h, w, 3).permute(0, 3, 1, 2)

    def _read(self, pixels: Tensor, grid: Tensor) -> Tensor:
        """[B, 3, side, side] of the flat [pixels, 3] at the pixel numbers [B, side, side]."""
        # index_select, as it is three times faster here than pixels[...].
        read = pixels.index_select(0, grid.flatten()).to(self.device)
        return read.view(*grid.shape, 3).permute(0, 3, 1, 2).contiguous()

    def _choose(self, rng: np.random.Generator, batch: int, patch: int) -> _Grid:
        """Where the pixels of the chosen patches are."""
        count = batch * CANDIDATES
        image = rng.integers(len(self), size=count)
        height, width = self.sizes[image].T
        top = rng.integers(height - patch + 1)
        left = rng.integers(width - patch + 1)
        turn, flip_down, flip_right = rng.integers(2, size=(3, count)).astype(bool)
        if self._real_raw:  # a flipped patch begins a row or a column earlier, see _Grid
            flip_down &= np.where(turn, width, height) > patch
            flip_right &= np.where(turn, height, width) > patch
            top = np.maximum(top, np.where(turn, flip_right, flip_down))
            left = np.maximum(left, np.where(turn, flip_down, flip_right))
        first, first_high = self.first[image], self.first_high[image]
        columns = np.stack([image, first, first_high, height, width, top, left, turn, flip_down, flip_right])
        drawn = torch.from_numpy(columns).to(self.high.device)
        # One green sample for each input pixel is enough to rank places by variance. (Flips don't matter to it.)
        places = _Grid(drawn, patch, self.scale, self._real_raw).targets(every=self.scale).flatten()
        green = _levels(self.high.view(-1).index_select(0, places.mul_(3).add_(1))).view(count, -1)
        variance = green.square().mean(dim=1) - green.mean(dim=1).square()
        best = variance.view(batch, CANDIDATES).argmax(dim=1) + torch.arange(batch, device=drawn.device) * CANDIDATES
        return _Grid(drawn[:, best], patch, self.scale, self._real_raw)


@dataclass(frozen=True)
class _Grid:
    """Where patches lie.

    `drawn`, int64 [10, B]: image, first input pixel, first target pixel, height, width (of the input), top, left,
    turn, flip down, flip right. A flipped patch of real raw (`bayer`) begins one target row or column earlier, so that
    its first sample is red again; turning a mosaic leaves red where it is. The target is moved with it.
    """

    drawn: Tensor
    patch: int
    scale: int
    bayer: bool = False

    @property
    def images(self) -> Tensor:
        return self.drawn[0]

    def inputs(self) -> Tensor:
        """Input pixel numbers, int64 [B, patch, patch]."""
        return self.drawn[1][:, None, None] + self._inside(1)

    def targets(self, every: int = 1) -> Tensor:
        """Target pixel numbers, int64 [B, side, side] with side = scale·patch/every."""
        return self.drawn[2][:, None, None] + self._inside(self.scale, every)

    def samples(self) -> Tensor:
        """Numbers of packed raw samples, int64 [B, 4, patch, patch]."""
        first, height, width = (self.drawn[k][:, None, None] for k in (1, 3, 4))
        number = self._inside(2)
        row, column = number // (2 * width), number % (2 * width)
        channel = torch.empty(2, 2, dtype=torch.int64)
        for k, (dy, dx) in enumerate(PACKING):
            channel[dy, dx] = k
        plane = channel.to(number.device)[row % 2, column % 2]
        return pack_bayer(4 * first + (plane * height + row // 2) * width + column // 2)

    def _inside(self, scale: int, every: int = 1) -> Tensor:
        """Pixel numbers within an image `scale` times the input, int64 [B, side, side], side = scale·patch/every.

        Pixel (i, j) of the turned patch is start + i·down + j·right, with strides that swap for a turn and reverse for
        a flip: the eight orientations need no copy of their own.
        """
        width, top, left, turn, flip_down, flip_right = self.drawn[4:]
        last = scale * self.patch - 1 - self.bayer
        width = width * scale
        start = top * scale * width + left * scale
        down, right = torch.where(turn == 1, 1, width), torch.where(turn == 1, width, 1)
        start = start + last * (flip_down * down + flip_right * right)
        down, right = down * (1 - 2 * flip_down), right * (1 - 2 * flip_right)
        steps = torch.arange(0, scale * self.patch, every, device=self.drawn.device)
        rows = start[:, None] + down[:, None] * steps
        return rows[:, :, None] + (right[:, None] * steps)[:, None, :]


def _levels(pixels: Tensor) -> Tensor:
    """Levels as float32: 0 … 255, or 0 … 65535 of int16 that stands for uint16, in which torch can't select."""
    return pixels.float() if pixels.dtype == torch.uint8 else pixels.int().bitwise_and_(0xFFFF).float()


def _unit(pixels: Tensor) -> Tensor:
    """The same as 0 … 1."""
    return _levels(pixels).div_(255 if pixels.dtype == torch.uint8 else 65535)


def load_images(source: Path | Prepared, device: torch.device | str) -> Images:
    """A prepared split, or the folder that holds it, for batches on `device`. UserError for unreadable files.

    On a CPU the pixels stay in their files. A GPU takes them whole up to `RESIDENT` bytes.
    """
    prepared = load_split(source) if isinstance(source, Path) else source
    device = torch.device(device)
    home = device if bytes_of(prepared) <= RESIDENT else torch.device("cpu")

    def moved(key: str) -> Tensor:
        array = prepared[key]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # a file mapped for reading can't be written to: nor is it
            return torch.from_numpy(array.view(np.int16) if array.dtype == np.uint16 else array).to(home)

    scale, pixels = int(prepared["scale"]), prepared["sizes"].prod(axis=1)
    target_of = prepared.get("shown", np.arange(len(pixels)))
    _, owner = np.unique(target_of, return_index=True)  # each target's first image
    targets = pixels[owner] * scale**2
    return Images(
        task=str(prepared["task"]),
        names=[str(name) for name in prepared["names"]],
        scale=scale,
        sizes=prepared["sizes"],
        first=np.cumsum(pixels) - pixels,
        first_high=(np.cumsum(targets) - targets)[target_of],
        high=moved("high"),
        low=moved("low") if "low" in prepared else None,
        raw=moved("raw") if "raw" in prepared else None,
        ratio=moved("ratio") if "ratio" in prepared else None,
        exposures=_exposures(prepared),
        noise=float(prepared["noise"]) if "noise" in prepared else None,
        channels=int(prepared.get("channels", 3)),
        seed=int(prepared.get("seed", 0)),
        device=device,
    )


def _exposures(prepared: Prepared) -> Exposures | None:
    """What synthetic low light draws from."""
    if "exposures" not in prepared:
        return None
    ratio, shot = (tuple(pair) for pair in prepared["exposures"].tolist())
    return Exposures(ratio, shot, "one" if prepared.get("cameras") == "one" else "random")
