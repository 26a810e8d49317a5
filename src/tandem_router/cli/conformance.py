"""`tandem conformance`: does an engine do what the router relies on? A verdict per line; needs no router."""

from __future__ import annotations

import asyncio
import fnmatch
import json
import sys
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tandem_router.cli.console import FAILED, INTERRUPTED, UNREACHABLE, advise, fail, to_stderr
from tandem_router.cli.output import Format, Output
from tandem_router.cli.spec_flags import ApiKeyFile, Sets, TlsCa, TlsCertificate, TlsKey, assign, credentials
from tandem_router.cli.text import one_line, pairs, printable, styled
from tandem_router.core.urls import canonical_url
from tandem_router.errors import Code, Reason, TandemError
from tandem_router.model.failure import EngineFailure
from tandem_router.wire.spec import credentials_of, spec_of

if TYPE_CHECKING:
    from tandem_router.testing.conformance import Report, Target, Verdict

__all__ = ["conformance"]

_STYLES = {"PASS": "green", "FAIL": "red", "SKIP": "dim", "NOTE": "yellow"}
_NAME_ROOM = 36
"""The longest name of a check; a test holds it against the tables."""
_ADVICE = {
    Reason.WORKER_UNREACHABLE: "See that the engine serves, and listens at that host and port.",
    Reason.WORKER_TLS_FAILED: (
        "See the URL's scheme, --worker-tls-ca, --worker-tls-certificate and --worker-tls-key; a name in its "
        "certificate that is not the URL's host is --set channel.tls_server_name=NAME."
    ),
}
"""What to do, in words of this command; the table's words are for those who call the router."""
_KEY_ADVICE = "Give the engine's key with --api-key-file."


def conformance(
    url: Annotated[
        str, typer.Argument(help="The engine, grpc://host:port or grpcs://; a prefill engine with --decode.")
    ],
    decode: Annotated[str, typer.Option(metavar="URL", help="Check two engines as a pair: this one decodes.")] = "",
    alone: Annotated[
        str,
        typer.Option(metavar="URL", help="An engine of the model that takes whole requests, to compare a pair with."),
    ] = "",
    only: Annotated[list[str] | None, typer.Option(metavar="GLOB", help="Only these checks, as 'limits/*'.")] = None,
    skip: Annotated[list[str] | None, typer.Option(metavar="GLOB", help="Not these checks.")] = None,
    hazardous: Annotated[
        bool, typer.Option("--hazardous", help="Also send what kills or hangs some engines, last and one by one.")
    ] = False,
    call_timeout_s: Annotated[float, typer.Option("--call-timeout", min=0.1, help="Seconds for one request.")] = 45.0,
    seed: Annotated[int | None, typer.Option(min=0, help="Of the prompts. Default: a new one, printed.")] = None,
    settings: Sets = None,
    api_key_file: ApiKeyFile = "",
    tls_ca: TlsCa = "",
    tls_certificate: TlsCertificate = "",
    tls_key: TlsKey = "",
    output: Output = Format.TABLE,
) -> None:
    """Check an engine, or a pair of them, against what the router relies on.

    Prints the facts that were found, then a verdict per line: PASS, FAIL, SKIP (the engine has no such thing, or says
    that it cannot) or NOTE (a habit to know). It sends a few hundred short requests and flushes the KV cache; what
    is known to kill engines only with --hazardous. Credentials and --set, for example bootstrap_port=8998, are of
    every engine named. Exit code 0 when nothing failed.
    """
    # Imported here: no other command needs it.
    from tandem_router.testing.conformance import ENGINE_CHECKS, PAIR_CHECKS, Choice, Limits, check_engine, check_pair

    of_engines, of_pairs = [[check.name for check in checks] for checks in (ENGINE_CHECKS, PAIR_CHECKS)]
    _known("--only", only or (), of_pairs if decode else of_engines)
    _known("--skip", skip or (), [*of_engines, *of_pairs])
    choice = Choice(tuple(only or ()), tuple(skip or ()), hazardous)
    limits, printer = Limits(call_s=call_timeout_s), _Printer(output)
    told: dict[str, Any] = {
        "choice": choice,
        "limits": limits,
        "seed": seed,
        "on_facts": printer.facts,
        "on_verdict": printer.verdict,
    }
    try:
        target = _target(url, settings, api_key_file, tls_ca, tls_certificate, tls_key)
        if not decode:
            if alone:
                raise typer.BadParameter("--alone is for a pair: name the other half with --decode")
            report = _run(lambda: check_engine(target, **told))
        else:
            other, third = _at(target, decode), _at(target, alone) if alone else None
            report = _run(lambda: check_pair(target, other, alone=third, **told))
    except TandemError as error:
        raise fail(error) from None
    except EngineFailure as failure:
        to_stderr(f"{failure.reason}: {failure.sentence}", "red")
        _advise(failure)
        raise typer.Exit(UNREACHABLE if failure.reason is Reason.WORKER_UNREACHABLE else FAILED) from None
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None
    printer.end(report)
    if not report.conforms:
        raise typer.Exit(FAILED)


