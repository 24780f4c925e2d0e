"""A fake dynamic linker, for tests that load NVIDIA's libraries."""

from __future__ import annotations

import ctypes
import pathlib


class Linker:
    """Replaces `ctypes.CDLL`: records what is loaded, and raises for the library `broken`."""

    def __init__(self, problem: str) -> None:
        """
        Args:
            problem: Error of the broken library.
        """
        self.loaded: list[pathlib.Path] = []
        self.broken = ""
        self._problem = problem

    def __call__(self, path: str, mode: int) -> None:
        assert mode == ctypes.RTLD_GLOBAL
        if pathlib.Path(path).name == self.broken:
            raise OSError(f"{path}: {self._problem}")
        self.loaded.append(pathlib.Path(path))
