"""`tandem generate`: one request, streamed to stdout; who served it and how long it took goes to stderr."""

from __future__ import annotations

import sys
from typing import Annotated

import grpc
import typer

from tandem.v1 import generate_pb2, generate_result_pb2, kv_pb2, router_service_pb2_grpc, worker_rank_pb2
from tandem_router.cli.console import DEFAULT_ROUTER, Router, channel, to_stderr
from tandem_router.cli.output import Format, Output, show
from tandem_router.cli.text import printable

__all__ = ["Adapters", "adapter_refs", "generate", "stream", "summary", "token_ids"]

Adapters = Annotated[
    list[str] | None, typer.Option("--adapter", metavar="NAME", help="An adapter to apply; may be repeated.")
]


def generate(
    prompt: Annotated[str | None, typer.Argument(help="The text to continue; or use --tokens.")] = None,
    tokens: Annotated[str | None, typer.Option(help="Token ids instead of text: 1,2,3.")] = None,
    model: Annotated[str, typer.Option(help="Default: the only model there is.")] = "",
    max_tokens: Annotated[int | None, typer.Option(min=1)] = None,
    temperature: Annotated[float | None, typer.Option(help="0 is greedy.")] = None,
    seed: Annotated[int | None, typer.Option(min=0)] = None,
    n: Annotated[int | None, typer.Option("--n", "-n", min=1, help="How many answers.")] = None,
    adapter: Adapters = None,
    timeout_s: Annotated[float | None, typer.Option("--timeout", min=0, help="Deadline in seconds.")] = None,
    output: Output = Format.TABLE,
    router: Router = DEFAULT_ROUTER,
) -> None:
    """Generate an answer and stream it.

    The answer goes to stdout, who served it and how long it took to stderr; JSON and YAML show every message.
    """
    if (prompt is None) == (tokens is None):
        raise typer.BadParameter("give either a prompt or --tokens")
    request = generate_pb2.GenerateRequest(model=model, adapters=adapter_refs(adapter))
    if prompt is not None:
        request.text = prompt
    if tokens is not None:
        request.token_ids.ids.extend(token_ids(tokens))
    sampling = request.sampling
    for name, value in {"max_tokens": max_tokens, "temperature": temperature, "seed": seed, "n": n}.items():
        if value is not None:
            setattr(sampling, name, value)
    with channel(router) as opened:
        if not output.is_for_people:
            for message in router_service_pb2_grpc.RouterServiceStub(opened).Generate(request, timeout=timeout_s):
                show(message, output, str, stream=True)
            return
        try:
            _, finished = stream(opened, request, timeout_s)
        except KeyboardInterrupt:
            print(file=sys.stderr)
            raise typer.Exit(130) from None
    to_stderr(summary(finished), "dim")


def adapter_refs(names: list[str] | None) -> list[generate_pb2.AdapterRef]:
    """Adapters to apply, each as strong as it was made."""
    return [generate_pb2.AdapterRef(name=name) for name in names or ()]


def token_ids(listed: str) -> list[int]:
    """Token ids from 1,2,3. Raises typer.BadParameter."""
    try:
        return [int(part) for part in listed.split(",")]
    except ValueError:
        raise typer.BadParameter(f"{listed!r} is not a list of token ids", param_hint="--tokens") from None


def stream(
    opened: grpc.Channel, request: generate_pb2.GenerateRequest, timeout_s: float | None = None
) -> tuple[list[str], generate_result_pb2.Finished]:
    """Print the answer to stdout as it comes; several choices one after the other, each with its number.

    Returns what was printed of each choice, and the last message. Raises grpc.RpcError.
    """
    choices = max(1, request.sampling.n)
    answers = [""] * choices
    finished = generate_result_pb2.Finished()
    for message in router_service_pb2_grpc.RouterServiceStub(opened).Generate(request, timeout=timeout_s):
        if message.HasField("finished"):
            finished = message.finished
        chunk = message.chunk
        piece = "".join(chunk.text) or "".join(f"{token} " for token in chunk.token_ids)
        answers[chunk.index] += piece
        if choices == 1 and piece:
            print(printable(piece, sys.stdout), end="", flush=True)
    if choices == 1:
        print(flush=True)
    for index, answer in enumerate(answers if choices > 1 else ()):
        print(f"[{index}] {printable(answer, sys.stdout)}", flush=True)
    return answers, finished


def summary(finished: generate_result_pb2.Finished) -> str:
    """Who served, through which room, how many tokens, and where the time went: one line."""
    served = finished.served_by
    parts = []
    if served.HasField("prefill"):
        kind = kv_pb2.HandshakeKind.Name(served.handshake).removeprefix("HANDSHAKE_KIND_").lower()
        parts.append(f"pair {served.pair_id} ({kind})")
        parts.append(f"prefill {_rank(served.prefill)} decode {_rank(served.decode)}")
    else:
        parts.append(f"worker {_rank(served.decode)} (aggregated)")
    if served.HasField("bootstrap_room"):
        parts.append(f"room {served.bootstrap_room.number}")
    usage = finished.usage
    parts.append(f"{usage.prompt_tokens} + {usage.completion_tokens} tokens")
    if len(finished.attempts) > 1:
        parts.append(f"{len(finished.attempts)} attempts")
    phases = [
        f"{field.name} {getattr(finished.timings, field.name).ToNanoseconds() / 1e6:.1f} ms"
        for field in finished.timings.DESCRIPTOR.fields
        if getattr(finished.timings, field.name).ToNanoseconds() > 0
    ]
    return " | ".join([*parts, ", ".join(phases)])


def _rank(rank: worker_rank_pb2.WorkerRank) -> str:
    return f"{rank.worker_id[:8]}/{rank.dp_rank}"
