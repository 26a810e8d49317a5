"""`tandem embed`: vectors to stdout, a line of numbers per text; what they cost goes to stderr."""

from __future__ import annotations

from typing import Annotated

import typer

from tandem.v1 import embed_pb2, router_service_pb2_grpc
from tandem_router.cli.console import DEFAULT_ROUTER, Router, channel, to_stderr
from tandem_router.cli.generate import Adapters, adapter_refs
from tandem_router.cli.output import Format, Output, show

__all__ = ["embed"]


def embed(
    model: Annotated[str, typer.Argument(help="Id or alias; '' for the only model there is.")],
    text: Annotated[list[str], typer.Argument(help="What to turn into vectors, 1 to 2,048.")],
    dimensions: Annotated[int | None, typer.Option(min=1, help="Keep the first values only.")] = None,
    normalize: Annotated[
        bool | None, typer.Option(help="Scale vectors to length 1, as is done unless told not to.")
    ] = None,
    adapter: Adapters = None,
    timeout_s: Annotated[float | None, typer.Option("--timeout", min=0, help="Deadline in seconds.")] = None,
    output: Output = Format.TABLE,
    router: Router = DEFAULT_ROUTER,
) -> None:
    """Turn texts into vectors.

    Vectors go to stdout in the order of the texts, what they cost to stderr; JSON and YAML show the whole answer.
    """
    request = embed_pb2.EmbedRequest(
        model=model,
        inputs=[embed_pb2.EmbedInput(text=one) for one in text],
        dimensions=dimensions,
        normalize=normalize,
        adapters=adapter_refs(adapter),
    )
    with channel(router) as opened:
        answer = router_service_pb2_grpc.RouterServiceStub(opened).Embed(request, timeout=timeout_s)
    show(answer, output, lambda: "\n".join(_line(one) for one in answer.embeddings))
    if output.is_for_people:
        to_stderr(_summary(answer), "dim")


def _line(embedding: embed_pb2.Embedding) -> str:
    """Nine digits tell any two float32 values apart."""
    return " ".join(f"{value:.9g}" for value in embedding.values)


def _summary(answer: embed_pb2.EmbedResponse) -> str:
    count = len(answer.embeddings)
    vectors = f"{count} vector{'' if count == 1 else 's'} of {len(answer.embeddings[0].values)} values"
    parts = [f"model {answer.served_model}", vectors, f"{answer.usage.prompt_tokens} tokens"]
    lost = len(answer.attempts) - count
    if lost:
        parts.append("1 try lost" if lost == 1 else f"{lost} tries lost")
    return " | ".join(parts)