def _known(option: str, globs: Iterable[str], names: list[str]) -> None:
    """Raises typer.BadParameter for a glob that no check has: a typing error must not pass as success."""
    for glob in globs:
        if not fnmatch.filter(names, glob):
            groups = ", ".join(dict.fromkeys(name.partition("/")[0] for name in names))
            pair = "; with --decode also pair" if "pair/compatible" not in names else ""
            raise typer.BadParameter(f"no check is called {glob!r}; the groups are {groups}{pair}", param_hint=option)


def _advise(failure: EngineFailure) -> None:
    if failure.code in (Code.UNAUTHENTICATED, Code.PERMISSION_DENIED):
        to_stderr(f"  {_KEY_ADVICE}")
    elif failure.reason in _ADVICE:
        to_stderr(f"  {_ADVICE[failure.reason]}")
    else:
        advise(failure.reason)


def _run(body: Callable[[], Any]) -> Report:
    report: Report = asyncio.run(body())
    return report


def _target(
    url: str, settings: list[str] | None, api_key_file: str, tls_ca: str, tls_certificate: str, tls_key: str
) -> Target:
    from tandem.v1 import worker_spec_pb2
    from tandem_router.testing.conformance import Target

    message = worker_spec_pb2.WorkerSpec(url=canonical_url(url))
    assign(message, settings or ())
    secrets = credentials(api_key_file, tls_ca, tls_certificate, tls_key)
    return Target(spec_of(message), None if secrets is None else credentials_of(secrets))


def _at(target: Target, url: str) -> Target:
    return replace(target, spec=replace(target.spec, url=canonical_url(url)))


class _Printer:
    """Lines as they come for people, one document at the end for programs."""

    def __init__(self, output: Format) -> None:
        self._output = output
        self._facts: list[tuple[str, str]] = []

    def facts(self, rows: list[tuple[str, str]]) -> None:
        """What was found before the first check."""
        self._facts = rows
        if self._output.is_for_people:
            print("\n".join([*pairs(rows, sys.stdout), ""]), flush=True)

    def verdict(self, verdict: Verdict) -> None:
        """One line."""
        if not self._output.is_for_people:
            return
        word = styled(verdict.outcome, _STYLES[verdict.outcome], sys.stdout)
        took = f"{verdict.took_s:6.2f}s  " if self._output is Format.WIDE else ""
        finding = printable(one_line(verdict.finding), sys.stdout)
        print(f"{word}  {verdict.check.ljust(_NAME_ROOM)}  {took}{finding}".rstrip(), flush=True)

    def end(self, report: Report) -> None:
        """The sum, or the document."""
        counts = {word: sum(one.outcome == word for one in report.verdicts) for word in _STYLES}
        if self._output.is_for_people:
            sums = ", ".join(f"{count} {word}" for word, count in counts.items())
            word = "conforms" if report.conforms else "does not conform" if report.verdicts else "nothing was checked"
            print(f"\n{styled(word, 'green' if report.conforms else 'red', sys.stdout)}: {sums}")
            if report.remark:
                print(report.remark)
            return
        document = {
            "facts": dict(self._facts),
            "checks": [
                {
                    "name": one.check,
                    "verdict": str(one.outcome),
                    "finding": one.finding,
                    "seconds": round(one.took_s, 3),
                    **({"measured": dict(one.measured)} if one.measured else {}),
                }
                for one in report.verdicts
            ],
            "counts": counts,
            "conforms": report.conforms,
            **({"remark": report.remark} if report.remark else {}),
        }
        if self._output is Format.JSON:
            print(json.dumps(document, indent=2))
            return
        # Imported here: most commands print no YAML.
        import yaml

        print(yaml.safe_dump(document, sort_keys=False, allow_unicode=True), end="")
