"""Architecture-aware channel pruning for image-restoration networks.

`from pipeline import Pruner` is the way in for who has a network and a folder of images: pruner.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.pruner import Pruner

__all__ = ["Pruner"]


def __getattr__(name: str) -> Any:
    """What the package offers is imported when it is asked for: torch takes seconds, and every command comes by."""
    if name == "Pruner":
        from pipeline.pruner import Pruner

        return Pruner
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
