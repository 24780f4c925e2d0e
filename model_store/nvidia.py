"""Nvidia: finds the libraries of NVIDIA's Python packages.

The packages install the libraries in folders below `nvidia/` of site-packages, where the dynamic
linker does not search.
"""

from __future__ import annotations

import importlib.util
import pathlib


def find_library(library: str) -> pathlib.Path | None:
    """Return the path of a library. None: no package contains it.

    Args:
        library: Path of the library below `nvidia/`.
    """
    spec = importlib.util.find_spec("nvidia")
    folders = (spec and spec.submodule_search_locations) or ()
    paths = (pathlib.Path(folder, library) for folder in folders)
    return next((path for path in paths if path.is_file()), None)
