"""TensorRT-LLM's protocol (`trtllm.TrtllmService`): one worker, no pairs.

Its message of an end has no context-phase parameters, so no decode could be told where the KV cache lies; the request's
`disaggregated_params` is never set. Read in TensorRT-LLM's own servicer, not run:
- stop tokens are cut off the ids after they were streamed, unless `include_stop_token_in_output` is set: it always is;
- log probabilities of the prompt are of the likeliest tokens only and one position off, so none are asked for;
- Embed has no body; a biased token needs a whole vocabulary of floats of a length that it does not tell;
- `vocab_size` is the tokenizer's without its added tokens: ids above it are legal, so it is not a fact of ours.
"""

from __future__ import annotations

from typing import Any

from google.protobuf.message import Message
from smg_grpc_proto.generated import common_pb2
from smg_grpc_proto.generated import trtllm_service_pb2 as pb

from tandem_router.engines.contract import EmbedRpc, ItemDecoder, Methods, OperationRpc, Rpc, Traits
from tandem_router.engines.decoding import Counts, Reading, StreamDecoder
from tandem_router.engines.embed_rpcs import check_embed, vector_of
from tandem_router.engines.guards import (
    UINT64_MAX,
    cannot_carry,
    check_biased_tokens,
    check_healthy,
    check_seed,
    constraint_field,
    engine_status_failure,
    refuse_prompt_logprobs,
    refuse_rank,
    sole_adapter,
    write_prompt,
)
from tandem_router.engines.kv_events import kv_events_rpc
from tandem_router.engines.loads import NoLoads
from tandem_router.engines.logprobs import row_logprobs
from tandem_router.errors import Code, Reason, TandemError
from tandem_router.model.embedding import EmbedLeg
from tandem_router.model.failure import EngineFailure
from tandem_router.model.operations import Operation
from tandem_router.model.pairing import AbortInTransfer, HandshakeKind
from tandem_router.model.request import ConstraintKind, LegRequest
from tandem_router.model.spec import RuntimeType
from tandem_router.model.worker import WorkerFacts

__all__ = ["TrtllmDialect"]

_SERVICE = "trtllm.TrtllmService"
_ENGINE = "TensorRT-LLM"
_MAX_TASK_ID = 2**63 - 1
_CONSTRAINTS = {
    ConstraintKind.JSON_SCHEMA: pb.GuidedDecodingParams.GUIDE_TYPE_JSON_SCHEMA,
    ConstraintKind.REGEX: pb.GuidedDecodingParams.GUIDE_TYPE_REGEX,
    ConstraintKind.EBNF: pb.GuidedDecodingParams.GUIDE_TYPE_EBNF_GRAMMAR,
    ConstraintKind.STRUCTURAL_TAG: pb.GuidedDecodingParams.GUIDE_TYPE_STRUCTURAL_TAG,
}
_SCALARS = ("temperature", "top_p", "min_p", "frequency_penalty", "presence_penalty", "repetition_penalty")
_READING = Reading(Counts.RUNNING, index="sequence_index", end_ids="output_token_ids", logprobs=row_logprobs)
_NO_OPERATIONS: dict[type[Operation], OperationRpc] = {}


def _embed(leg: EmbedLeg, facts: WorkerFacts | None) -> pb.EmbedRequest:
    check_embed(leg, _ENGINE)
    request = pb.EmbedRequest(request_id=leg.leg_id)
    write_prompt(request.tokenized.input_token_ids, leg.token_ids, facts)
    return request


