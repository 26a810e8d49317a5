"""Faults that the engine commits on purpose: the plan as a value, its flag syntax, and the step loop's fault port."""

from __future__ import annotations

import asyncio
import os
import re
import signal
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from typing import Any

__all__ = ["MAX_LATENCY_S", "FaultError", "FaultPlan", "Faults", "parse_duration", "parse_faults"]

MAX_LATENCY_S = 60.0
"""Longest latency of a plan: above it a test means `hang`."""

_UNITS_S = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(us|ms|s|m)")


class FaultError(ValueError):
    """A plan that cannot be: the text names the field and its range."""


@dataclass(frozen=True, slots=True)
class FaultPlan:
    """What to do wrong; the default does nothing wrong. Fields mean what tandem.engine.v1.FaultPlan says.

    Latencies are seconds in [0, 60]. Token and page numbers count from 0 per request. `refuse_code` is a gRPC status
    number, 1 to 16. Raises FaultError when built with a value out of range.
    """

    step_latency: float = 0.0
    transfer_latency_per_page: float = 0.0
    crash_at_token: int | None = None
    hang_at_token: int | None = None
    refuse: bool = False
    refuse_code: int | None = None
    drop_page: int | None = None
    flip_page: int | None = None
    fail_transfer: bool = False
    corrupt_on_abort: bool = False
    hang_transfer: bool = False
    dead_engine: bool = False

    def __post_init__(self) -> None:
        for name in ("step_latency", "transfer_latency_per_page"):
            if not 0.0 <= getattr(self, name) <= MAX_LATENCY_S:
                raise FaultError(f"{name} must be in [0, {MAX_LATENCY_S:g}] s, got {getattr(self, name)}")
        for name in ("crash_at_token", "hang_at_token", "drop_page", "flip_page"):
            value = getattr(self, name)
            if value is not None and value < 0:
                raise FaultError(f"{name} counts from 0, got {value}")
        if self.refuse_code is not None and not 1 <= self.refuse_code <= 16:
            raise FaultError(f"refuse_code must be a gRPC status number in [1, 16], got {self.refuse_code}")


def parse_duration(text: str) -> float:
    """Seconds in `text`: a number with a unit, us, ms, s or m ("20ms", "1.5s"). Raises FaultError."""
    match = _DURATION.fullmatch(text.strip())
    if match is None:
        raise FaultError(f"{text!r} is not a duration: write a number and us, ms, s or m, like 20ms")
    return float(match[1]) * _UNITS_S[match[2]]


def parse_faults(flags: Iterable[str]) -> FaultPlan:
    """The plan that `--fault` values like "step_latency=20ms", "drop_page=3", "refuse" describe. Raises FaultError."""
    kinds = {field.name: str(field.type) for field in fields(FaultPlan)}
    values: dict[str, Any] = {}
    for flag in flags:
        name, separator, text = flag.partition("=")
        if name not in kinds:
            raise FaultError(f"unknown fault {name!r}; known: {', '.join(kinds)}")
        values[name] = _value(name, kinds[name], text if separator else None)
    return FaultPlan(**values)


def _value(name: str, kind: str, text: str | None) -> float | int | bool:
    if kind == "bool":
        if text not in (None, "true", "false"):
            raise FaultError(f"{name} is true or false, got {text!r}")
        return text != "false"
    if text is None:
        raise FaultError(f"{name} needs a value: {name}=...")
    if kind == "float":
        return parse_duration(text)
    if not text.isascii() or not text.isdigit():
        raise FaultError(f"{name} must be a whole number, got {text!r}")
    return int(text)


def _kill_this_process() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class Faults:
    """The plan in force, the step loop's FaultPort, and the places where the wire waits or breaks because of it.

    `kill` is what crash_at_token does; tests that share the process pass something milder. A hang never ends: `set`
    can end latencies and a hanging transfer, not a loop that stopped.
    """

    def __init__(self, plan: FaultPlan | None = None, *, kill: Callable[[], None] = _kill_this_process) -> None:
        self._plan = plan or FaultPlan()
        self._kill = kill
        self._hung = False
        self._listeners: list[Callable[[FaultPlan], None]] = []
        self._changed = asyncio.Event()

    @property
    def plan(self) -> FaultPlan:
        return self._plan

    @property
    def is_hung(self) -> bool:
        """True once hang_at_token has struck: nothing is computed or emitted any more."""
        return self._hung

    def set(self, plan: FaultPlan) -> None:
        """Puts `plan` in force for running and coming requests, and tells every listener."""
        self._plan = plan
        self._changed.set()
        self._changed = asyncio.Event()
        for listener in self._listeners:
            listener(plan)

    def on_change(self, listener: Callable[[FaultPlan], None]) -> None:
        """Has `listener` called with every later plan."""
        self._listeners.append(listener)

    async def while_plan(self, holds: Callable[[FaultPlan], bool]) -> None:
        """Returns as soon as the plan in force does not hold."""
        while holds(self._plan):
            await self._changed.wait()

    async def linger(self, latency_of: Callable[[FaultPlan], float]) -> None:
        """Waits for as long as the plan says; a plan that changes meanwhile counts from the wait's start."""
        loop = asyncio.get_running_loop()
        started_s = loop.time()
        while (remaining_s := started_s + latency_of(self._plan) - loop.time()) > 0:
            try:
                async with asyncio.timeout(remaining_s):
                    await self._changed.wait()
            except TimeoutError:
                return

    async def gate(self) -> None:
        """Passes at once while tokens flow; never returns after a hang."""
        if self._hung:
            await asyncio.get_running_loop().create_future()

    # The FaultPort of the step loop.

    @property
    def corrupt_on_abort(self) -> bool:
        return self._plan.corrupt_on_abort

    async def before_step(self, step: int) -> None:
        await self.gate()
        await self.linger(lambda plan: plan.step_latency)

    def on_token(self, request_id: str, completion_tokens: int) -> None:
        if self._plan.crash_at_token == completion_tokens - 1:
            self._kill()
        if self._plan.hang_at_token == completion_tokens - 1:
            self._hung = True
