"""What every command shares: addresses, calls with errors a person can act on, and output that is plain in a pipe.

Exit codes: 0 done, 1 refused or failed, 2 wrong usage, 3 nobody answers at the address.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, TextIO

import grpc
import typer

from tandem_router.errors import TABLE, TandemError
from tandem_router.wire.status import decode

__all__ = [
    "FAILED",
    "UNREACHABLE",
    "Admin",
    "Router",
    "channel",
    "complain",
    "fail",
    "printable",
    "styled",
    "table",
]

FAILED = 1
UNREACHABLE = 3

Router = Annotated[
    str, typer.Option("--router", envvar="TANDEM_ADDRESS", help="Where the router listens for clients, host:port.")
]
Admin = Annotated[
    str, typer.Option("--admin", envvar="TANDEM_ADMIN_ADDRESS", help="Where the router listens for operators.")
]

_STYLES = {"red": 31, "green": 32, "yellow": 33, "dim": 2, "bold": 1}


def styled(text: str, style: str, stream: TextIO) -> str:
    """`text` in an ANSI style where `stream` is a terminal, else as it is."""
    return f"\x1b[{_STYLES[style]}m{text}\x1b[0m" if stream.isatty() else text


def complain(error: TandemError | None, otherwise: str) -> None:
    """One red line with the reason, and one that says what to do."""
    line = otherwise if error is None else str(error)
    print(styled(line, "red", sys.stderr), file=sys.stderr)
    if error is not None:
        print(f"  {TABLE[error.reason].action}", file=sys.stderr)


def fail(error: TandemError) -> typer.Exit:
    """The exit for an error found on our side; the complaint is printed."""
    complain(error, "")
    return typer.Exit(FAILED)


@contextmanager
def channel(address: str) -> Iterator[grpc.Channel]:
    """A channel to `address`; a failed call inside the block ends the command with its complaint and exit code."""
    with grpc.insecure_channel(address, options=[("grpc.enable_retries", 0)]) as opened:
        try:
            yield opened
        except grpc.RpcError as failure:
            raise _exit_of(failure, address) from None


def _exit_of(failure: grpc.RpcError, address: str) -> typer.Exit:
    if not isinstance(failure, grpc.Call):
        raise failure
    error = decode([(key, value) for key, value in failure.trailing_metadata() or ()])
    if error is None and failure.code() is grpc.StatusCode.UNAVAILABLE:
        complain(None, f"UNREACHABLE: no router answers at {address}.")
        print("  Start one with `tandem serve`, or name its address.", file=sys.stderr)
        return typer.Exit(UNREACHABLE)
    complain(error, f"{failure.code().name}: {failure.details()}")
    return typer.Exit(FAILED)


def printable(text: str, stream: TextIO) -> str:
    """`text` as it is for a pipe; for a terminal, control characters that could drive it are shown as U+FFFD."""
    if not stream.isatty():
        return text
    return "".join(one if one in "\n\t" or ord(one) >= 160 or 32 <= ord(one) < 127 else "\ufffd" for one in text)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns two spaces apart, with a head line; no line ends in a space."""
    lines = [head, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )
