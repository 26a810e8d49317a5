"""The tree of commands."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import grpc
import typer

from tandem_router.cli.adapters import app as adapters
from tandem_router.cli.cache import app as cache
from tandem_router.cli.conformance import conformance
from tandem_router.cli.console import ADMIN_CREDENTIALS
from tandem_router.cli.demo import demo
from tandem_router.cli.embed import embed
from tandem_router.cli.engine import engine
from tandem_router.cli.generate import generate
from tandem_router.cli.health import health
from tandem_router.cli.jobs import app as jobs
from tandem_router.cli.models import models
from tandem_router.cli.pairs import app as pairs
from tandem_router.cli.plan import plan
from tandem_router.cli.profile import app as profile
from tandem_router.cli.serve import serve
from tandem_router.cli.text import example
from tandem_router.cli.workers import app as workers

__all__ = ["app", "main"]

_EPILOG = """\b
Ids may be given by their beginning, as far as it is unique.
\b
Addresses: TANDEM_ADDRESS, TANDEM_ADMIN_ADDRESS and TANDEM_HEALTH_ADDRESS say
them once for all commands. NO_COLOR turns colours off; a pipe gets none.
\b
Exit codes:
  0    done
  1    refused or failed; stderr says the reason and what to do
  2    wrong usage
  3    nobody answers at the address
  130  interrupted; a job that was waited for goes on
\b
Example:
  tandem workers list --type decode -o wide
"""

app = typer.Typer(
    name="tandem",
    help="A gRPC router for LLM inference that is split into prefill and decode.",
    epilog=_EPILOG,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    # Plain help: the same text in a pipe, in documents and on a terminal.
    rich_markup_mode=None,
)


@app.callback()
def root(
    tls_ca: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, envvar="TANDEM_TLS_CA", help="Who vouches for the admin listener."),
    ] = None,
    tls_certificate: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, envvar="TANDEM_TLS_CERTIFICATE", help="Who we are to it, PEM."),
    ] = None,
    tls_key: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, envvar="TANDEM_TLS_KEY", help="The certificate's key, PEM."),
    ] = None,
) -> None:
    """A gRPC router for LLM inference that is split into prefill and decode."""
    if (tls_certificate is None) != (tls_key is None):
        raise typer.BadParameter("--tls-certificate and --tls-key belong together")
    named = (tls_ca, tls_key, tls_certificate)
    if not any(named):
        ADMIN_CREDENTIALS.set(None)
        return
    authorities, key, certificate = (None if path is None else path.read_bytes() for path in named)
    ADMIN_CREDENTIALS.set(grpc.ssl_channel_credentials(authorities, key, certificate))


app.command(short_help="Run the router.", epilog=example("tandem serve --listen 0.0.0.0:50051"))(serve)
app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    add_help_option=False,
    short_help="Run the reference engine.",
)(engine)
app.command(epilog=example("tandem generate --temperature 0 'count from 7 to 12:'"))(generate)
app.command(epilog=example("tandem embed tiny 'good bread' 'good butter' -o json"))(embed)
app.command(short_help="Start a fleet and show an answer through pairs.", epilog=example("tandem demo --keep"))(demo)
app.command(
    short_help="Say where a request would go, and why.",
    epilog=example("tandem plan 'count from 7 to 12:'", "tandem plan --prompt-tokens 2000 --model tiny -o yaml"),
)(plan)
app.command(epilog=example("tandem health readiness"))(health)
app.command(
    short_help="Check an engine against what the router relies on.",
    epilog=example("tandem conformance grpc://10.0.0.1:30000", "tandem conformance grpc://p:1 --decode grpc://d:2"),
)(conformance)
app.command(epilog=example("tandem models -o wide"))(models)
app.add_typer(workers, name="workers")
app.add_typer(jobs, name="jobs")
app.add_typer(pairs, name="pairs")
app.add_typer(adapters, name="adapters")
app.add_typer(cache, name="cache")
app.add_typer(profile, name="profile")


def main() -> None:
    """Run the command line; exits the process."""
    app()
