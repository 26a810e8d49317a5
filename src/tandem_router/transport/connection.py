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

from tandem_router.errors import Reason
from tandem_router.model.failure import EngineFailure
from tandem_router.transport.connect_failures import connect_failure, unreachable
from tandem_router.transport.failures import details_of, seconds
from tandem_router.transport.statusless import on_channel
from tandem_router.transport.tls import ConnectionTls

__all__ = ["Connection"]

_BACKOFF_INITIAL_S = 0.05
_BACKOFF_MAX_S = 0.5
_JITTER_S = 0.05
"""A fleet that lost one peer must not knock in step."""

_RETRY_WINDOW_S = 0.25
"""Longer than the channel's first reconnect back-off (100 ms) and a local connect."""
_ASK_WHY_S = 1.0
_ASK_WHY = "/grpc.health.v1.Health/Check"
"""Only a call is told why there is no connection; this one is harmless should there be one by then."""


class _NotConnectedError(Exception):
    """One try to connect failed; the text is grpc's."""


class Connection:
    """The channel to one worker. Owned by one engine client, which closes it."""

    def __init__(self, channel: grpc.aio.Channel, where: str, tls: ConnectionTls | None = None) -> None:
        """Args:
        where: the worker's URL.
        tls: what the channel was made with; None = plain.
        """
        self.channel = channel
        self.where = where
        self._tls = tls
        self._is_closed = False
        self._said: str | None = None

    @property
    def is_ready(self) -> bool:
        """Whether a transport is up at this moment."""
        return not self._is_closed and self.channel.get_state() is grpc.ChannelConnectivity.READY

    @property
    def is_closed(self) -> bool:
        """Whether the channel takes no further call, whoever closed it."""
        return self._is_closed or self.channel.get_state() is grpc.ChannelConnectivity.SHUTDOWN

    async def connect(self, timeout_s: float, *, attempts: int = 1) -> None:
        """Return when the transport is up; raises EngineFailure(WORKER_UNREACHABLE, WORKER_TLS_FAILED), was_sent=False.

        attempts: tries, with a growing pause between them; a refused connection is told after the last one, which takes
        a fraction of a second, a silent one at the timeout. A timeout before the last try tells why the tries so far
        have failed, where any has.
        """
        self._said = None
        try:
            async with asyncio.timeout(timeout_s):
                async for attempt in AsyncRetrying(
                    retry=retry_if_exception_type(_NotConnectedError),
                    stop=stop_after_attempt(attempts),
                    wait=wait_exponential(multiplier=_BACKOFF_INITIAL_S, max=_BACKOFF_MAX_S)
                    + wait_random(0, _JITTER_S),
                    reraise=True,
                ):
                    with attempt, on_channel(self):
                        await self._connect_once()
        except _NotConnectedError as error:
            raise await self._failure(str(error)) from None
        except TimeoutError:
            what = "connection" if self._tls is None else "connection with TLS"
            late = f"no {what} within {seconds(timeout_s)}"
            if self._said is None:
                raise unreachable(self.where, late) from None
            raise _also(await self._failure(self._said), late) from None

    async def reconnect(self, timeout_s: float) -> None:
        """As `connect`, after a break; raises WORKER_LOST where another certificate than this channel's is to be used.

        A channel keeps the certificates that it was made with, so another one has to be dialled.
        """
        if not self.is_ready and self._tls is not None and self._tls.is_outdated:
            raise EngineFailure(
                Reason.WORKER_LOST,
                f"{self.where}: the connection broke, and its certificates have been replaced since",
                was_sent=False,
                connection_lost=True,
            )
        await self.connect(timeout_s)

    async def _failure(self, said: str) -> EngineFailure:
        has_certificate = self._tls is not None and self._tls.material.certificate is not None
        return await connect_failure(self.where, said, has_certificate=has_certificate)

    async def _connect_once(self) -> None:
        has_tried = False
        while True:
            if self.is_closed:
                raise unreachable(self.where, "it was closed by us")
            state = self.channel.get_state(try_to_connect=True)
            if state is grpc.ChannelConnectivity.READY:
                return
            if state is not grpc.ChannelConnectivity.TRANSIENT_FAILURE:
                has_tried = True
                await self.channel.wait_for_state_change(state)
                continue
            if has_tried:
                why = await self._why()
                if why is None:
                    continue
                raise _NotConnectedError(why)
            # From here grpc tries again by itself, and shows TRANSIENT_FAILURE until one of its tries succeeds.
            has_tried = True
            await self._why()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.channel.wait_for_state_change(state), _RETRY_WINDOW_S)

    async def _why(self) -> str | None:
        """Why the last try failed, in grpc's words; None where there is a connection by now."""
        ask: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = self.channel.unary_unary(_ASK_WHY)
        try:
            await ask(b"", timeout=_ASK_WHY_S)
        except grpc.aio.AioRpcError as error:
            if not self.is_ready:
                self._said = details_of(error)
                return self._said
        return None

    async def close(self) -> None:
        """Close the channel; running calls end as cancelled. Idempotent."""
        if not self._is_closed:
            self._is_closed = True
            await self.channel.close()


def _also(failure: EngineFailure, late: str) -> EngineFailure:
    """The last known cause, and that the time is over."""
    return EngineFailure(
        failure.reason, f"{failure.sentence}; {late}", code=failure.code, was_sent=False, connection_lost=True
    )
