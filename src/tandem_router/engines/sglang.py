"""SGLang's gRPC scheduler protocol (`sglang.grpc.scheduler.SglangScheduler`): rendezvous.

Its sampling message has plain proto3 scalars, so an unset field means zero: `top_p` 0 would be a broken greedy. Every
field is therefore written. A prefill or decode worker dies of a request without `disaggregated_params`, any worker of
an empty prompt, and a room above int32 cannot be written.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from smg_grpc_proto.generated import common_pb2
from smg_grpc_proto.generated import sglang_scheduler_pb2 as pb

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
from tandem_router.model.pairing import AbortInTransfer, BootstrapEndpoint, HandshakeKind, Rendezvous
from tandem_router.model.request import ConstraintKind, LegRequest
from tandem_router.model.spec import RuntimeType, WorkerType
from tandem_router.model.worker import RankLoad, WorkerFacts

__all__ = ["SglangDialect"]

_SERVICE = "sglang.grpc.scheduler.SglangScheduler"
_MAX_STRUCT_INT = 2**53
"""google.protobuf.Struct numbers are doubles: larger integers lose bits."""
_TRANSFER_WORDS = ("kv transfer", "kvtransfer", "kv_transfer", "bootstrap", "transfer failed", "disaggregation")
_CONSTRAINTS = {
    ConstraintKind.JSON_SCHEMA: "json_schema",
    ConstraintKind.REGEX: "regex",
    ConstraintKind.EBNF: "ebnf_grammar",
    ConstraintKind.STRUCTURAL_TAG: "structural_tag",
}
_MODES = {"prefill": WorkerType.PREFILL, "decode": WorkerType.DECODE}


class SglangDialect:
    """`Dialect` of SGLang."""

    runtime_type = RuntimeType.SGLANG
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
        handshakes=(HandshakeKind.AGGREGATE, HandshakeKind.RENDEZVOUS),
        abort_in_transfer=AbortInTransfer.DEFER,
        needs_cancel_after_abort=True,
        zero_loads_may_be_dead=False,
    )

    def generate_request(self, leg: LegRequest, facts: WorkerFacts | None) -> Message:
        """The Generate request of a leg; the same fields go to both legs of a rendezvous."""
        refuse_empty_prompt(leg)
        if leg.kind is HandshakeKind.HANDOFF:
            raise refuse_broken_leg(leg, "SGLang has no handoff")
        request = pb.GenerateRequest(
            request_id=leg.leg_id,
            sampling_params=_sampling(leg, facts),
            stream=leg.is_streaming,
        )
        request.tokenized.input_ids.extend(leg.token_ids)  # half the time of a constructor, which copies twice
        if leg.output_logprobs or leg.prompt_logprobs:
            request.return_logprob = True
            # -1: no logprobs of the prompt, only of what is generated.
            request.logprob_start_len = 0 if leg.prompt_logprobs else -1
            request.top_logprobs_num = leg.top_logprobs
        if leg.dp_rank is not None:
            # With presence: a pin to rank 0 that is not written lets the engine balance by itself.
            request.data_parallel_rank = leg.dp_rank
        if leg.kind is HandshakeKind.RENDEZVOUS:
            request.disaggregated_params.CopyFrom(_rendezvous(leg))
        return request

    def decoder(self, leg: LegRequest) -> ItemDecoder:
        """A decoder for running counts."""
        return StreamDecoder(leg, choices=leg.sampling.n, counts=Counts.RUNNING, ends_local_stops=True)

    def status_failure(self, leg: LegRequest, code: Code, details: str) -> EngineFailure:
        """A status in which a rendezvous leg names the transfer is the transfer's failure."""
        lowered = details.lower()
        if (
            leg.kind is HandshakeKind.RENDEZVOUS
            and code in (Code.INTERNAL, Code.ABORTED, Code.UNAVAILABLE, Code.UNKNOWN)
            and any(word in lowered for word in _TRANSFER_WORDS)
        ):
            return EngineFailure(Reason.KV_TRANSFER_FAILED, f"the engine answered {code.name}: {details}", code=code)
        return engine_status_failure(code, details)

    def abort_request(self, leg_id: str) -> Message:
        """Aborts by id; SGLang takes every id with this prefix, so ids must not be prefixes of one another."""
        return pb.AbortRequest(request_id=leg_id, reason="router")

    def health_request(self) -> Message:
        """Empty."""
        return pb.HealthCheckRequest()

    def check_health(self, response: Any) -> None:
        """`healthy` must be set."""
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
        """Facts from GetModelInfo and the `server_args` of GetServerInfo."""
        args: Mapping[str, Any] = MessageToDict(server_info.server_args)
        name = model_info.served_model_name or _text(args, "served_model_name")
        model_id = name or model_info.model_path or _text(args, "model_path") or "unknown"
        mode = _MODES.get(str(args.get("disaggregation_mode")))
        port = _integer(args, "disaggregation_bootstrap_port")
        return WorkerFacts(
            runtime_type=self.runtime_type,
            model_id=model_id,
            served_names=(name,) if name else (),
            context_length=model_info.max_context_length or _integer(args, "context_length"),
            vocab_size=model_info.vocab_size or _integer(args, "vocab_size"),
            eos_token_ids=tuple(model_info.eos_token_ids),
            max_running_requests=_integer(args, "max_running_requests"),
            dp_size=_integer(args, "dp_size") or 1,
            handshake=HandshakeKind.RENDEZVOUS,
            kv_connector=_text(args, "disaggregation_transfer_backend"),
            kv_block_size=_integer(args, "page_size"),
            kv_dtype=_text(args, "kv_cache_dtype"),
            pairing_protocol=_text(args, "pairing_protocol"),
            # The engine does not know under which name others reach it: the registration fills an empty host.
            bootstrap=BootstrapEndpoint("", port) if mode is WorkerType.PREFILL and port else None,
            disaggregation_mode=mode,
            load_balance_method=_text(args, "load_balance_method"),
            supports_seed=args.get("sampling_seed_in_custom_params") is True,
            position_keyed_sampling=args.get("position_keyed_sampling") is True,
            batch_invariant=args.get("batch_invariant") is True,
            constraints=() if _text(args, "grammar_backend") == "none" else tuple(_CONSTRAINTS),
            default_sampling=default_sampling(model_info.default_sampling_params_json),
            instance=_text(args, "instance")
            or (server_info.start_time.ToJsonString() if server_info.HasField("start_time") else None),
            version=server_info.sglang_version or None,
        )

    def process_age_s(self, server_info: Any) -> float | None:
        """`uptime_seconds`."""
        return float(server_info.uptime_seconds) or None

    def loads_request(self) -> Message:
        """The core section alone: the others cost the engine more than they tell."""
        return pb.GetLoadsRequest(include=["core"])

    def loads(self, response: Any, sampled_at_s: float) -> Sequence[RankLoad]:
        """One sample per rank."""
        return core_loads(response, sampled_at_s)

    def tokenizer_request(self) -> Message:
        """Empty."""
        return common_pb2.GetTokenizerRequest()


