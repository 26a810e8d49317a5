"""`tandem demo`: a router and engines on this machine, and a correct answer through a pair of each handshake kind."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Annotated

import grpc
import typer

from tandem.v1 import generate_pb2, kv_pb2
from tandem_router.cli.children import ChildFailed, Children
from tandem_router.cli.console import FAILED, channel, complain
from tandem_router.cli.generate import stream, summary
from tandem_router.cli.text import styled
from tandem_router.cli.worker_changes import register_all

__all__ = ["demo"]

KINDS = (
    ("rendezvous", "sglang", kv_pb2.HANDSHAKE_KIND_RENDEZVOUS),
    ("handoff", "vllm", kv_pb2.HANDSHAKE_KIND_HANDOFF),
)
"""The name of a handshake kind, the engine protocol that has it, and what `served_by` must then say."""
MODES = ("prefill", "prefill", "decode", "decode")
_PROMPT = "repeat “the quick brown fox jumps over the lazy dog” :"
"""One of the demo model's prompts with known answers; a copy is right only if every KV page arrived."""
_CALL_TIMEOUT_S = 30.0


def demo(
    keep: Annotated[bool, typer.Option("--keep", help="Keep everything up until Ctrl-C.")] = False,
) -> None:
    """Show a streamed, correct answer through a prefill/decode pair, once per handshake kind."""
    # SIGTERM ends the demo as Ctrl-C does, so that its children are ended in order.
    signal.signal(signal.SIGTERM, _interrupt)
    children = Children()
    try:
        router = children.start_router()
        with channel(router["listen"]) as clients, channel(router["admin_listen"]) as operators:
            for kind, protocol, expected in KINDS:
                _show(children, clients, operators, kind, protocol, expected)
            if keep:
                print(_lines_to_paste(router))
                _until_interrupted()
    except (ChildFailed, _WrongAnswer) as error:
        complain(None, f"DEMO: {error}")
        raise typer.Exit(FAILED) from None
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    finally:
        children.stop()


class _WrongAnswer(Exception):
    """The demo ran and did not show what it promises."""


def _show(
    children: Children, clients: grpc.Channel, operators: grpc.Channel, kind: str, protocol: str, expected: int
) -> None:
    # Imported here: only this command needs the engine's folder.
    from tandem_engine.demo import PROMPTS

    model = f"demo-{kind}"
    print(styled(f"{kind}: 2 prefill and 2 decode engines ({protocol}), model {model}", "bold", sys.stdout), flush=True)
    engines = children.start_engines([(protocol, mode, model) for mode in MODES])
    register_all(operators, [(f"grpc://{engine['listen']}", mode) for engine, mode in zip(engines, MODES, strict=True)])
    answer = dict(PROMPTS)[_PROMPT]
    print(f"{styled('prompt', 'dim', sys.stdout)}  {_PROMPT}")
    print(styled("answer", "dim", sys.stdout), end=" ", flush=True)
    request = generate_pb2.GenerateRequest(text=_PROMPT, model=model)
    request.sampling.temperature = 0
    answers, finished = stream(clients, request, _CALL_TIMEOUT_S)
    if answers != [answer]:
        raise _WrongAnswer(f"the answer to {_PROMPT!r} was {answers[0]!r} and not {answer!r}")
    if finished.served_by.handshake != expected:
        raise _WrongAnswer(f"the answer did not come through a pair by {kind}")
    print(styled("served", "dim", sys.stdout), f" {summary(finished)}\n", flush=True)


def _lines_to_paste(router: dict[str, str]) -> str:
    clients, operators, health = router["listen"], router["admin_listen"], router["health_listen"]
    # Without the environment activated, the commands are found beside the interpreter that runs this.
    here = "" if shutil.which("tandem") else f"{os.path.relpath(Path(sys.executable).parent)}/"
    ask = '{"model":"demo-rendezvous","text":"repeat “hello” :","sampling":{"temperature":0}}'
    return "\n".join(
        [
            "Everything is up; paste these in another terminal, Ctrl-C here ends it.",
            f"  {here}tandem generate --router {clients} --model demo-handoff --temperature 0 'count from 7 to 12:'",
            f"  {here}tandem workers list --admin {operators}",
            f"  {here}buf curl --protocol grpc --http2-prior-knowledge -d '{ask}' "
            f"http://{clients}/tandem.v1.RouterService/Generate",
            f"  {here}buf curl --protocol grpc --http2-prior-knowledge http://{operators}/tandem.v1.PairService/ListPairs",
            f"  grpcurl -plaintext -d '{ask}' {clients} tandem.v1.RouterService/Generate",
            f"  grpcurl -plaintext {operators} tandem.v1.WorkerService/ListWorkers",
            f"  grpcurl -plaintext {health} grpc.health.v1.Health/List",
        ]
    )


def _until_interrupted() -> None:
    try:
        while True:
            signal.pause()
    except KeyboardInterrupt:
        print()


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt
