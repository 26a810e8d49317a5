"""Where a model's tokenizer and chat template come from."""

from __future__ import annotations

from dataclasses import dataclass, field

from tandem_router.model.ids import WorkerId

__all__ = ["TokenizerSource"]


@dataclass(frozen=True, slots=True)
class TokenizerSource:
    """What one worker's spec says about a model's text. Two are equal where they say the same, whoever says it."""

    path: str | None = None
    """A folder, tokenizer.json or zip on the router's machine; None = the archive that the worker hands out."""
    chat_template: str | None = None
    """Jinja2; None = the tokenizer's own."""
    worker_id: WorkerId | None = field(default=None, compare=False)
    """Whose spec it is."""
    digest: str | None = field(default=None, compare=False)
    """Of the worker's archive, as `TextCodecs.digest` says; None where nothing of one was loaded."""

    @property
    def is_stated(self) -> bool:
        """Whether an operator chose any of it."""
        return self.path is not None or self.chat_template is not None
