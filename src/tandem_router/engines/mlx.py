"""MLX's engine protocol (`mlx.grpc.engine.MlxEngine`): one worker, one choice, no pairs.

What it does not heed, or dies of (seen with MLX 0.32.4 and smg-grpc-servicer 0.14.1):
- a seed is taken and has no effect on the draws: two equal requests, alone on the engine, differ;
- `top_k` at or above the vocabulary's size stops its generation thread for every request, for good;
- a biased token outside the vocabulary ends the process; so does one in the prompt (`guards.write_prompt`);
- `logprobs` 0 returns nothing, so one alternative is asked for and dropped;
- penalties look at the last 20 tokens only, which no field can change.
Stop strings have no field: the router finds them in the text by itself (`text.stops`).
"""

from __future__ import annotations

from typing import Any

from google.protobuf.message import Message
from smg_grpc_proto.generated import common_pb2
from smg_grpc_proto.generated import mlx_engine_pb2 as pb

from tandem_router.engines.contract import ItemDecoder, Methods, OperationRpc, Rpc, Traits
from tandem_router.engines.decoding import Counts, Reading, StreamDecoder
from tandem_router.engines.guards import (
    cannot_carry,
    check_biased_tokens,
    check_healthy,
    constraint_field,
    effective,
    engine_status_failure,
    refuse_adapters,
    refuse_broken_leg,
    refuse_prompt_logprobs,
    refuse_rank,
    write_prompt,
)
from tandem_router.engines.loads import NoLoads
from tandem_router.errors import Code, Reason, TandemError
from tandem_router.model.failure import EngineFailure
from tandem_router.model.operations import Operation
from tandem_router.model.pairing import AbortInTransfer, HandshakeKind
from tandem_router.model.request import ConstraintKind, LegRequest
from tandem_router.model.spec import RuntimeType
from tandem_router.model.worker import WorkerFacts

__all__ = ["MlxDialect"]

_SERVICE = "mlx.grpc.engine.MlxEngine"
_ENGINE = "MLX"
_LEAST_VOCABULARY = 256
"""Every tokenizer can write every byte."""
_NO_CONSTRAINTS: dict[ConstraintKind, str] = {}
_NO_OPERATIONS: dict[type[Operation], OperationRpc] = {}


def _matched_stop(complete: Any) -> int | None:
    return complete.matched_stop_token_id if complete.HasField("matched_stop_token_id") else None


_READING = Reading(Counts.RUNNING, matched_stop=_matched_stop, aborts_silently=True)


class MlxDialect(NoLoads):
    """`Dialect` of MLX."""

    runtime_type = RuntimeType.MLX
    service = _SERVICE
    methods = Methods(
        generate=Rpc(f"/{_SERVICE}/Generate", pb.GenerateResponse),
        abort=Rpc(f"/{_SERVICE}/Abort", pb.AbortResponse),
        health=Rpc(f"/{_SERVICE}/HealthCheck", pb.HealthCheckResponse),
        model_info=Rpc(f"/{_SERVICE}/GetModelInfo", pb.GetModelInfoResponse),
        server_info=Rpc(f"/{_SERVICE}/GetServerInfo", pb.GetServerInfoResponse),
        loads=None,
        tokenizer=Rpc(f"/{_SERVICE}/GetTokenizer", common_pb2.GetTokenizerChunk),
    )
    traits = Traits(
        handshakes=(HandshakeKind.AGGREGATE,),
        abort_in_transfer=AbortInTransfer.SAFE,
        needs_cancel_after_abort=False,
        zero_loads_may_be_dead=False,
        max_choices=1,
    )
    embed = None
    operations = _NO_OPERATIONS
    kv_events = None

    def generate_request(self, leg: LegRequest, facts: WorkerFacts | None) -> Message:
        """The Generate request of an aggregated leg."""
        check_biased_tokens(leg, facts)
        if leg.kind is not HandshakeKind.AGGREGATE:
            raise refuse_broken_leg(leg, f"{_ENGINE} has no pairs")
        refuse_rank(leg, _ENGINE)
        refuse_adapters(leg.adapters, f"{_ENGINE}'s protocol")
        refuse_prompt_logprobs(leg, _ENGINE)
        request = pb.GenerateRequest(
            request_id=leg.leg_id, sampling_params=_sampling(leg, facts), stream=leg.is_streaming
        )
        write_prompt(request.tokenized.input_ids, leg.token_ids, facts, leg.highest_token_id)
        return request

    def decoder(self, leg: LegRequest) -> ItemDecoder:
        """A decoder for running counts and an end without ids."""
        return StreamDecoder(leg, _READING, choices=1)

    def status_failure(self, leg: LegRequest, code: Code, details: str) -> EngineFailure:
        """Statuses mean what they say."""
        return engine_status_failure(code, details)

    def abort_request(self, leg_id: str) -> Message:
        """Aborts by id; the stream then ends with OK and without an end."""
        return pb.AbortRequest(request_ids=[leg_id])

    def health_request(self) -> Message:
        """Empty."""
        return pb.HealthCheckRequest()

    def check_health(self, response: Any) -> None:
        """`healthy` must be set: it is not once the generation thread is gone."""
        check_healthy(response.healthy, response.message)

    def model_info_request(self) -> Message:
        """Empty."""
        return pb.GetModelInfoRequest()

    def server_info_request(self) -> Message:
        """Empty."""
        return pb.GetServerInfoRequest()

    def facts(self, model_info: Any, server_info: Any) -> WorkerFacts:
        """Facts from GetModelInfo; GetServerInfo adds none."""
        name = model_info.served_model_name
        return WorkerFacts(
            runtime_type=self.runtime_type,
            model_id=name or model_info.model_path or "unknown",
            served_names=(name,) if name else (),
            context_length=model_info.max_context_length or None,
            vocab_size=model_info.vocab_size or None,
            eos_token_ids=tuple(model_info.eos_token_ids),
            max_choices=self.traits.max_choices,
            returns_prompt_logprobs=False,
        )

    def process_age_s(self, server_info: Any) -> float | None:
        """`uptime_seconds`."""
        return float(server_info.uptime_seconds) or None

    def tokenizer_request(self) -> Message:
        """Empty."""
        return common_pb2.GetTokenizerRequest()


