"""What every command shares: addresses, and calls whose errors a person can act on.

Exit codes: 0 done, 1 refused or failed, 2 wrong usage, 3 nobody answers at the address, 130 interrupted.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Annotated, Protocol, TypeVar

import grpc
import typer

from tandem_router.cli.text import printable, styled
from tandem_router.errors import TABLE, Reason, TandemError
from tandem_router.wire.status import decode

__all__ = [
    "ADMIN_CREDENTIALS",
    "DEFAULT_ADMIN",
    "DEFAULT_ROUTER",
    "FAILED",
    "INTERRUPTED",
    "UNREACHABLE",
    "USAGE",
    "Admin",
    "Method",
    "Router",
    "Timeout",
    "advise",
    "call",
    "channel",
    "complain",
    "fail",
    "operators",
    "to_stderr",
]

FAILED = 1
USAGE = 2
UNREACHABLE = 3
INTERRUPTED = 130
"""128 + SIGINT, as a shell says it."""

DEFAULT_ROUTER = "127.0.0.1:50051"
DEFAULT_ADMIN = "127.0.0.1:50052"
CALL_TIMEOUT_S = 30.0
"""Of every call with one answer: each returns at once, so a server that is silent for so long hangs."""

Router = Annotated[
    str, typer.Option("--router", envvar="TANDEM_ADDRESS", help="Where the router listens for clients, host:port.")
]
Admin = Annotated[
    str, typer.Option("--admin", envvar="TANDEM_ADMIN_ADDRESS", help="Where the router listens for operators.")
]
Timeout = Annotated[float | None, typer.Option("--timeout", min=0, help="Seconds to wait at most; the job goes on.")]

ADMIN_CREDENTIALS: ContextVar[grpc.ChannelCredentials | None] = ContextVar("admin_credentials", default=None)
"""How to prove who we are to an admin listener that others can reach; set by `tandem --tls-...`."""

Q = TypeVar("Q", contravariant=True)
A = TypeVar("A", covariant=True)


class Method(Protocol[Q, A]):
    """An rpc with one request and one answer, as a stub has it."""

    def __call__(self, request: Q, /, timeout: float | None = None) -> A: ...


def call(method: Method[Q, A], request: Q) -> A:
    """The answer to a call that must not take long. Raises grpc.RpcError."""
    return method(request, timeout=CALL_TIMEOUT_S)


def to_stderr(text: str, style: str | None = None) -> None:
    """A line for the person, apart from the output."""
    print(styled(printable(text, sys.stderr), style, sys.stderr), file=sys.stderr, flush=True)


def complain(error: TandemError | None, otherwise: str) -> None:
    """A red line with the reason, the values that its sentence does not quote, and a line that says what to do."""
    to_stderr(otherwise if error is None else str(error), "red")
    if error is None:
        return
    for key, value in error.metadata.items():
        if value and value not in str(error):
            to_stderr(f"  {key}: {value}")
    wait = "" if error.retry_after_s is None else f" RetryInfo: {error.retry_after_s:g} s."
    to_stderr(f"  {TABLE[error.reason].action}{wait}")


def advise(reason: str) -> None:
    """What to do about a failure that came inside a message; nothing for a reason that is not in our table."""
    if reason in Reason.__members__:
        to_stderr(f"  {TABLE[Reason(reason)].action}")


def fail(error: TandemError) -> typer.Exit:
    """The exit for an error found on our side; the complaint is printed."""
    complain(error, "")
    return typer.Exit(FAILED)


@contextmanager
def channel(address: str, credentials: grpc.ChannelCredentials | None = None) -> Iterator[grpc.Channel]:
    """A channel to `address`; a failed call, or Ctrl-C, inside the block ends the command with its exit code."""
    options = [("grpc.enable_retries", 0)]
    opening: Callable[[], grpc.Channel] = lambda: grpc.insecure_channel(address, options=options)  # noqa: E731
    if credentials is not None:
        opening = lambda: grpc.secure_channel(address, credentials, options=options)  # noqa: E731
    with opening() as opened:
        try:
            yield opened
        except grpc.RpcError as failure:
            raise _exit_of(failure, address) from None
        except TandemError as error:
            raise fail(error) from None
        except KeyboardInterrupt:
            raise typer.Exit(INTERRUPTED) from None


@contextmanager
def operators(admin: str) -> Iterator[grpc.Channel]:
    """As `channel`, to an admin listener, with the credentials that the command line named."""
    with channel(admin, ADMIN_CREDENTIALS.get()) as opened:
        yield opened


def _exit_of(failure: grpc.RpcError, address: str) -> typer.Exit:
    if not isinstance(failure, grpc.Call):
        raise failure
    error = decode([(key, value) for key, value in failure.trailing_metadata() or ()])
    code = failure.code()
    if error is None and code is grpc.StatusCode.UNAVAILABLE:
        complain(None, f"UNREACHABLE: no router answers at {address}.")
        to_stderr("  Start one with `tandem serve`, or name its address.")
        return typer.Exit(UNREACHABLE)
    if error is None and code is grpc.StatusCode.DEADLINE_EXCEEDED:
        complain(None, f"UNREACHABLE: the router at {address} did not answer in time.")
        return typer.Exit(UNREACHABLE)
    complain(error, f"{code.name}: {failure.details()}")
    return typer.Exit(FAILED)
