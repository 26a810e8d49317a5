"""The template process: renders, refuses, and survives templates that do not end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from tandem_router.errors import Reason, TandemError
from tandem_router.offload.templates import TemplateProcess

MESSAGES = (("user", "hi 👋"),)
LOOP = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"


@pytest.fixture
async def process() -> AsyncIterator[TemplateProcess]:
    subject = TemplateProcess(deadline_s=0.5, max_chars=1000)
    yield subject
    await subject.close()


async def refusal(process: TemplateProcess, template: str) -> TandemError:
    with pytest.raises(TandemError) as caught:
        await process.render(template, MESSAGES, {})
    return caught.value


async def test_messages_and_special_tokens_reach_the_template(process: TemplateProcess) -> None:
    text = await process.render("{{ bos_token }}{{ messages[0].content }}", MESSAGES, {"bos_token": "<s>"})
    assert text == "<s>hi 👋"


async def test_one_child_serves_many_renderings(process: TemplateProcess) -> None:
    await process.render("a", MESSAGES, {})
    first = process.child
    await asyncio.gather(*(process.render("b", MESSAGES, {}) for _ in range(20)))
    assert process.child is first


async def test_refusal_of_a_template_is_the_callers_error(process: TemplateProcess) -> None:
    error = await refusal(process, "{{ raise_exception('user first') }}")
    assert (error.reason, error.field, "user first" in error.sentence) == (
        Reason.INVALID_REQUEST,
        "chat.messages",
        True,
    )


async def test_template_that_loops_is_stopped_at_the_deadline(process: TemplateProcess) -> None:
    assert "did not end" in (await refusal(process, LOOP)).sentence


async def test_rendering_goes_on_after_a_kill(process: TemplateProcess) -> None:
    await refusal(process, LOOP)
    assert await process.render("ok", MESSAGES, {}) == "ok"


async def test_template_that_eats_memory_is_refused(process: TemplateProcess) -> None:
    assert (await refusal(process, "{{ ('a' * 10 ** 10) | length }}")).reason is Reason.INVALID_REQUEST


async def test_output_that_is_too_long_is_refused(process: TemplateProcess) -> None:
    assert "longer than 1000" in (await refusal(process, "{{ 'a' * 2000 }}")).sentence


async def test_child_that_dies_is_replaced(process: TemplateProcess) -> None:
    await process.render("a", MESSAGES, {})
    assert process.child is not None
    process.child.kill()
    await process.child.wait()
    assert await process.render("b", MESSAGES, {}) == "b"


async def test_cancelled_rendering_leaves_a_working_process(process: TemplateProcess) -> None:
    await process.render("a", MESSAGES, {})
    rendering = asyncio.create_task(process.render(LOOP, MESSAGES, {}))
    await asyncio.sleep(0)
    rendering.cancel()
    await asyncio.gather(rendering, return_exceptions=True)
    assert await process.render("b", MESSAGES, {}) == "b"


async def test_closed_process_refuses(process: TemplateProcess) -> None:
    await process.close()
    assert (await refusal(process, "a")).reason is Reason.DRAINING
