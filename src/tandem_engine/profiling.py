"""The engine's profiler: how long each step took and what was in it, as a trace file in Chrome's JSON format."""

from __future__ import annotations

import itertools
import json
import logging
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

__all__ = ["MAX_STEPS", "ProfilerError", "RankStep", "StepProfiler"]

MAX_STEPS = 100_000
"""Steps of one profile at the most; it ends by itself then. A step is about 300 bytes of the file."""

_log = logging.getLogger(__name__)


class ProfilerError(Exception):
    """The profiler is in the other state, or cannot write; the text says which."""


@dataclass(frozen=True, slots=True)
class RankStep:
    """What one rank computed in one step: `rows` in all, `prompt_tokens` of them of `prompts`, `samples` drawn."""

    rank: int
    rows: int
    prompt_tokens: int
    prompts: int
    samples: int


class StepProfiler:
    """Collects between `start` and `stop`, or for a number of steps. Lives on the event loop."""

    def __init__(self) -> None:
        self._folder: Path | None = None
        self._first = 0
        self._limit = MAX_STEPS
        self._events: list[dict[str, Any]] = []
        self._taken = 0
        self._numbers = itertools.count(1)

    @property
    def is_active(self) -> bool:
        return self._folder is not None

    def start(self, folder: Path, *, first_step: int = 0, num_steps: int | None = None) -> None:
        """Collects from step `first_step` of the engine's life on, `num_steps` of them or until `stop`.

        Raises ProfilerError when it is collecting already, when `num_steps` is below 1, or when `folder` can neither be
        found nor made.
        """
        if self.is_active:
            raise ProfilerError("Profiling is already in progress")
        if num_steps is not None and num_steps < 1:
            raise ProfilerError(f"num_steps must be at least 1, got {num_steps}")
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ProfilerError(f"output_dir {folder}: {error.strerror}") from None
        except ValueError as error:  # a NUL in the name
            raise ProfilerError(f"output_dir {str(folder)!r}: {error}") from None
        self._folder, self._first, self._limit = folder, first_step, min(num_steps or MAX_STEPS, MAX_STEPS)
        self._events, self._taken = [], 0

    def took(self, step: int, began_s: float, ended_s: float, ranks: Sequence[RankStep]) -> None:
        """One step is over; times are of the engine's clock."""
        if not self.is_active or step < self._first:
            return
        times = {"ts": began_s * 1e6, "dur": (ended_s - began_s) * 1e6}
        for rank in ranks:
            where = {"name": "step", "ph": "X", "pid": os.getpid(), "tid": rank.rank}
            self._events.append({**where, **times, "args": {"step": step, **asdict(rank)}})
        self._taken += 1
        if self._taken >= self._limit:
            try:
                self.stop()
            except ProfilerError as error:
                _log.error("the trace is lost: %s", error)

    def stop(self) -> Path:
        """Writes the trace and returns its path. Raises ProfilerError when not collecting, or when it cannot write."""
        folder, self._folder = self._folder, None
        if folder is None:
            raise ProfilerError("Profiling is not in progress")
        path = folder / f"tandem-engine-{os.getpid()}-{next(self._numbers)}.trace.json"
        events, self._events = self._events, []
        try:
            path.write_text(json.dumps({"traceEvents": events, "displayTimeUnit": "ms"}), encoding="utf-8")
        except OSError as error:
            raise ProfilerError(f"{path}: {error.strerror}") from None
        return path
