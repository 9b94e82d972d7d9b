"""Weight norm in files: what can't be folded is named, a vector's lengths are of its single values."""

import pytest
import torch

from pipeline.errors import UserError
from pipeline.networks.folded import folded


def test_vector_under_weight_norm_takes_its_lengths_value_by_value():
    state = {"w_g": torch.tensor([3.0, 3.0, 4.0]), "w_v": torch.tensor([1.0, -2.0, 2.0])}
    assert folded(state, {"w"})["w"].tolist() == [3.0, -3.0, 4.0]


@pytest.mark.parametrize(
    ("length", "way", "said"),
    [
        (torch.ones(3, 1), torch.ones(4, 2), r"w_g of shape \[3, 1\], w_v of \[4, 2\]"),
        (torch.ones(4, 1), torch.ones(4, 2, dtype=torch.int64), "w_g and its kernel must be floating-point"),
        (torch.ones(4, 1), torch.ones(4, 2, dtype=torch.complex64), "w_g and its kernel must be floating-point"),
    ],
)
def test_weight_norm_that_does_not_fit_is_named(length, way, said):
    with pytest.raises(UserError, match=said):
        folded({"w_g": length, "w_v": way}, {"w"})
