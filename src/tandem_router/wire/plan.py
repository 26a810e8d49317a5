"""PlanPair: the request to explain from protobuf, and the explanation to it."""

from __future__ import annotations

from collections.abc import Sequence

from tandem.v1 import generate_pb2, pair_plan_pb2, pair_service_pb2, worker_rank_pb2
from tandem_router.errors import TandemError
from tandem_router.model.explanation import Explanation, Judged
from tandem_router.model.ids import RankKey
from tandem_router.model.request import GenerateRequest
from tandem_router.model.spec import WorkerType
from tandem_router.wire.checks import present
from tandem_router.wire.connector import connector_pb
from tandem_router.wire.generate import generate_of
from tandem_router.wire.scalars import enum_name, failure_pb, reason_pb

__all__ = ["plan_pb", "planned_request_of"]


def planned_request_of(message: pair_service_pb2.PlanPairRequest, *, max_prompt_bytes: int) -> GenerateRequest:
    """The checked request to explain; raises what `generate_of` raises, with the paths under `request`.

    A prompt that is left out stands for one of prompt_tokens tokens; it must be set then.
    """
    request = message.request
    if request.WhichOneof("input") is None and present(message, "prompt_tokens"):
        request = generate_pb2.GenerateRequest()
        request.CopyFrom(message.request)
        request.token_ids.ids.append(0)
        if request.output == generate_pb2.OUTPUT_MODE_UNSPECIFIED:
            request.output = generate_pb2.OUTPUT_MODE_TOKENS
    try:
        return generate_of(request, request_id="plan", max_prompt_bytes=max_prompt_bytes)
    except TandemError as error:
        field = f"request.{error.field}" if error.field else "request"
        raise TandemError(error.reason, error.sentence, field=field, metadata=error.metadata) from error


def plan_pb(explanation: Explanation) -> pair_plan_pb2.PairPlan:
    """The message of an explanation."""
    return pair_plan_pb2.PairPlan(
        serving_mode=generate_pb2.ServingMode.Value(enum_name("SERVING_MODE", explanation.serving_mode)),
        serving_mode_reason=explanation.reason,
        prefill=_rank_pb(explanation.prefill),
        decode=_rank_pb(explanation.decode),
        connector=connector_pb(explanation.kind, explanation.connector),
        prompt_tokens=explanation.prompt_tokens,
        prefill_candidates=_candidates(explanation, WorkerType.PREFILL),
        decode_candidates=_candidates(explanation, WorkerType.DECODE),
        regular_candidates=_candidates(explanation, WorkerType.REGULAR),
        refusals=[
            pair_plan_pb2.PairRefusal(
                prefill_worker_id=clash.prefill_worker_id,
                decode_worker_id=clash.decode_worker_id,
                reasons=[failure_pb(clash.failure)],
            )
            for clash in explanation.clashes
        ],
        failure=None if explanation.failure is None else failure_pb(explanation.failure),
    )


def _candidates(explanation: Explanation, role: WorkerType) -> Sequence[pair_plan_pb2.Candidate]:
    return [_candidate(explanation.scorer, judged) for judged in explanation.judged[role]]


def _candidate(scorer: str, judged: Judged) -> pair_plan_pb2.Candidate:
    rank = worker_rank_pb2.WorkerRank(worker_id=judged.worker_id, dp_rank=judged.dp_rank)
    if judged.refusal is not None:
        return pair_plan_pb2.Candidate(worker=rank, refusal=reason_pb(*judged.refusal, {}))
    score = judged.score or 0.0
    return pair_plan_pb2.Candidate(
        worker=rank,
        scores=[pair_plan_pb2.Score(scorer=scorer, value=score, weight=1.0)],
        total=score,
        picked=judged.is_picked,
    )


def _rank_pb(key: RankKey | None) -> worker_rank_pb2.WorkerRank | None:
    return None if key is None else worker_rank_pb2.WorkerRank(worker_id=key.worker_id, dp_rank=key.dp_rank)
