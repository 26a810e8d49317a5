"""vLLM's engine protocol (`vllm.grpc.engine.VllmEngine`): handoff.

The prefill leg is a clone that makes exactly one token and returns kv_transfer_params; the decode leg gets them
verbatim. Connectors that meet in a shared store return none, and their decode leg carries none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

from google.protobuf.message import Message
from smg_grpc_proto.generated import common_pb2
from smg_grpc_proto.generated import vllm_engine_pb2 as pb

from tandem_router.engines.common_rpcs import shared_operations
from tandem_router.engines.contract import EmbedRpc, ItemDecoder, Methods, Rpc, Traits
from tandem_router.engines.decoding import Counts, Reading, StreamDecoder
from tandem_router.engines.embed_rpcs import check_embed, vector_of
from tandem_router.engines.guards import (
    INT32_MAX,
    cannot_carry,
    check_biased_tokens,
    check_healthy,
    check_seed,
    constraint_field,
    default_sampling,
    effective,
    engine_status_failure,
    refuse_adapters,
    refuse_broken_leg,
    write_prompt,
)
from tandem_router.engines.kv_events import kv_events_rpc
from tandem_router.engines.loads import core_loads
from tandem_router.engines.transfer_params import decode_params, prefill_params
from tandem_router.errors import Code
from tandem_router.model.embedding import EmbedLeg
from tandem_router.model.failure import EngineFailure
from tandem_router.model.ids import canonical_uuid
from tandem_router.model.operations import StartProfile
from tandem_router.model.pairing import AbortInTransfer, HandshakeKind, KvRole, LegRole
from tandem_router.model.request import ConstraintKind, LegRequest
from tandem_router.model.spec import RuntimeType, WorkerType
from tandem_router.model.worker import RankLoad, WorkerFacts

__all__ = ["VllmDialect"]

_SERVICE = "vllm.grpc.engine.VllmEngine"
_MAX_LOGPROBS = 20
"""`--max-logprobs` where the operator states none; more is INVALID_ARGUMENT."""
_ROLES = {role.value: role for role in KvRole}
_CONSTRAINTS = {
    ConstraintKind.JSON_SCHEMA: "json_schema",
    ConstraintKind.REGEX: "regex",
    ConstraintKind.EBNF: "grammar",
    ConstraintKind.STRUCTURAL_TAG: "structural_tag",
    ConstraintKind.CHOICE: "choice",
}
_MODES = {KvRole.PRODUCER: WorkerType.PREFILL, KvRole.CONSUMER: WorkerType.DECODE}
_READING = Reading(Counts.PER_MESSAGE, has_transfer_params=True)
_SHARED = shared_operations(_SERVICE)


def _embed(leg: EmbedLeg, facts: WorkerFacts | None) -> pb.EmbedRequest:
    check_embed(leg, "vLLM")
    request = pb.EmbedRequest(request_id=leg.leg_id)
    write_prompt(request.tokenized.input_ids, leg.token_ids, facts)
    return request


def _start_profile(operation: StartProfile) -> Message:
    """Raises RUNTIME_CANNOT_CARRY_FIELD for any option: vLLM's profiler takes them at the engine's launch."""
    for option in fields(operation):
        if getattr(operation, option.name) != option.default:
            raise cannot_carry(option.name, "vLLM's StartProfile")
    return _SHARED[StartProfile].request(operation)


_OPERATIONS = {**_SHARED, StartProfile: replace(_SHARED[StartProfile], request=_start_profile)}


class VllmDialect:
    """`Dialect` of vLLM."""

    runtime_type = RuntimeType.VLLM
    service = _SERVICE
    methods = Methods(
        generate=Rpc(f"/{_SERVICE}/Generate", pb.GenerateResponse),
        abort=Rpc(f"/{_SERVICE}/Abort", pb.AbortResponse),
        health=Rpc(f"/{_SERVICE}/HealthCheck", pb.HealthCheckResponse),
        model_info=Rpc(f"/{_SERVICE}/GetModelInfo", pb.GetModelInfoResponse),
        server_info=Rpc(f"/{_SERVICE}/GetServerInfo", pb.GetServerInfoResponse),
        loads=Rpc(f"/{_SERVICE}/GetLoads", pb.GetLoadsResponse),
        tokenizer=Rpc(f"/{_SERVICE}/GetTokenizer", common_pb2.GetTokenizerChunk),
    )
    traits = Traits(
        handshakes=(HandshakeKind.AGGREGATE, HandshakeKind.HANDOFF),
        # NIXL frees on abort; Mooncake does not, which its handshake declares (a protocol serves several connectors).
        abort_in_transfer=AbortInTransfer.SAFE,
        needs_cancel_after_abort=False,
        zero_loads_may_be_dead=True,
    )

    embed = EmbedRpc(Rpc(f"/{_SERVICE}/Embed", pb.EmbedResponse), _embed, vector_of)
    operations = _OPERATIONS
    kv_events = kv_events_rpc(_SERVICE)

    def generate_request(self, leg: LegRequest, facts: WorkerFacts | None) -> Message:
        """The Generate request of a leg; a handoff's prefill leg is capped to one token whatever was asked."""
        check_biased_tokens(leg, facts)
        refuse_adapters(leg.adapters, "vLLM's protocol")
        if leg.kind is HandshakeKind.RENDEZVOUS:
            raise refuse_broken_leg(leg, "vLLM has no rendezvous")
        is_prefill = leg.kind is HandshakeKind.HANDOFF and leg.role is LegRole.PREFILL
        request = pb.GenerateRequest(
            request_id=leg.leg_id,
            sampling_params=_sampling(leg, facts),
            stream=leg.is_streaming and not is_prefill,
        )
        write_prompt(request.tokenized.input_ids, leg.token_ids, facts, leg.highest_token_id)
        if is_prefill:
            _cap_to_one_token(request.sampling_params)
        if leg.kind is HandshakeKind.HANDOFF:
            params = prefill_params(leg, facts) if is_prefill else decode_params(leg, facts)
            if params is not None:  # empty text would be refused: it is no JSON object
                request.kv_transfer_params_json = params
        if leg.dp_rank is not None:
            request.data_parallel_rank = leg.dp_rank
        return request

    def decoder(self, leg: LegRequest) -> ItemDecoder:
        """A decoder for per-message counts; a prefill leg owes one end whatever n is."""
        is_prefill = leg.kind is HandshakeKind.HANDOFF and leg.role is LegRole.PREFILL
        return StreamDecoder(leg, _READING, choices=1 if is_prefill else leg.sampling.n)

    def status_failure(self, leg: LegRequest, code: Code, details: str) -> EngineFailure:
        """Statuses mean what they say; a failed transfer comes as a `complete` instead."""
        return engine_status_failure(code, details)

    def abort_request(self, leg_id: str) -> Message:
        """Aborts by id."""
        return pb.AbortRequest(request_ids=[leg_id])

    def health_request(self) -> Message:
        """Empty."""
        return pb.HealthCheckRequest()

    def check_health(self, response: Any) -> None:
        """`healthy` must be set: a dead engine leaves its process up and answers OK with healthy=false."""
        check_healthy(response.healthy, response.message)

    def model_info_request(self) -> Message:
        """Empty."""
        return pb.GetModelInfoRequest()

    def server_info_request(self) -> Message:
        """Empty."""
        return pb.GetServerInfoRequest()

    def facts(self, model_info: Any, server_info: Any) -> WorkerFacts:
        """Facts from GetModelInfo and GetServerInfo."""
        name = model_info.served_model_name
        role = _ROLES.get(server_info.kv_role)
        return WorkerFacts(
            runtime_type=self.runtime_type,
            model_id=name or model_info.model_path or "unknown",
            served_names=(name,) if name else (),
            context_length=model_info.max_context_length or None,
            vocab_size=model_info.vocab_size or None,
            eos_token_ids=tuple(model_info.eos_token_ids),
            max_running_requests=server_info.max_num_seqs or None,
            dp_size=max(1, server_info.data_parallel_size),
            # Without a connector the engine returns no params, and a pair would silently compute the prompt twice.
            handshake=HandshakeKind.HANDOFF if server_info.kv_connector else None,
            kv_connector=server_info.kv_connector or None,
            kv_role=role,
            kv_engine_id=server_info.kv_engine_id or None,
            kv_block_size=server_info.block_size or None,
            kv_dtype=server_info.kv_cache_dtype or None,
            pairing_protocol=server_info.pairing_protocol or None,
            disaggregation_mode=_MODES.get(role) if role is not None else None,
            supports_seed=True,
            constraints=tuple(_CONSTRAINTS),
            max_greedy_choices=1,
            can_generate=model_info.is_generation,
            can_embed=not model_info.is_generation,
            publishes_kv_events=True,
            flushes_cache=True,
            profiles=True,
            default_sampling=default_sampling(model_info.default_sampling_params_json),
            instance=_drawn(server_info.kv_engine_id),
        )

    def process_age_s(self, server_info: Any) -> float | None:
        """`uptime_seconds`."""
        return float(server_info.uptime_seconds) or None

    def loads_request(self) -> Message:
        """Core is all that vLLM emits."""
        return pb.GetLoadsRequest(include=["core"])

    def loads(self, response: Any, sampled_at_s: float) -> Sequence[RankLoad]:
        """One sample per rank."""
        return core_loads(response, sampled_at_s)

    def tokenizer_request(self) -> Message:
        """Empty."""
        return common_pb2.GetTokenizerRequest()


