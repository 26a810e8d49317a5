"""A reason of the table, raised."""

from __future__ import annotations

from collections.abc import Mapping

from tandem_router.errors.codes import Code
from tandem_router.errors.reasons import Reason
from tandem_router.errors.table import TABLE

__all__ = ["TandemError"]


class TandemError(Exception):
    """A refusal or failure with a reason of the table.

    `sentence` says what happened in this case, without the reason in front; `str(error)` puts the reason (and the
    field, if any) first because command-line clients print nothing else.
    """

    def __init__(
        self,
        reason: Reason,
        sentence: str,
        *,
        field: str | None = None,
        metadata: Mapping[str, str] | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        """Args:
        reason: a row of the table.
        sentence: one sentence for a person, with the numbers of this case.
        field: path of the request field at fault, e.g. "sampling.top_p"; None when no field is.
        metadata: values quoted in the sentence, for programs (`ErrorInfo.metadata`).
        retry_after_s: seconds after which a repeat is sensible (`RetryInfo`); None sends no hint.
        """
        super().__init__(reason, sentence)
        self.reason = reason
        self.sentence = sentence
        self.field = field
        self.metadata: Mapping[str, str] = dict(metadata or {})
        self.retry_after_s = retry_after_s

    @property
    def code(self) -> Code:
        """The gRPC code of the reason."""
        return TABLE[self.reason].code

    @property
    def is_retryable(self) -> bool:
        """Whether the same request may succeed on another attempt."""
        return TABLE[self.reason].retryable

    def __str__(self) -> str:
        where = f"{self.field}: " if self.field else ""
        return f"{self.reason}: {where}{self.sentence}"
