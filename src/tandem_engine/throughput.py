"""Tokens per second over a short window."""

from __future__ import annotations

from collections import deque

__all__ = ["TokenRate"]


class TokenRate:
    """Rate over the last `window_s` seconds. Long enough to smooth steps, short enough to fall when work stops."""

    def __init__(self, window_s: float = 5.0) -> None:
        self._window_s = window_s
        self._steps: deque[tuple[float, int]] = deque()
        self._tokens = 0

    def add(self, now_s: float, tokens: int) -> None:
        """Count `tokens` made at `now_s`; time must not go back."""
        self._steps.append((now_s, tokens))
        self._tokens += tokens
        self._drop(now_s)

    def per_second(self, now_s: float) -> float:
        """Tokens in the window divided by the window."""
        self._drop(now_s)
        return self._tokens / self._window_s

    def _drop(self, now_s: float) -> None:
        while self._steps and self._steps[0][0] <= now_s - self._window_s:
            self._tokens -= self._steps.popleft()[1]
