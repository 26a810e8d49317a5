"""Renders a model's chat template as transformers does, in a sandbox.

A template is a program from the network. The sandbox keeps it from attributes and mutation, but not from looping or
from making huge strings: `offload.templates` runs this in a process that can be killed.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

__all__ = ["TemplateRefusal", "check_chat_template", "render_chat_template"]


class TemplateRefusal(Exception):
    """The template refused the messages (raise_exception), failed on them, or is not one; its text is for callers."""


class _Generation(Extension):
    """`{% generation %}`: marks assistant text for training masks; when serving, its body is simply rendered."""

    tags = {"generation"}  # noqa: RUF012 - jinja2's own declaration is a plain class attribute

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """The body between the tags."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def check_chat_template(template: str) -> None:
    """Raise TemplateRefusal if this is not Jinja2 at all. Runs nothing of it."""
    try:
        _environment().parse(template)
    except jinja2.TemplateSyntaxError as error:
        raise TemplateRefusal(f"it is not a Jinja2 template: {error.message} (line {error.lineno})") from None
    except RecursionError:
        raise TemplateRefusal("it is nested too deeply") from None


def render_chat_template(
    template: str,
    messages: Sequence[Mapping[str, str]],
    special_tokens: Mapping[str, str],
    *,
    max_chars: int,
) -> str:
    """The prompt text, with the generation prompt added.

    special_tokens: bos_token and the like, visible to the template by name.
    max_chars: rendering stops with TemplateRefusal as soon as the output is longer.
    Raises TemplateRefusal and nothing else, except MemoryError and RecursionError turned into it as well.
    """
    try:
        # transformers defines tools and documents in any case: templates ask `tools is not none`.
        variables = {"tools": None, "documents": None, "add_generation_prompt": True, **special_tokens}
        shown = [dict(message) for message in messages]
        pieces = _environment().from_string(template).generate(messages=shown, **variables)
        text: list[str] = []
        length = 0
        for piece in pieces:
            length += len(piece)
            if length > max_chars:
                raise TemplateRefusal(f"the rendered prompt is longer than {max_chars} characters")
            text.append(piece)
        return "".join(text)
    except TemplateRefusal:
        raise
    except jinja2.TemplateError as error:
        raise TemplateRefusal(f"the chat template failed: {error}") from None
    except MemoryError:
        raise TemplateRefusal("the chat template used too much memory") from None
    except Exception as error:
        # A template runs arbitrary expressions: TypeError, KeyError, ZeroDivisionError, RecursionError ...
        raise TemplateRefusal(f"the chat template failed: {type(error).__name__}: {error}") from None


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _Generation]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


def _raise_exception(message: str) -> NoReturn:
    raise TemplateRefusal(f"the chat template refused the messages: {message}")


def _strftime_now(form: str) -> str:
    """Templates print today's date into system prompts; that is this process's local time, as in transformers."""
    return datetime.datetime.now().astimezone().strftime(form)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON without jinja2's HTML escaping, which would reach the model."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
