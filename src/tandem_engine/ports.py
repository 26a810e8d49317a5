"""What the engine's step loop asks of the outside: faults to imitate. `NoFaults` is the healthy body."""

from __future__ import annotations

from typing import Protocol

__all__ = ["FaultPort", "NoFaults"]


class FaultPort(Protocol):
    """Knobs the step loop consults. Transfer and wire faults live with the servers, not here."""

    @property
    def corrupt_on_abort(self) -> bool:
        """True: aborting a decode in TRANSFER frees its landing pages at once, although the writer goes on writing."""
        ...

    async def before_step(self, step: int) -> None:
        """Awaited before each compute step (`step` counts from 0): sleep to be slow, never return to hang."""
        ...

    def on_token(self, request_id: str, completion_tokens: int) -> None:
        """Called for each sampled token, before it is emitted; may end the process or raise (the loop then fails)."""
        ...


class NoFaults:
    """A healthy engine."""

    @property
    def corrupt_on_abort(self) -> bool:
        return False

    async def before_step(self, step: int) -> None:
        return None

    def on_token(self, request_id: str, completion_tokens: int) -> None:
        return None
