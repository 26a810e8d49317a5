"""A failure as a value: what jobs, conditions, attempts and legs remember of an error."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from tandem_router.errors import Code, Reason, TandemError

__all__ = ["EngineFailure", "Failure"]


@dataclasses.dataclass(frozen=True, slots=True)
class Failure:
    """An error that has been recorded instead of raised."""

    reason: Reason
    sentence: str
    metadata: Mapping[str, str] = dataclasses.field(default_factory=dict)
    field: str | None = None
    """Path of the request field at fault; None when no field is."""

    @staticmethod
    def of(error: TandemError) -> Failure:
        """The record of a raised error."""
        return Failure(error.reason, error.sentence, error.metadata, error.field)

    def to_error(self, retry_after_s: float | None = None) -> TandemError:
        """The error again, to be raised to a caller."""
        return TandemError(
            self.reason, self.sentence, field=self.field, metadata=self.metadata, retry_after_s=retry_after_s
        )


class EngineFailure(Exception):
    """A call to an engine failed; raised by `EngineClient` bodies and nothing else, so no library error passes them."""

    def __init__(
        self,
        reason: Reason,
        sentence: str,
        *,
        code: Code = Code.UNAVAILABLE,
        was_sent: bool = True,
        connection_lost: bool = False,
        field: str | None = None,
    ) -> None:
        """Args:
        reason: row of the table that fits (WORKER_UNREACHABLE, WORKER_LOST, WORKER_REFUSED, ENGINE_ERROR, ...).
        sentence: what the engine or the transport said, for people.
        code: the status the engine answered, as it stood on the wire.
        was_sent: False only when the transport proves that no byte of the request left; a KV handle survives only that.
        connection_lost: True when the connection itself broke, which is news about the worker, not about the request.
        field: path of the caller's field that the engine's words are about; None when they are about none.
        """
        super().__init__(sentence)
        self.reason = reason
        self.sentence = sentence
        self.code = code
        self.was_sent = was_sent
        self.connection_lost = connection_lost
        self.field = field
