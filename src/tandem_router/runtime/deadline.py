"""A second, outer limit on every call to a peer: ports' bodies keep timeouts of their own, this trusts none."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

from tandem_router.errors import Code, Reason
from tandem_router.model.failure import EngineFailure

__all__ = ["within"]

_T = TypeVar("_T")

_SLACK_S = 1.0
"""The body's own timeout comes first and knows more about what it waited for."""


async def within(timeout_s: float, what: str, call: Awaitable[_T]) -> _T:
    """The call's result; EngineFailure(WORKER_UNREACHABLE) when it is not there one second after its own timeout."""
    try:
        async with asyncio.timeout(timeout_s + _SLACK_S):
            return await call
    except TimeoutError:
        raise EngineFailure(
            Reason.WORKER_UNREACHABLE,
            f"{what} gave no answer within {timeout_s + _SLACK_S:g} s",
            code=Code.DEADLINE_EXCEEDED,
        ) from None
