"""The tree of commands."""

from __future__ import annotations

import typer

from tandem_router.cli.demo import demo
from tandem_router.cli.engine import engine
from tandem_router.cli.generate import generate
from tandem_router.cli.jobs import app as jobs
from tandem_router.cli.serve import serve
from tandem_router.cli.workers import app as workers

__all__ = ["app", "main"]

app = typer.Typer(
    name="tandem",
    help="A gRPC router for LLM inference that is split into prefill and decode.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command()(serve)
app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True}, add_help_option=False)(engine)
app.command()(generate)
app.command()(demo)
app.add_typer(workers, name="workers")
app.add_typer(jobs, name="jobs")


def main() -> None:
    """Run the command line; exits the process."""
    app()
