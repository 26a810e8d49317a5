"""Stands in, inside a real engine's processes, for what this machine lacks; the engine's own files are as they are.

On the PYTHONPATH of vLLM's workers only; Python imports a module of this name by itself. TANDEM_STAND_INS names which:

- `yield`: vLLM's processes wait for each other by calling `os.sched_yield()` in a loop. Beside NIXL's thread, which
  polls without pause, on two cores under Linux 6.18, one answer in four then took 2 to 30 s, and with this none; what
  the kernel does there was not found out. A short sleep is what vLLM itself does instead on older Pythons.
- `accelerator`: vLLM 0.32.0's Mooncake connector asks `torch.accelerator.current_device_index()`, which raises where
  there is none, and hands the answer to its own platform, which takes any number on a CPU. Ends with the vLLM that does
  not ask on a CPU.
"""

from __future__ import annotations

import os
import sys
import time
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

_NAME = "torch.accelerator"
_PAUSE_S = 0.0002
"""Some twenty switches between threads: short beside a forward pass of the demo model, 5 ms."""


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


_NAMES = os.environ.get("TANDEM_STAND_INS", "").split()
if "yield" in _NAMES:
    os.sched_yield = lambda: time.sleep(_PAUSE_S)
if "accelerator" in _NAMES:
    sys.meta_path.insert(0, _Finder())