def _sampling(leg: LegRequest, facts: WorkerFacts | None) -> pb.SamplingParams:
    """What is neutral stays unset where zero means so: each penalty that is set costs a pass over the logits."""
    asked = leg.sampling
    if asked.n > 1:
        raise cannot_carry("sampling.n", _ENGINE)
    if asked.min_tokens:
        raise cannot_carry("sampling.min_tokens", _ENGINE)
    if asked.constraint is not None:
        constraint_field(asked.constraint, _NO_CONSTRAINTS, _ENGINE)
    defaults = facts.default_sampling if facts is not None else {}
    temperature = effective(asked.temperature, defaults, "temperature", 1.0)
    if asked.seed is not None and temperature != 0.0:
        sentence = f"{_ENGINE} takes a seed without effect and temperature is not 0"
        raise TandemError(Reason.RUNTIME_CANNOT_SEED, sentence, field="sampling.seed")
    repetition = effective(asked.repetition_penalty, defaults, "repetition_penalty", 1.0)
    params = pb.SamplingParams(
        temperature=temperature,
        top_p=effective(asked.top_p, defaults, "top_p", 1.0),
        top_k=_top_k(int(effective(asked.top_k, defaults, "top_k", 0)), facts),
        min_p=effective(asked.min_p, defaults, "min_p", 0.0),
        repetition_penalty=0.0 if repetition == 1.0 else repetition,
        frequency_penalty=effective(asked.frequency_penalty, defaults, "frequency_penalty", 0.0),
        presence_penalty=effective(asked.presence_penalty, defaults, "presence_penalty", 0.0),
        logit_bias=asked.logit_bias,
        stop_token_ids=asked.stop_token_ids,
        ignore_eos=asked.ignore_eos is True,
    )
    if asked.max_tokens is not None:
        params.max_tokens = asked.max_tokens
    if leg.output_logprobs:
        params.logprobs = max(1, leg.top_logprobs)
    return params


def _top_k(asked: int, facts: WorkerFacts | None) -> int:
    """0 where it is off, which is also what a value that leaves nothing out means.

    Raises RUNTIME_CANNOT_CARRY_FIELD where it may be above a vocabulary of unknown size: MLX tells only the one at the
    top of config.json, which models of several modalities keep further down.
    """
    size = facts.vocab_size if facts is not None else None
    if size is None and asked > _LEAST_VOCABULARY:
        raise cannot_carry("sampling.top_k", f"{_ENGINE} with a vocabulary of unknown size")
    return 0 if size is not None and asked >= size else max(0, asked)
