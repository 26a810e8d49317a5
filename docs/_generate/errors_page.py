"""docs/errors.md: the table of reasons, by code, and where in the schema each is promised."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence

from markdown import anchor, table
from schema import File

from tandem_router.errors import DOMAIN, TABLE, Code, Reason

__all__ = ["errors_page"]

_HEAD = f"""\
# Errors

<!-- Written by `make docs` from src/tandem_router/errors/ and proto/. Change those, not this. -->

A call that fails ends with a gRPC status. Its message begins with the reason and names the field at fault, if there is
one: `MODEL_NOT_FOUND: model: no worker serves model nobody`. Its details (`grpc-status-details-bin`) are, where they
apply:

- `google.rpc.ErrorInfo`, always: `domain` is "{DOMAIN}", `reason` is one of the words below, `metadata` holds every
  value that the message quotes. Programs branch on the reason, never on the message.
- `google.rpc.RetryInfo`, and the trailer `grpc-retry-pushback-ms`: how long to wait before the call is repeated.
- `google.rpc.BadRequest`: the field at fault.
- `google.rpc.ResourceInfo`: the thing that is missing or taken.
- `google.rpc.QuotaFailure`: the limit that is full.
- `google.rpc.RequestInfo`: the id under which the server's log has the request.

What fails inside a message (a job, one attempt) is a [Failure](api.md#failure) with the same reasons; a worker's
condition may also have a word of its own, such as `NO_PEER`. "Repeat: yes" means that the very same call may succeed
later; the rpc's own entry in the [API](api.md) says what else to do.

Some things end without a reason, since the transport ends them before the router sees a call: request metadata over
its limit and a message over 16 MiB are a bare `RESOURCE_EXHAUSTED`, an rpc that the listener does not have is a bare
`UNIMPLEMENTED`, and a connection that breaks is whatever code the client's own library makes of it.

Fields that the schema does not have are ignored, as protobuf has it, and reach no worker; a field that it has and that
this release does not carry out is refused.
"""


def errors_page(files: Sequence[File]) -> str:
    """The page. Raises ValueError when the schema lacks a word for a code."""
    meanings = _meanings(files)
    promised = _promised(files)
    by_code: dict[Code, list[Reason]] = defaultdict(list)
    for reason, row in TABLE.items():
        by_code[row.code].append(reason)
    lines = [_HEAD]
    rows = [
        (_link_code(code), meanings[code], ", ".join(f"[`{reason}`](#{anchor(reason)})" for reason in by_code[code]))
        for code in sorted(by_code)
    ]
    lines += [*table(("code", "what it asks for", "reasons"), rows), ""]
    for code in sorted(by_code):
        lines += [f"## {code.name}", "", f"Code {int(code)}. {meanings[code]}", ""]
        for reason in by_code[code]:
            row = TABLE[reason]
            lines += [f"### {reason}", "", row.meaning, ""]
            lines += [f"- Repeat: {'yes' if row.retryable else 'no'}.", f"- Do: {row.action}"]
            if reason in promised:
                lines.append(f"- Promised by {', '.join(promised[reason])}.")
            lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def _link_code(code: Code) -> str:
    return f"[{code.name}](#{anchor(code.name)})"


def _meanings(files: Sequence[File]) -> dict[Code, str]:
    """What each code asks of the caller: the comments of tandem.v1.StatusCode."""
    values = [value for file in files for enum in file.enums if enum.name == "StatusCode" for value in enum.values]
    found = {Code(value.number): " ".join(value.comment.split()) for value in values}
    if missing := [row.code.name for row in TABLE.values() if row.code not in found]:
        raise ValueError(f"StatusCode has no value for {sorted(set(missing))}")
    return found


def _promised(files: Sequence[File]) -> dict[str, list[str]]:
    """Reason -> links to the services and rpcs whose comments name it, in the schema's order."""
    found: dict[str, list[str]] = defaultdict(list)
    for file in files:
        for service in file.services:
            for name, comment in [
                (service.name, service.comment),
                *((f"{service.name}.{rpc.name}", rpc.comment) for rpc in service.rpcs),
            ]:
                for reason in dict.fromkeys(re.findall(r"`([A-Z_]+)`", comment)):
                    found[reason].append(f"[{name}](api.md#{anchor(name)})")
    return found
