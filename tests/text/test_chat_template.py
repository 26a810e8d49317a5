"""Chat templates render as in transformers, and their sandbox holds."""

from __future__ import annotations

import pytest

from tandem_router.text.chat_template import TemplateRefusal, render_chat_template

MESSAGES = [{"role": "user", "content": "hi <b>"}]


def render(template: str, max_chars: int = 10_000, **special: str) -> str:
    return render_chat_template(template, MESSAGES, special, max_chars=max_chars)


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{{ messages[0]['content'] }}", "hi <b>"),
        ("{{ messages[0].role }}{% if add_generation_prompt %}>{% endif %}", "user>"),
        ("{{ bos_token }}x", "<s>x"),
        ("{{ nothing }}x", "x"),
        ("{{ messages[0] | tojson }}", '{"role": "user", "content": "hi <b>"}'),
        ("{{ 'é' | tojson }}", '"é"'),
        ("{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}", "01"),
        ("{% generation %}a{% endgeneration %}b", "ab"),
        ("  {% if true %}\nx\n  {% endif %}\n", "x\n"),
        ("{{ strftime_now('%Y') | length }}", "4"),
        ("{% set ns = namespace(a=1) %}{% set ns.a = 2 %}{{ ns.a }}", "2"),
    ],
)
def test_template_renders(template: str, text: str) -> None:
    assert render(template, bos_token="<s>") == text


@pytest.mark.parametrize(
    "template",
    [
        "{{ raise_exception('no') }}",
        "{% if %}",
        "{{ 1 / 0 }}",
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].content.undefined.deeper }}",
        "{% for i in range(10**9) %}{% endfor %}",
        "{% include 'x' %}",
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    ],
)
def test_template_that_fails_or_reaches_out_is_refused(template: str) -> None:
    with pytest.raises(TemplateRefusal):
        render(template)


def test_refusal_carries_the_templates_own_words() -> None:
    with pytest.raises(TemplateRefusal, match="roles must alternate"):
        render("{{ raise_exception('roles must alternate') }}")


def test_output_is_stopped_at_its_limit() -> None:
    with pytest.raises(TemplateRefusal, match="longer than 100"):
        render("{% for i in range(99999) %}xxxxxxxxxx{% endfor %}", max_chars=100)
