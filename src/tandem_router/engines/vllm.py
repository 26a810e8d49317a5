"""vLLM's engine protocol (`vllm.grpc.engine.VllmEngine`): handoff.

The prefill leg is a clone that makes exactly one token and returns kv_transfer_params; the decode leg gets them
verbatim. A decode with `do_remote_prefill` and no `remote_block_ids` kills the engine, so it is never sent.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from google.protobuf.message import Message
from smg_grpc_proto.generated import common_pb2
from smg_grpc_proto.generated import vllm_engine_pb2 as pb

from tandem_router.engines.contract import ItemDecoder, Methods, Rpc, Traits
from tandem_router.engines.decoding import Counts, StreamDecoder
from tandem_router.engines.guards import (
    INT32_MAX,
    constraint_field,
    default_sampling,
    effective,
    engine_status_failure,
    refuse_broken_leg,
    refuse_empty_prompt,
)
from tandem_router.engines.loads import core_loads
from tandem_router.errors import Code, Reason, TandemError
from tandem_router.model.failure import EngineFailure
from tandem_router.model.pairing import AbortInTransfer, HandshakeKind, KvRole, LegRole, TransferParams
from tandem_router.model.request import ConstraintKind, LegRequest
from tandem_router.model.spec import RuntimeType, WorkerType
from tandem_router.model.worker import RankLoad, WorkerFacts

__all__ = ["ASK_FOR_TRANSFER_PARAMS", "VllmDialect"]

_SERVICE = "vllm.grpc.engine.VllmEngine"
ASK_FOR_TRANSFER_PARAMS = '{"do_remote_decode":true,"do_remote_prefill":false}'
"""What a prefill leg is sent when the handshake has nothing of its own to say (NIXL)."""
_ROLES = {role.value: role for role in KvRole}
_CONSTRAINTS = {
    ConstraintKind.JSON_SCHEMA: "json_schema",
    ConstraintKind.REGEX: "regex",
    ConstraintKind.EBNF: "grammar",
    ConstraintKind.STRUCTURAL_TAG: "structural_tag",
    ConstraintKind.CHOICE: "choice",
}
_MODES = {KvRole.PRODUCER: WorkerType.PREFILL, KvRole.CONSUMER: WorkerType.DECODE}


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

    def generate_request(self, leg: LegRequest, facts: WorkerFacts | None) -> Message:
        """The Generate request of a leg; a handoff's prefill leg is capped to one token whatever was asked."""
        refuse_empty_prompt(leg)
        if leg.kind is HandshakeKind.RENDEZVOUS:
            raise refuse_broken_leg(leg, "vLLM has no rendezvous")
        is_prefill = leg.kind is HandshakeKind.HANDOFF and leg.role is LegRole.PREFILL
        request = pb.GenerateRequest(
            request_id=leg.leg_id,
            sampling_params=_sampling(leg, facts),
            stream=leg.is_streaming and not is_prefill,
        )
        request.tokenized.input_ids.extend(leg.token_ids)  # half the time of a constructor, which copies twice
        if is_prefill:
            _cap_to_one_token(request.sampling_params)
        if leg.kind is HandshakeKind.HANDOFF:
            request.kv_transfer_params_json = _prefill_params(leg) if is_prefill else _decode_params(leg)
        if leg.dp_rank is not None:
            request.data_parallel_rank = leg.dp_rank
        return request

    def decoder(self, leg: LegRequest) -> ItemDecoder:
        """A decoder for per-message counts; a prefill leg owes one end whatever n is."""
        is_prefill = leg.kind is HandshakeKind.HANDOFF and leg.role is LegRole.PREFILL
        return StreamDecoder(
            leg, choices=1 if is_prefill else leg.sampling.n, counts=Counts.PER_MESSAGE, has_transfer_params=True
        )

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
        if not response.healthy:
            raise EngineFailure(
                Reason.ENGINE_ERROR, f"the engine is not healthy: {response.message}", code=Code.UNAVAILABLE
            )

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
            default_sampling=default_sampling(model_info.default_sampling_params_json),
            instance=server_info.kv_engine_id or None,
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
        if not -INT32_MAX - 1 <= asked.seed <= INT32_MAX:
            raise TandemError(
                Reason.INVALID_REQUEST, f"vLLM's wire carries int32 seeds, not {asked.seed}", field="sampling.seed"
            )
        params.seed = asked.seed
    if leg.output_logprobs:
        params.logprobs = leg.top_logprobs
    if leg.prompt_logprobs:
        params.prompt_logprobs = leg.top_logprobs
    return params


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


def _prefill_params(leg: LegRequest) -> str:
    return leg.handoff.json if isinstance(leg.handoff, TransferParams) else ASK_FOR_TRANSFER_PARAMS


def _decode_params(leg: LegRequest) -> str:
    """Prefill's own text, verbatim; looked into only to keep what kills the engine off the wire."""
    if not isinstance(leg.handoff, TransferParams):
        raise refuse_broken_leg(leg, "a decode leg of a handoff has no transfer params")
    text = leg.handoff.json
    try:
        params = json.loads(text)
    except ValueError as error:
        raise refuse_broken_leg(leg, f"transfer params are not JSON: {error}") from None
    if not isinstance(params, dict):
        raise refuse_broken_leg(leg, "transfer params are not a JSON object")
    # An empty list is legal: a prompt shorter than a block has nothing to move. Mooncake names the transfer instead.
    is_named = isinstance(params.get("remote_block_ids"), list) or bool(params.get("transfer_id"))
    if params.get("do_remote_prefill") and not is_named:
        raise refuse_broken_leg(leg, "do_remote_prefill without remote_block_ids kills the decode engine")
    return text
