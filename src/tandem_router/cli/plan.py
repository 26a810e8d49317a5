"""`tandem plan`: what the router would do with a request, and why."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Annotated

import typer

from tandem.v1 import generate_pb2, kv_pb2, pair_plan_pb2, pair_service_pb2, pair_service_pb2_grpc
from tandem_router.cli.console import DEFAULT_ADMIN, FAILED, Admin, advise, call, complain, operators
from tandem_router.cli.generate import Adapters, adapter_refs, token_ids
from tandem_router.cli.listing import find_worker
from tandem_router.cli.output import Format, Output, show
from tandem_router.cli.text import Column, Table, pairs
from tandem_router.cli.words import ModeWord, kind, number, rank

__all__ = ["plan", "plan_text"]

Judged = tuple[str, pair_plan_pb2.Candidate]
"""The part of the request that a slot was looked at for, and what was found."""

_CANDIDATES: Table[Judged] = Table(
    (
        Column("FOR", lambda judged: judged[0]),
        Column("WORKER", lambda judged: rank(judged[1].worker)),
        Column("PICKED", lambda judged: "yes" if judged[1].picked else "", is_state=True),
        Column("TOTAL", lambda judged: "" if judged[1].HasField("refusal") else f"{judged[1].total:.3f}"),
        Column("SCORES", lambda judged: " ".join(f"{one.scorer}={one.value:.3f}" for one in judged[1].scores)),
        Column("REFUSED", lambda judged: judged[1].refusal.reason),
        Column("WHY", lambda judged: judged[1].refusal.message),
    )
)


def plan(
    prompt: Annotated[str | None, typer.Argument(help="The text to continue; or --tokens, or --prompt-tokens.")] = None,
    tokens: Annotated[str | None, typer.Option(help="Token ids instead of text: 1,2,3.")] = None,
    prompt_tokens: Annotated[int | None, typer.Option(min=1, help="Length to assume instead of a prompt.")] = None,
    model: Annotated[str, typer.Option(help="Default: the only model there is.")] = "",
    mode: Annotated[ModeWord | None, typer.Option(help="Default: the router decides.")] = None,
    worker: Annotated[str, typer.Option(help="The worker that must generate: its id, or the beginning.")] = "",
    prefill_worker: Annotated[str, typer.Option(help="The worker that must prefill.")] = "",
    adapter: Adapters = None,
    session_key: Annotated[str, typer.Option(help="The same key prefers the same workers.")] = "",
    output: Output = Format.TABLE,
    admin: Admin = DEFAULT_ADMIN,
) -> None:
    """Say what the router would do with a request now, and why; nothing is reserved or sent.

    Exit code 1 when it could not serve the request.
    """
    if (prompt is not None and tokens is not None) or (prompt is None and tokens is None and prompt_tokens is None):
        raise typer.BadParameter("give a prompt, --tokens or --prompt-tokens")
    request = generate_pb2.GenerateRequest(model=model, session_key=session_key, adapters=adapter_refs(adapter))
    if prompt is not None:
        request.text = prompt
    if tokens is not None:
        request.token_ids.ids.extend(token_ids(tokens))
    if mode is not None:
        request.serving_mode = number(generate_pb2.ServingMode, mode)
    with operators(admin) as opened:
        if worker:
            request.target_worker.worker_id = find_worker(opened, worker)
        if prefill_worker:
            request.target_prefill_worker.worker_id = find_worker(opened, prefill_worker)
        asked = pair_service_pb2.PlanPairRequest(request=request, prompt_tokens=prompt_tokens)
        answer = call(pair_service_pb2_grpc.PairServiceStub(opened).PlanPair, asked)
    show(answer, output, lambda: plan_text(answer.plan))
    if answer.plan.HasField("failure"):
        complain(None, f"{answer.plan.failure.reason}: {answer.plan.failure.message}")
        advise(answer.plan.failure.reason)
        raise typer.Exit(FAILED)


def plan_text(plan: pair_plan_pb2.PairPlan) -> str:
    """The choice, every slot that was looked at, and the pairs that do not fit together."""
    lines = pairs(_head(plan), sys.stdout)
    looked_at = [
        *(("prefill", one) for one in plan.prefill_candidates),
        *(("decode", one) for one in plan.decode_candidates),
        *(("whole", one) for one in plan.regular_candidates),
    ]
    if looked_at:
        lines += ["", *_CANDIDATES.lines(looked_at, sys.stdout, wide=True)]
    if plan.refusals:
        lines += ["", "can not be a pair:"]
        lines += [
            f"  {refusal.prefill_worker_id} and {refusal.decode_worker_id}: {reason.reason}: {reason.message}"
            for refusal in plan.refusals
            for reason in refusal.reasons
        ]
    return "\n".join(lines)


def _head(plan: pair_plan_pb2.PairPlan) -> Iterable[tuple[str, str]]:
    mode = kind(generate_pb2.ServingMode, plan.serving_mode) or "not served"
    yield "mode", f"{mode} ({plan.serving_mode_reason})" if plan.serving_mode_reason else mode
    yield "prefill", rank(plan.prefill) if plan.HasField("prefill") else ""
    yield "decode", rank(plan.decode) if plan.HasField("decode") else ""
    yield "connector", kind(kv_pb2.KvConnector, plan.connector)
    if plan.HasField("prompt_tokens"):
        cached = f", {plan.cached_prompt_tokens} cached" if plan.HasField("cached_prompt_tokens") else ""
        yield "prompt", f"{plan.prompt_tokens} tokens{cached}"
