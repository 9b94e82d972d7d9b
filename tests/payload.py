"""What a harmful file holds: an object whose unpickling runs code."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any


class Payload:
    """Pickles as a call that creates a folder."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.target),)
