"""A forward may change its input in place: each one gets an image of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from pipeline import export
from pipeline.data.dataset import Images
from pipeline.evaluation import crops, metrics
from pipeline.latency import layer_times, network_times


class Brighter(nn.Module):
    """Adds to its input in place, and notes the first value that it gets."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.got = nn.Conv2d(3, 3, 1), []

    def forward(self, x: Tensor) -> Tensor:
        if type(x) is Tensor:  # not when it is traced or counted
            self.got.append(float(x.detach().flatten()[0]))
        x += 0.25
        return self.layer(x).clamp(0, 1).repeat_interleave(2, 2).repeat_interleave(2, 3)


def test_one_image_given_to_several_forwards_or_several_times_stays_as_it_is(
    splits: dict[str, Images], tmp_path: Path
) -> None:
    networks: dict[str, Any] = {"baseline": Brighter(), "D": Brighter()}
    networks["D"].load_state_dict(networks["baseline"].state_dict())
    layer_times.measure(networks, 8, 3, 2)
    call, image = network_times.on_torch(networks["D"], "cpu"), torch.full((1, 3, 8, 8), 0.5)
    call(image)
    call(image)
    with torch.no_grad():
        assert torch.equal(export.run(networks["D"], image), export.run(networks["baseline"], image))
    assert float(image.std()) == 0
    timed = {round(value, 6) for network in networks.values() for value in network.got}
    assert len(timed) == 2  # the random image of the one, and 0.5

    crops.save_frames(tmp_path, splits["validation"], 0, networks)
    frames = [np.asarray(Image.open(tmp_path / f"{name}.png")) for name in networks]
    assert np.array_equal(*frames)
    measured = [metrics.measure(network, splits["validation"], 0) for network in networks.values()]
    assert measured[0] == measured[1] == metrics.measure(networks["D"], splits["validation"], 0)
