"""`tandem models`: what requests can name."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Annotated

import typer

from tandem.v1 import kv_pb2, model_card_pb2, model_pb2, router_service_pb2, router_service_pb2_grpc
from tandem_router.cli.console import DEFAULT_ROUTER, Router, call, channel
from tandem_router.cli.listing import PageSize, every_page
from tandem_router.cli.output import Format, Output, show, show_table
from tandem_router.cli.text import Column, Table, pairs
from tandem_router.cli.watching import Watch, poll
from tandem_router.cli.words import kind, since

__all__ = ["models"]

Model = model_pb2.Model


def _connectors(model: Model) -> str:
    return ",".join(kind(kv_pb2.KvConnector, one) for one in model.capacity.connectors)


def _context(model: Model) -> str:
    return str(model.card.context_length) if model.card.HasField("context_length") else ""


MODELS: Table[Model] = Table(
    (
        Column("ID", lambda model: model.id),
        Column("AVAILABLE", lambda model: "yes" if model.available else "no", is_state=True),
        Column("PREFILL", lambda model: str(model.capacity.prefill_workers)),
        Column("DECODE", lambda model: str(model.capacity.decode_workers)),
        Column("REGULAR", lambda model: str(model.capacity.regular_workers)),
        Column("CONNECTORS", _connectors),
        Column("CONTEXT", _context, is_wide=True),
        Column("ALIASES", lambda model: ",".join(model.card.aliases), is_wide=True),
        Column("AGE", lambda model: since(model, "create_time"), is_wide=True),
    )
)
"""PREFILL, DECODE and REGULAR count READY workers."""


def models(
    model: Annotated[str, typer.Argument(help="Show this one alone, by id or alias.")] = "",
    watch: Watch = False,
    output: Output = Format.TABLE,
    page_size: PageSize = 0,
    router: Router = DEFAULT_ROUTER,
) -> None:
    """Show the models that requests can name."""
    with channel(router) as opened:
        stub = router_service_pb2_grpc.RouterServiceStub(opened)
        if model:
            request = router_service_pb2.GetModelRequest(model=model)
            found = call(stub.GetModel, request).model
            show(found, output, lambda: "\n".join(pairs(_facts(found), sys.stdout)))
            return
        listed = router_service_pb2.ListModelsRequest(page_size=page_size)
        if watch:
            poll(lambda: every_page(stub.ListModels, listed).models, MODELS, output)
        answer = every_page(stub.ListModels, listed)
    show_table(answer, answer.models, MODELS, output)


def _facts(model: Model) -> Iterable[tuple[str, str]]:
    card, capacity = model.card, model.capacity
    yield "model", model.id
    yield "available", "yes" if model.available else "no"
    yield "aliases", ", ".join(card.aliases)
    yield "can", ", ".join(kind(model_card_pb2.ModelCapability, one) for one in card.capabilities)
    yield "context", f"{card.context_length} tokens" if card.HasField("context_length") else ""
    yield "vocabulary", str(card.vocab_size) if card.HasField("vocab_size") else ""
    yield "architecture", ", ".join(card.architectures) or card.hf_model_type
    yield (
        "workers",
        f"{capacity.prefill_workers} prefill, {capacity.decode_workers} decode, {capacity.regular_workers} regular",
    )
    yield "connectors", _connectors(model)
