"""Stands in for the one thing that keeps vLLM's Mooncake connector off a CPU: it asks torch which accelerator it is on.

On the PYTHONPATH of Mooncake's workers only; Python imports a module of this name by itself. vLLM 0.32.0 asks
`torch.accelerator.current_device_index()`, which raises where there is none, and hands the answer to its own platform,
which takes any number on a CPU. Ends with the vLLM that does not ask on a CPU.
"""

from __future__ import annotations

import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

_NAME = "torch.accelerator"


class _Loader(Loader):
    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        module.current_device_index = lambda: 0  # type: ignore[attr-defined]


class _Finder(MetaPathFinder):
    def find_spec(self, name: str, path: object = None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != _NAME:
            return None
        spec = PathFinder.find_spec(name, path)  # type: ignore[arg-type]
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader)
        return spec


sys.meta_path.insert(0, _Finder())
