"""The process that renders chat templates; killed and replaced by its parent when a template does not end.

Speaks over stdin and stdout: 4 bytes of length (big-endian), then JSON. Ends when stdin does, so that it never
outlives the router.
"""

from __future__ import annotations

import contextlib
import json
import struct
import sys
from typing import Any, BinaryIO

from tandem_router.text.chat_template import TemplateRefusal, render_chat_template

__all__ = ["main"]

_MAX_MEMORY_BYTES = 1024 * 1024 * 1024
"""Address space; `'a' * 10**10` in a template fails here instead of on the machine."""


def main() -> None:
    """Answer requests until stdin ends."""
    _limit_memory()
    requests, answers = sys.stdin.buffer, sys.stdout.buffer
    while (request := _read(requests)) is not None:
        body = json.dumps(_answer(request)).encode()
        answers.write(struct.pack(">I", len(body)) + body)
        answers.flush()


def _answer(request: dict[str, Any]) -> dict[str, str]:
    try:
        text = render_chat_template(
            request["template"], request["messages"], request["special_tokens"], max_chars=request["max_chars"]
        )
    except TemplateRefusal as refusal:
        return {"refusal": str(refusal)[:1000]}
    return {"text": text}


def _read(stream: BinaryIO) -> dict[str, Any] | None:
    header = stream.read(4)
    if len(header) < 4:
        return None
    (length,) = struct.unpack(">I", header)
    request: dict[str, Any] = json.loads(stream.read(length))
    return request


def _limit_memory() -> None:
    # Not on Windows, and some kernels refuse: the deadline still holds there.
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (_MAX_MEMORY_BYTES, _MAX_MEMORY_BYTES))


if __name__ == "__main__":
    main()
