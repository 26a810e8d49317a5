"""SGLang's gRPC scheduler protocol (`sglang.grpc.scheduler.SglangScheduler`): rendezvous.

Its sampling message has plain proto3 scalars, so an unset field means zero: `top_p` 0 would be a broken greedy. Every
field is therefore written. A prefill or decode worker dies of a request without `disaggregated_params`, any worker of
an empty prompt, and a room above int32 cannot be written.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from google.protobuf.message import Message
from smg_grpc_proto.generated import common_pb2
from smg_grpc_proto.generated import sglang_scheduler_pb2 as pb

from tandem_router.engines.common_rpcs import shared_operations
from tandem_router.engines.contract import EmbedRpc, ItemDecoder, Methods, Rpc, Traits
from tandem_router.engines.decoding import Counts, Reading, StreamDecoder
from tandem_router.engines.embed_rpcs import check_embed, vector_of
from tandem_router.engines.guards import (
    check_biased_tokens,
    check_healthy,
    check_seed,
    constraint_field,
    default_sampling,
    effective,
    write_prompt,
)
from tandem_router.engines.kv_events import kv_events_rpc
from tandem_router.engines.loads import core_loads
from tandem_router.engines.lora_rpcs import lora_id_of, lora_operations
from tandem_router.engines.rendezvous import meeting_of, rendezvous_status_failure
from tandem_router.engines.server_args import MODES, arguments, bootstrap_of, flag, integer, text
from tandem_router.errors import Code, Reason, TandemError
from tandem_router.model.embedding import EmbedLeg
from tandem_router.model.failure import EngineFailure
from tandem_router.model.pairing import AbortInTransfer, HandshakeKind
from tandem_router.model.request import ConstraintKind, LegRequest, Sampling
from tandem_router.model.spec import RuntimeType
from tandem_router.model.worker import RankLoad, WorkerFacts

__all__ = ["SglangDialect"]

_SERVICE = "sglang.grpc.scheduler.SglangScheduler"
_MAX_STRUCT_INT = 2**53
"""google.protobuf.Struct numbers are doubles: larger integers lose bits."""
_CONSTRAINTS = {
    ConstraintKind.JSON_SCHEMA: "json_schema",
    ConstraintKind.REGEX: "regex",
    ConstraintKind.EBNF: "ebnf_grammar",
    ConstraintKind.STRUCTURAL_TAG: "structural_tag",
}
_READING = Reading(Counts.RUNNING, ends_local_stops=True)
_OPERATIONS = {**shared_operations(_SERVICE), **lora_operations(_SERVICE)}


def _embed(leg: EmbedLeg, facts: WorkerFacts | None) -> pb.EmbedRequest:
    check_embed(leg, "SGLang")
    request = pb.EmbedRequest(request_id=leg.leg_id, sampling_params=_sampling(Sampling(), None))
    write_prompt(request.tokenized.input_ids, leg.token_ids, facts)
    if leg.dp_rank is not None:
        # Without presence on this message: rank 0 cannot be told from no pin.
        request.data_parallel_rank = leg.dp_rank
    return request


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

    embed = EmbedRpc(Rpc(f"/{_SERVICE}/Embed", pb.EmbedResponse), _embed, vector_of)
    operations = _OPERATIONS
    kv_events = kv_events_rpc(_SERVICE)

    def generate_request(self, leg: LegRequest, facts: WorkerFacts | None) -> Message:
        """The Generate request of a leg; the same fields go to both legs of a rendezvous."""
        check_biased_tokens(leg, facts)
        meeting = meeting_of(leg, facts, "SGLang")
        request = pb.GenerateRequest(
            request_id=leg.leg_id,
            sampling_params=_sampling(leg.sampling, facts),
            stream=leg.is_streaming,
            lora_id=lora_id_of(leg, facts),
        )
        write_prompt(request.tokenized.input_ids, leg.token_ids, facts, leg.highest_token_id)
        if leg.output_logprobs or leg.prompt_logprobs:
            request.return_logprob = True
            # -1: no logprobs of the prompt, only of what is generated.
            request.logprob_start_len = 0 if leg.prompt_logprobs else -1
            request.top_logprobs_num = leg.top_logprobs
        if leg.dp_rank is not None:
            # With presence: a pin to rank 0 that is not written lets the engine balance by itself.
            request.data_parallel_rank = leg.dp_rank
        if meeting is not None:
            params = request.disaggregated_params
            params.bootstrap_host, params.bootstrap_port = meeting.host, meeting.port
            params.bootstrap_room = meeting.room
        return request

    def decoder(self, leg: LegRequest) -> ItemDecoder:
        """A decoder for running counts."""
        return StreamDecoder(leg, _READING, choices=leg.sampling.n)

    def status_failure(self, leg: LegRequest, code: Code, details: str) -> EngineFailure:
        """A status in which a rendezvous leg names the transfer is the transfer's failure."""
        return rendezvous_status_failure(leg, code, details)

    def abort_request(self, leg_id: str) -> Message:
        """Aborts by id; SGLang takes every id with this prefix, so ids must not be prefixes of one another."""
        return pb.AbortRequest(request_id=leg_id, reason="router")

    def health_request(self) -> Message:
        """Empty."""
        return pb.HealthCheckRequest()

    def check_health(self, response: Any) -> None:
        """`healthy` must be set."""
        check_healthy(response.healthy, response.message)

    def model_info_request(self) -> Message:
        """Empty."""
        return pb.GetModelInfoRequest()

    def server_info_request(self) -> Message:
        """Empty."""
        return pb.GetServerInfoRequest()

    def facts(self, model_info: Any, server_info: Any) -> WorkerFacts:
        """Facts from GetModelInfo and the `server_args` of GetServerInfo."""
        args = arguments(server_info)
        name = model_info.served_model_name or text(args, "served_model_name")
        model_id = name or model_info.model_path or text(args, "model_path") or "unknown"
        mode = MODES.get(str(args.get("disaggregation_mode")))
        return WorkerFacts(
            runtime_type=self.runtime_type,
            model_id=model_id,
            served_names=(name,) if name else (),
            context_length=model_info.max_context_length or integer(args, "context_length"),
            vocab_size=model_info.vocab_size or integer(args, "vocab_size"),
            eos_token_ids=tuple(model_info.eos_token_ids),
            max_running_requests=integer(args, "max_running_requests"),
            dp_size=integer(args, "dp_size") or 1,
            handshake=HandshakeKind.RENDEZVOUS,
            kv_connector=text(args, "disaggregation_transfer_backend"),
            kv_block_size=integer(args, "page_size"),
            kv_dtype=text(args, "kv_cache_dtype"),
            pairing_protocol=text(args, "pairing_protocol"),
            bootstrap=bootstrap_of(args, mode),
            disaggregation_mode=mode,
            load_balance_method=text(args, "load_balance_method"),
            supports_seed=flag(args, "sampling_seed_in_custom_params"),
            position_keyed_sampling=flag(args, "position_keyed_sampling"),
            batch_invariant=flag(args, "batch_invariant"),
            constraints=() if text(args, "grammar_backend") == "none" else tuple(_CONSTRAINTS),
            can_generate=model_info.is_generation,
            # The first is what an engine says that serves both; SGLang itself is started for one of the two.
            can_embed=flag(args, "serves_embeddings") or flag(args, "is_embedding") or not model_info.is_generation,
            applies_adapters=flag(args, "enable_lora") or bool(args.get("lora_paths")),
            publishes_kv_events=True,
            flushes_cache=True,
            profiles=True,
            default_sampling=default_sampling(model_info.default_sampling_params_json),
            instance=text(args, "instance")
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


def _sampling(asked: Sampling, facts: WorkerFacts | None) -> pb.SamplingParams:
    """Every scalar written, since the proto's zero is not the engine's default."""
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
            check_seed(asked.seed, -_MAX_STRUCT_INT, _MAX_STRUCT_INT, "SGLang")
            params.custom_params["sampling_seed"] = asked.seed
        elif params.temperature != 0.0:
            raise TandemError(
                Reason.RUNTIME_CANNOT_SEED,
                "SGLang's protocol has no seed and temperature is not 0",
                field="sampling.seed",
            )
    return params