def _sampling(leg: LegRequest, facts: WorkerFacts | None) -> pb.SamplingParams:
    """Every scalar written, since the proto's zero is not the engine's default."""
    asked = leg.sampling
    defaults = facts.default_sampling if facts is not None else {}
    params = pb.SamplingParams(
        temperature=effective(asked.temperature, defaults, "temperature", 1.0),
        top_p=effective(asked.top_p, defaults, "top_p", 1.0),
        top_k=int(effective(asked.top_k, defaults, "top_k", -1)) or -1,
        min_p=effective(asked.min_p, defaults, "min_p", 0.0),
        frequency_penalty=effective(asked.frequency_penalty, defaults, "frequency_penalty", 0.0),
        presence_penalty=effective(asked.presence_penalty, defaults, "presence_penalty", 0.0),
        repetition_penalty=effective(asked.repetition_penalty, defaults, "repetition_penalty", 1.0),
        stop=asked.stop,
        stop_token_ids=asked.stop_token_ids,
        skip_special_tokens=asked.skip_special_tokens is not False,
        spaces_between_special_tokens=True,
        n=asked.n,
        min_new_tokens=asked.min_tokens or 0,
        ignore_eos=asked.ignore_eos is True,
        logit_bias={str(token): bias for token, bias in asked.logit_bias.items()},
        no_stop_trim=asked.include_stop,
    )
    if asked.constraint is not None:
        setattr(params, constraint_field(asked.constraint, _CONSTRAINTS, "SGLang"), asked.constraint.text)
    if asked.max_tokens is not None:
        params.max_new_tokens = asked.max_tokens
    if asked.seed is not None:
        if facts is not None and facts.supports_seed:
            if abs(asked.seed) > _MAX_STRUCT_INT:
                raise TandemError(
                    Reason.INVALID_REQUEST,
                    f"SGLang's wire carries seeds up to 2^53, not {asked.seed}",
                    field="sampling.seed",
                )
            params.custom_params["sampling_seed"] = asked.seed
        elif params.temperature != 0.0:
            raise TandemError(
                Reason.RUNTIME_CANNOT_SEED,
                "SGLang's protocol has no seed and temperature is not 0",
                field="sampling.seed",
            )
    return params


def _rendezvous(leg: LegRequest) -> pb.DisaggregatedParams:
    meeting = leg.handoff
    if not isinstance(meeting, Rendezvous):
        raise refuse_broken_leg(leg, "a prefill or decode worker of SGLang dies without disaggregated_params")
    if not 0 < meeting.room <= INT32_MAX:
        raise refuse_broken_leg(leg, f"room {meeting.room} does not fit into int32")
    if not meeting.host or not 0 < meeting.port <= 65535:
        raise refuse_broken_leg(leg, f"bootstrap endpoint {meeting.host!r}:{meeting.port} is not one")
    return pb.DisaggregatedParams(bootstrap_host=meeting.host, bootstrap_port=meeting.port, bootstrap_room=meeting.room)


def _text(args: Mapping[str, Any], name: str) -> str | None:
    value = args.get(name)
    return value if isinstance(value, str) and value else None


def _integer(args: Mapping[str, Any], name: str) -> int | None:
    value = args.get(name)
    return int(value) if isinstance(value, int | float) and not isinstance(value, bool) and value > 0 else None
