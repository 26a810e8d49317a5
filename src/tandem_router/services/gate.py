"""Which calls go in while the server shuts down, and how those that are inside come out.

Open: every call goes in. Draining: calls that begin nothing go in, the others are refused with DRAINING. Shut: no call
goes in, and those inside are interrupted and answered with DRAINING, so that a watch ends with a status that says why
and not with a broken connection.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from tandem_router.errors import Reason, TandemError

__all__ = ["Gate"]

_BEGIN_NOTHING = ("Get", "List", "Watch", "Plan", "Tokenize", "Detokenize", "Abort", "Release", "Resume", "Stop")
"""How the names of rpcs begin that read, end, or go on with what runs; any other changes or starts something."""


class Gate:
    """One for all listeners of a server. Belongs to the event loop."""

    def __init__(self) -> None:
        self._is_draining = False
        self._is_shut = False
        self._inside: dict[asyncio.Task[object], None] = {}

    def drain(self) -> None:
        """Refuse what begins something, from now on; idempotent."""
        self._is_draining = True

    def shut(self) -> None:
        """Refuse everything and interrupt what is inside; idempotent."""
        self._is_draining = self._is_shut = True
        for task in list(self._inside):
            task.cancel()

    @contextmanager
    def inside(self, method: str) -> Iterator[None]:
        """The time that a call of `method` ("/package.Service/Rpc") spends in its handler.

        Raises DRAINING when it may not go in, and in place of the CancelledError by which `shut` interrupts it.
        """
        self._check(method)
        task = asyncio.current_task()
        assert task is not None, "handlers run in tasks"
        self._inside[task] = None
        cancels_before = task.cancelling()
        try:
            yield
        except asyncio.CancelledError:
            # Ours ends here; the client's own cancel, alone or on top of ours, goes on.
            if not self._is_shut or task.uncancel() > cancels_before:
                raise
            raise _draining("the router shut down before the call ended") from None
        finally:
            del self._inside[task]

    def _check(self, method: str) -> None:
        if self._is_shut or (self._is_draining and not method.rpartition("/")[2].startswith(_BEGIN_NOTHING)):
            raise _draining("the router is shutting down")

    def __repr__(self) -> str:
        state = "shut" if self._is_shut else "draining" if self._is_draining else "open"
        return f"<Gate {state}, {len(self._inside)} calls inside>"


def _draining(sentence: str) -> TandemError:
    return TandemError(Reason.DRAINING, sentence)
