"""A watch over the prefill worker that a decode leg would wait for in vain: told of its loss, once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from tandem_router.model.failure import Failure
from tandem_router.runtime.block_holder import BlockHolder
from tandem_router.runtime.relay_environment import RelayEnvironment

__all__ = ["PrefillWatch"]

_LOOK_EVERY_S = 1.0
"""Most transfers are over long before the first look."""


class PrefillWatch:
    """Looks after the holder of the blocks of one decode leg until stopped; tells of its loss once."""

    def __init__(self, env: RelayEnvironment, holder: BlockHolder, tell: Callable[[Failure], None]) -> None:
        self._env = env
        self._holder = holder
        self._tell = tell
        self._arm()

    def stop(self) -> None:
        """Look no more; idempotent."""
        self._timer.cancel()

    def _arm(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(_LOOK_EVERY_S, self._look)

    def _look(self) -> None:
        loss = self._holder.loss(self._env)
        if loss is None:
            self._arm()
        else:
            self._tell(loss)
