"""A connection that is either up or says that it is not: the channel, and the only code that asks it to connect.

After a break a channel stays IDLE until somebody asks it to connect. Nobody but `connect` asks, so a channel that is
READY without `connect` having run again is still the connection that was verified.
"""

from __future__ import annotations

import asyncio
import contextlib

import grpc
import grpc.aio
from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_attempt, wait_exponential, wait_random

from tandem_router.errors import Code, Reason
from tandem_router.model.failure import EngineFailure

__all__ = ["Connection"]

_BACKOFF_INITIAL_S = 0.05
_BACKOFF_MAX_S = 0.5
_JITTER_S = 0.05
"""A fleet that lost one peer must not knock in step."""

_RETRY_WINDOW_S = 0.25
"""Longer than the channel's first reconnect back-off (100 ms) and a local connect."""


class _NotConnectedError(Exception):
    """One try to connect failed."""


class Connection:
    """The channel to one worker. Owned by one engine client, which closes it."""

    def __init__(self, channel: grpc.aio.Channel, where: str) -> None:
        """Args:
        where: the worker's URL, for messages.
        """
        self.channel = channel
        self.where = where
        self._is_closed = False

    @property
    def is_ready(self) -> bool:
        """Whether a transport is up at this moment."""
        return not self._is_closed and self.channel.get_state() is grpc.ChannelConnectivity.READY

    @property
    def is_closed(self) -> bool:
        """Whether `close` was called."""
        return self._is_closed

    async def connect(self, timeout_s: float, *, attempts: int = 1) -> None:
        """Return when the transport is up; raises EngineFailure(WORKER_UNREACHABLE) with was_sent=False.

        attempts: tries, with a growing pause between them; a refused connection is told after the last one, which takes
        a fraction of a second, a silent one at the timeout.
        """
        try:
            async with asyncio.timeout(timeout_s):
                async for attempt in AsyncRetrying(
                    retry=retry_if_exception_type(_NotConnectedError),
                    stop=stop_after_attempt(attempts),
                    wait=wait_exponential(multiplier=_BACKOFF_INITIAL_S, max=_BACKOFF_MAX_S)
                    + wait_random(0, _JITTER_S),
                    reraise=True,
                ):
                    with attempt:
                        await self._connect_once()
        except _NotConnectedError:
            raise self._unreachable("the connection was refused or broke while it was being made") from None
        except TimeoutError:
            raise self._unreachable(f"no connection within {timeout_s:g} s") from None

    async def _connect_once(self) -> None:
        has_tried = False
        while True:
            if self._is_closed:
                raise self._unreachable("it was closed by us")
            state = self.channel.get_state(try_to_connect=True)
            if state is grpc.ChannelConnectivity.READY:
                return
            if state is not grpc.ChannelConnectivity.TRANSIENT_FAILURE:
                has_tried = True
                await self.channel.wait_for_state_change(state)
                continue
            if has_tried:
                raise _NotConnectedError
            # From here grpc tries again by itself, and shows TRANSIENT_FAILURE until one of its tries succeeds.
            has_tried = True
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.channel.wait_for_state_change(state), _RETRY_WINDOW_S)

    def _unreachable(self, why: str) -> EngineFailure:
        return EngineFailure(
            Reason.WORKER_UNREACHABLE,
            f"{self.where}: {why}",
            code=Code.UNAVAILABLE,
            was_sent=False,
            connection_lost=True,
        )

    async def close(self) -> None:
        """Close the channel; running calls end as cancelled. Idempotent."""
        if not self._is_closed:
            self._is_closed = True
            await self.channel.close()
