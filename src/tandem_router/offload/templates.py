"""Chat templates in a process that can be killed: a template that loops costs one child, not the router."""

from __future__ import annotations

import asyncio
import contextlib
import json
import struct
import sys
from collections.abc import Mapping, Sequence

from tandem_router.errors import Reason, TandemError

__all__ = ["TemplateProcess"]

_DEADLINE_S = 2.0
"""Of one rendering; real templates take milliseconds."""
_START_TIMEOUT_S = 10.0
"""A child imports jinja2 first: 0.1 s, more on a busy machine; that is not the template's fault."""
_MAX_CHARS = 4 * 1024 * 1024
"""The router's limit of a prompt in bytes bounds its characters too."""


class TemplateProcess:
    """One warm child at a time, started on first use and replaced after a kill. Renders one template at a time."""

    def __init__(self, *, deadline_s: float = _DEADLINE_S, max_chars: int = _MAX_CHARS) -> None:
        """Args:
        deadline_s: seconds that one rendering may take.
        max_chars: longest prompt that a rendering may give.
        """
        self._deadline_s = deadline_s
        self._max_chars = max_chars
        self._turn = asyncio.Lock()
        self._child: asyncio.subprocess.Process | None = None
        self._is_closed = False

    @property
    def child(self) -> asyncio.subprocess.Process | None:
        """The process that renders now; None before the first use and after a kill."""
        return self._child

    async def render(
        self, template: str, messages: Sequence[tuple[str, str]], special_tokens: Mapping[str, str]
    ) -> str:
        """The prompt text of (role, content) messages.

        Raises TandemError(INVALID_REQUEST): refused by the template, failed, too long, or stopped at the deadline.
        A cancelled rendering kills its child.
        """
        request = {
            "template": template,
            "messages": [{"role": role, "content": content} for role, content in messages],
            "special_tokens": dict(special_tokens),
            "max_chars": self._max_chars,
        }
        body = json.dumps(request).encode()
        async with self._turn:
            answer = await self._ask(body)
        if "text" not in answer:
            raise _refused(str(answer.get("refusal", "the chat template failed")))
        return str(answer["text"])

    async def close(self) -> None:
        """End the child; later renderings are refused. Idempotent."""
        self._is_closed = True
        await self._stop()

    async def _ask(self, body: bytes) -> Mapping[str, object]:
        child = await self._running_child()
        assert child.stdin is not None
        assert child.stdout is not None
        is_answered = False
        try:
            async with asyncio.timeout(self._deadline_s):
                child.stdin.write(struct.pack(">I", len(body)) + body)
                await child.stdin.drain()
                (length,) = struct.unpack(">I", await child.stdout.readexactly(4))
                # JSON may write a character as 12 bytes (\\uXXXX twice); more is not an answer of ours.
                if length > 12 * self._max_chars + 4096:
                    raise _refused("the rendered prompt is too long")
                answer: Mapping[str, object] = json.loads(await child.stdout.readexactly(length))
            is_answered = True
            return answer
        except TimeoutError:
            raise _refused(f"the chat template did not end within {self._deadline_s:g} s") from None
        except (asyncio.IncompleteReadError, ConnectionError):
            raise _refused("the chat template killed the process that rendered it") from None
        finally:
            if not is_answered:
                await self._stop()

    async def _running_child(self) -> asyncio.subprocess.Process:
        if self._is_closed:
            raise TandemError(Reason.DRAINING, "the router is closing")
        if self._child is None or self._child.returncode is not None:
            self._child = await asyncio.create_subprocess_exec(
                sys.executable,
                # No import from the working directory: a folder there may be named like a package.
                "-P",
                "-m",
                "tandem_router.offload.template_child",
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                # A Ctrl-C in the terminal is the parent's to act on.
                start_new_session=True,
                limit=1024 * 1024,
            )
            await self._warm_up()
        return self._child

    async def _warm_up(self) -> None:
        """Wait until the child answers, so that its start does not count against the first template."""
        child = self._child
        assert child is not None
        assert child.stdin is not None
        assert child.stdout is not None
        body = json.dumps({"template": "", "messages": [], "special_tokens": {}, "max_chars": 1}).encode()
        try:
            async with asyncio.timeout(_START_TIMEOUT_S):
                child.stdin.write(struct.pack(">I", len(body)) + body)
                (length,) = struct.unpack(">I", await child.stdout.readexactly(4))
                await child.stdout.readexactly(length)
        except (TimeoutError, asyncio.IncompleteReadError, ConnectionError) as error:
            await self._stop()
            raise TandemError(Reason.INTERNAL_ERROR, f"the template process did not start: {error!r}") from None
        except BaseException:
            await self._stop()
            raise

    async def _stop(self) -> None:
        child, self._child = self._child, None
        if child is None:
            return
        if child.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                child.kill()
        if child.stdin is not None:
            child.stdin.close()
        await asyncio.shield(child.wait())


def _refused(sentence: str) -> TandemError:
    return TandemError(Reason.INVALID_REQUEST, sentence, field="chat.messages")
