"""What public families' chat templates are written with, each feature in a template of our own."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from archives import archive, files

from tandem_router.text.archive import open_archive
from tandem_router.text.chat_template import TemplateRefusal, check_chat_template, render_chat_template

SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}
CHAT = [
    {"role": "system", "content": "Be brief. "},
    {"role": "user", "content": " hi\n"},
    {"role": "assistant", "content": "<think>hm</think>ho"},
    {"role": "user", "content": "bye"},
]


def render(template: str, messages: list[dict[str, str]] = CHAT, **special: str) -> str:
    return render_chat_template(template, messages, special or SPECIAL, max_chars=10_000)


MERGED_SYSTEM = """
{%- if messages[0]['role'] == 'system' -%}
  {%- set system = messages[0]['content'] | trim + '\\n\\n' -%}{%- set turns = messages[1:] -%}
{%- else -%}
  {%- set system = '' -%}{%- set turns = messages -%}
{%- endif -%}
{{- bos_token -}}
{%- for turn in turns -%}
  {%- if (turn['role'] == 'user') != (loop.index0 % 2 == 0) -%}
    {{- raise_exception('user and assistant must take turns, at ' ~ loop.index0) -}}
  {%- endif -%}
  {%- if turn['role'] == 'user' -%}
    {{- '[INST] ' ~ (system if loop.first else '') ~ turn['content'].strip() ~ ' [/INST]' -}}
  {%- else -%}
    {{- ' ' ~ turn['content'].split('</think>')[-1].lstrip('\\n') ~ eos_token -}}
  {%- endif -%}
{%- endfor -%}
"""
NAMESPACE = """
{%- set ns = namespace(last_user=-1, seen=0) %}
{%- for message in messages[::-1] %}
  {%- if ns.last_user < 0 and message.role == 'user' and message.content is string %}
    {%- set ns.last_user = messages | length - 1 - loop.index0 %}
  {%- endif %}
{%- endfor %}
{{- ns.last_user }}"""
MACRO = """
{%- macro turn(role, text, end='<|end|>') %}<|{{ role }}|>{{ text | trim }}{{ end }}{% endmacro %}
{%- for message in messages if message.role != 'system' %}{{ turn(message.role, message.content) }}{% endfor %}
{%- if add_generation_prompt %}{{ turn('assistant', '', end='') }}{% endif %}"""


@pytest.mark.parametrize(
    ("template", "text"),
    [
        (MERGED_SYSTEM, "<s>[INST] Be brief.\n\nhi [/INST] ho</s>[INST] bye [/INST]"),
        (NAMESPACE, "3"),
        (MACRO, "<|user|>hi<|end|><|assistant|><think>hm</think>ho<|end|><|user|>bye<|end|><|assistant|>"),
        ("{{ messages[1].content | trim }}|{{ messages[1]['content'].strip() }}", "hi|hi"),
        ("{{ messages[0].content is string }} {{ messages[0].nothing is defined }}", "True False"),
        ("{{ messages[0].get('tool_calls', []) | length }}", "0"),
        ("{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}{{ m.role[0] }}{% endfor %}", "uau"),
        ("{% for m in messages %}{% if loop.index > 2 %}{% break %}{% endif %}{{ loop.index }}{% endfor %}", "12"),
        ("{{ {'b': 'é<', 'a': [1]} | tojson }}", '{"b": "é<", "a": [1]}'),
        ("{{ {'a': 1} | tojson(indent=2) }}", '{\n  "a": 1\n}'),
        ("{{ 'é' | tojson(ensure_ascii=true) }}", '"\\u00e9"'),
        ("{{ {'b': 1, 'a': 2} | tojson(separators=(',', ':'), sort_keys=true) }}", '{"a":2,"b":1}'),
        ("a{% generation %}{{ messages[2].content }}{% endgeneration %}b", "a<think>hm</think>hob"),
        ("{{ tools is none }} {{ documents is none }} {{ custom is defined }}", "True True False"),
        ("{% if tools is not none and tools | length %}tools{% endif %}x", "x"),
        ("{{ ' a '.rstrip() ~ 'b'.upper() ~ 'x'.startswith('x') }}", " aBTrue"),
        ("{{ messages | selectattr('role', 'equalto', 'user') | map(attribute='content') | list | length }}", "2"),
        ("{{ messages[1:] | map(attribute='role') | join(',') }}", "user,assistant,user"),
        ("{% set x %}{{ bos_token }}!{% endset %}{{ x }}", "<s>!"),
        ("{{ none_such or 'fallback' }}{{ 'a' if false }}", "fallback"),
        ("{%- for m in messages -%}{{ loop.last }}{{ loop.nextitem.role if not loop.last }} {% endfor %}",
         "Falseuser Falseassistant Falseuser True "),
    ],
)  # fmt: skip
def test_feature_renders(template: str, text: str) -> None:
    check_chat_template(template)
    assert render(template) == text


def test_date_is_todays_where_no_date_is_given() -> None:
    template = "{% if not date is defined %}{% set date = strftime_now('%d %b %Y') %}{% endif %}{{ date }}"
    assert re.fullmatch(r"\d\d \w{3} \d{4}", render(template))


def test_refusal_is_in_the_templates_own_words() -> None:
    with pytest.raises(TemplateRefusal, match=r"refused the messages: user and assistant must take turns, at 0$"):
        render(MERGED_SYSTEM, CHAT[2:])


@pytest.mark.parametrize("token", ["<s>", {"content": "<s>", "lstrip": False}], ids=["text", "object"])
@pytest.mark.parametrize("as_list", [False, True], ids=["one template", "named templates"])
def test_template_and_tokens_of_the_config_meet(token: Any, as_list: bool) -> None:
    template = "{{ bos_token }}{{ messages[3].content }}"
    named = [{"name": "tool_use", "template": "no"}, {"name": "default", "template": template}]
    config = {"bos_token": token, "eos_token": None, "chat_template": named if as_list else template}
    found = open_archive(archive(files(tokenizer_config__json=json.dumps(config), special_tokens_map__json=None)))
    assert found.chat_template is not None
    assert render(found.chat_template, **found.special_tokens) == "<s>bye"


@pytest.mark.parametrize(
    ("template", "why"),
    [
        ("{% if %}", "line 1"),
        ("x\n{% for a in b %}", "line 2"),
        ("{{ 'a' ", "line 1"),
        ("{% nothing %}", "unknown tag"),
        ("(" * 10 + "{{" + "(" * 100_000, "nested too deeply"),
    ],
    ids=["expression", "unclosed block", "unclosed braces", "unknown tag", "depth"],
)
def test_text_that_is_no_template_is_told_without_running_it(template: str, why: str) -> None:
    with pytest.raises(TemplateRefusal, match=why):
        check_chat_template(template)


def test_checking_a_template_runs_nothing_of_it() -> None:
    check_chat_template("{{ ('a' * 10 ** 10) | length }}{{ 1 / 0 }}")