def _drawn(engine_id: str) -> str | None:
    """An engine id that vLLM drew as it started, a UUID; one that an operator chose stays over a restart."""
    return engine_id if canonical_uuid(engine_id) is not None else None


def _sampling(leg: LegRequest, facts: WorkerFacts | None) -> pb.SamplingParams:
    """Plain scalars written with their neutral value; temperature alone has presence."""
    asked = leg.sampling
    defaults = facts.default_sampling if facts is not None else {}
    params = pb.SamplingParams(
        temperature=effective(asked.temperature, defaults, "temperature", 1.0),
        top_p=effective(asked.top_p, defaults, "top_p", 1.0),
        # vLLM's neutral value on this wire is 0; SGLang's -1 does not fit into uint32.
        top_k=max(0, int(effective(asked.top_k, defaults, "top_k", 0))),
        min_p=effective(asked.min_p, defaults, "min_p", 0.0),
        frequency_penalty=effective(asked.frequency_penalty, defaults, "frequency_penalty", 0.0),
        presence_penalty=effective(asked.presence_penalty, defaults, "presence_penalty", 0.0),
        repetition_penalty=effective(asked.repetition_penalty, defaults, "repetition_penalty", 1.0),
        min_tokens=asked.min_tokens or 0,
        stop=asked.stop,
        stop_token_ids=asked.stop_token_ids,
        skip_special_tokens=asked.skip_special_tokens is not False,
        spaces_between_special_tokens=True,
        ignore_eos=asked.ignore_eos is True,
        n=asked.n,
        logit_bias=asked.logit_bias,
        include_stop_str_in_output=asked.include_stop,
    )
    if asked.constraint is not None:
        name = constraint_field(asked.constraint, _CONSTRAINTS, "vLLM")
        if asked.constraint.kind is ConstraintKind.CHOICE:
            params.choice.choices.extend(asked.constraint.choices)
        else:
            setattr(params, name, asked.constraint.text)
    if asked.max_tokens is not None:
        params.max_tokens = asked.max_tokens
    if asked.seed is not None:
        check_seed(asked.seed, -INT32_MAX - 1, INT32_MAX, "vLLM")
        params.seed = asked.seed
    if leg.output_logprobs:
        params.logprobs = _alternatives(leg)
    if leg.prompt_logprobs:
        params.prompt_logprobs = _alternatives(leg)
    return params


def _alternatives(leg: LegRequest) -> int:
    """One more than is wanted: the servicer counts the token itself among them, also where others are likelier."""
    return min(leg.top_logprobs + 1, _MAX_LOGPROBS) if leg.top_logprobs else 0


def _cap_to_one_token(params: pb.SamplingParams) -> None:
    """Exactly one token: a stop that matched it, or an end token, could end the request before its KV is published."""
    params.max_tokens = 1
    params.min_tokens = 0
    params.n = 1
    params.ClearField("stop")
    params.ClearField("stop_token_ids")
    params.ignore_eos = True
    params.ClearField("logprobs")
    which = params.WhichOneof("constraint")
    if which is not None:
        params.ClearField(which)