class TrtllmDialect(NoLoads):
    """`Dialect` of TensorRT-LLM."""

    runtime_type = RuntimeType.TRTLLM
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
        needs_cancel_after_abort=True,
        zero_loads_may_be_dead=False,
    )
    embed = EmbedRpc(Rpc(f"/{_SERVICE}/Embed", pb.EmbedResponse), _embed, vector_of)
    operations = _NO_OPERATIONS
    kv_events = kv_events_rpc(_SERVICE)

    def generate_request(self, leg: LegRequest, facts: WorkerFacts | None) -> Message:
        """The Generate request of an aggregated leg."""
        if leg.kind is not HandshakeKind.AGGREGATE:
            raise TandemError(
                Reason.RUNTIME_CANNOT_RETURN_CONTEXT_PARAMS,
                f"{_ENGINE} returns nothing that a decode worker could pull by",
            )
        check_biased_tokens(leg, facts)
        refuse_rank(leg, _ENGINE)
        refuse_prompt_logprobs(leg, _ENGINE)
        asked = leg.sampling
        request = pb.GenerateRequest(
            request_id=leg.leg_id,
            sampling_config=_sampling(leg, facts),
            max_tokens=_max_tokens(leg, facts),
            streaming=leg.is_streaming,
            stop=asked.stop,
            stop_token_ids=asked.stop_token_ids,
            ignore_eos=asked.ignore_eos is True,
            include_stop_token_in_output=True,
        )
        write_prompt(request.tokenized.input_token_ids, leg.token_ids, facts, leg.highest_token_id)
        request.output_config.exclude_input_from_output = True
        if leg.output_logprobs:
            # 0 meant none before it meant the drawn token alone; the one alternative too many is dropped again.
            request.output_config.logprobs = max(1, leg.top_logprobs)
        if asked.constraint is not None:
            request.guided_decoding.guide_type = constraint_field(asked.constraint, _CONSTRAINTS, _ENGINE)
            request.guided_decoding.guide = asked.constraint.text
        adapter = sole_adapter(leg.adapters, _ENGINE)
        if adapter is not None:
            request.lora_config.task_id = _task_id(adapter.name)
        return request

    def decoder(self, leg: LegRequest) -> ItemDecoder:
        """A decoder for running counts and an end with all ids."""
        return StreamDecoder(leg, _READING, choices=leg.sampling.n)

    def status_failure(self, leg: LegRequest, code: Code, details: str) -> EngineFailure:
        """Statuses mean what they say."""
        return engine_status_failure(code, details)

    def abort_request(self, leg_id: str) -> Message:
        """Aborts by id."""
        return pb.AbortRequest(request_id=leg_id)

    def health_request(self) -> Message:
        """Empty."""
        return pb.HealthCheckRequest()

    def check_health(self, response: Any) -> None:
        """`status` is "OK", or else what is wrong, under status OK."""
        check_healthy(response.status == "OK", response.status)

    def model_info_request(self) -> Message:
        """Empty."""
        return pb.GetModelInfoRequest()

    def server_info_request(self) -> Message:
        """Empty."""
        return pb.GetServerInfoRequest()

    def facts(self, model_info: Any, server_info: Any) -> WorkerFacts:
        """Facts from GetModelInfo; of GetServerInfo only the version. Neither tells one process from the next."""
        features = tuple(model_info.supported_features)
        return WorkerFacts(
            runtime_type=self.runtime_type,
            model_id=model_info.model_id or "unknown",
            context_length=model_info.max_seq_len or None,
            max_running_requests=model_info.max_batch_size or None,
            supports_seed=True,
            # The published servicer lists no features at all, which says nothing; one that does is believed.
            constraints=() if features and "guided_decoding" not in features else tuple(_CONSTRAINTS),
            applies_adapters="lora" in features,
            publishes_kv_events=True,
            returns_prompt_logprobs=False,
            version=server_info.version or None,
        )

    def process_age_s(self, server_info: Any) -> float | None:
        """Not told."""
        return None

    def tokenizer_request(self) -> Message:
        """Empty."""
        return common_pb2.GetTokenizerRequest()


def _sampling(leg: LegRequest, facts: WorkerFacts | None) -> pb.SamplingConfig:
    """Scalars have presence: what nobody stated is left to the engine."""
    asked = leg.sampling
    if asked.logit_bias:
        raise cannot_carry("sampling.logit_bias", _ENGINE)
    defaults = facts.default_sampling if facts is not None else {}
    config = pb.SamplingConfig(beam_width=1, num_return_sequences=asked.n)
    for name in _SCALARS:
        stated = getattr(asked, name)
        value = stated if stated is not None else defaults.get(name)
        if value is not None:
            setattr(config, name, value)
    top_k = asked.top_k if asked.top_k is not None else int(defaults.get("top_k", 0))
    if top_k > 0:
        config.top_k = top_k
    if asked.min_tokens:
        config.min_tokens = asked.min_tokens
    if asked.seed is not None:
        check_seed(asked.seed, 0, UINT64_MAX, _ENGINE)
        config.seed = asked.seed
    return config


def _max_tokens(leg: LegRequest, facts: WorkerFacts | None) -> int:
    """Asked for, else what is left of the context; raises INVALID_REQUEST where neither is known: 0 would mean none."""
    if leg.sampling.max_tokens is not None:
        return leg.sampling.max_tokens
    if facts is None or facts.context_length is None:
        sentence = f"{_ENGINE} must be told how many tokens to make"
        raise TandemError(Reason.INVALID_REQUEST, sentence, field="sampling.max_tokens")
    return max(1, facts.context_length - len(leg.token_ids))


def _task_id(name: str) -> int:
    """The number that the engine knows an adapter by; 0 means none there."""
    task_id = int(name) if name.isascii() and name.isdigit() and len(name) <= 19 else 0
    if not 0 < task_id <= _MAX_TASK_ID:
        raise TandemError(
            Reason.RUNTIME_CANNOT_APPLY_ADAPTERS,
            f"{_ENGINE} knows adapters by a task id, a number from 1 to {_MAX_TASK_ID}, not {name!r}",
            field="adapters[0].name",
        )
    return task_id
