"""TokenSpeed's scheduler protocol (`tokenspeed.grpc.scheduler.TokenSpeedScheduler`): rendezvous.

Sampling scalars have presence, so what nobody stated is left to the engine. Read in smg-grpc-servicer 0.14.1, not run:
- a stop token is cut off the ids, and then counted but not sent, unless `no_stop_trim` is set: it always is;
- log probabilities come only where the engine was started with them, and are silently empty elsewhere;
- an abort ends the stream with status INTERNAL.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from google.protobuf.message import Message
from smg_grpc_proto.generated import common_pb2
from smg_grpc_proto.generated import tokenspeed_scheduler_pb2 as pb

from tandem_router.engines.common_rpcs import shared_operations
from tandem_router.engines.contract import ItemDecoder, Methods, Rpc, Traits
from tandem_router.engines.decoding import Counts, Reading, StreamDecoder
from tandem_router.engines.guards import (
    UINT64_MAX,
    cannot_carry,
    check_biased_tokens,
    check_healthy,
    check_seed,
    constraint_field,
    default_sampling,
    refuse_adapters,
    refuse_prompt_logprobs,
    write_prompt,
)
from tandem_router.engines.kv_events import kv_events_rpc
from tandem_router.engines.loads import core_loads
from tandem_router.engines.rendezvous import meeting_of, rendezvous_status_failure
from tandem_router.engines.server_args import MODES, arguments, bootstrap_of, flag, integer, text
from tandem_router.errors import Code, Reason
from tandem_router.model.failure import EngineFailure
from tandem_router.model.pairing import AbortInTransfer, HandshakeKind
from tandem_router.model.request import ConstraintKind, LegRequest
from tandem_router.model.spec import RuntimeType
from tandem_router.model.worker import RankLoad, WorkerFacts

__all__ = ["TokenspeedDialect"]

_SERVICE = "tokenspeed.grpc.scheduler.TokenSpeedScheduler"
_ENGINE = "TokenSpeed"
_CONSTRAINTS = {
    ConstraintKind.JSON_SCHEMA: "json_schema",
    ConstraintKind.REGEX: "regex",
    ConstraintKind.EBNF: "ebnf_grammar",
    ConstraintKind.STRUCTURAL_TAG: "structural_tag",
}
_SCALARS = ("temperature", "top_p", "top_k", "min_p", "frequency_penalty", "presence_penalty", "repetition_penalty")
_READING = Reading(Counts.RUNNING)


class TokenspeedDialect:
    """`Dialect` of TokenSpeed."""

    runtime_type = RuntimeType.TOKENSPEED
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
        # Prefill writes into decode's pages, as with every Mooncake transfer; nobody has shown that an abort is safe.
        abort_in_transfer=AbortInTransfer.DEFER,
        needs_cancel_after_abort=True,
        zero_loads_may_be_dead=False,
    )
    embed = None
    operations = shared_operations(_SERVICE)
    kv_events = kv_events_rpc(_SERVICE)

    def generate_request(self, leg: LegRequest, facts: WorkerFacts | None) -> Message:
        """The Generate request of a leg; the same fields go to both legs of a rendezvous."""
        check_biased_tokens(leg, facts)
        refuse_adapters(leg.adapters, f"{_ENGINE}'s protocol")
        refuse_prompt_logprobs(leg, _ENGINE)
        meeting = meeting_of(leg, facts, _ENGINE)
        request = pb.GenerateRequest(
            request_id=leg.leg_id, sampling_params=_sampling(leg, facts), stream=leg.is_streaming
        )
        write_prompt(request.tokenized.input_ids, leg.token_ids, facts, leg.highest_token_id)
        if leg.output_logprobs:
            if facts is not None and not facts.returns_logprobs:
                raise cannot_carry("logprobs.output", f"{_ENGINE} without --enable-output-logprobs")
            request.return_logprob = True
            request.top_logprobs_num = leg.top_logprobs
        if leg.dp_rank is not None:
            request.data_parallel_rank = leg.dp_rank
        if meeting is not None:
            info = request.kv_bootstrap_info
            info.bootstrap_host, info.bootstrap_port, info.bootstrap_room = meeting.host, meeting.port, meeting.room
        return request

    def decoder(self, leg: LegRequest) -> ItemDecoder:
        """A decoder for running counts."""
        return StreamDecoder(leg, _READING, choices=leg.sampling.n)

    def status_failure(self, leg: LegRequest, code: Code, details: str) -> EngineFailure:
        """The transfer's failures by their words; an abort, which comes as INTERNAL, by its own."""
        failure = rendezvous_status_failure(leg, code, details)
        if failure.reason is Reason.ENGINE_ERROR and code is Code.INTERNAL and "abort" in details.lower():
            return EngineFailure(Reason.ENGINE_ABORTED, failure.sentence, code=code)
        return failure

    def abort_request(self, leg_id: str) -> Message:
        """Aborts by id; the choices of n > 1 go with it."""
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
        mode = MODES.get(str(args.get("disaggregation_mode")))
        dp_size = integer(args, "dp_size") or 1
        return WorkerFacts(
            runtime_type=self.runtime_type,
            model_id=name or model_info.model_path or text(args, "model") or "unknown",
            served_names=(name,) if name else (),
            context_length=model_info.max_context_length or None,
            vocab_size=model_info.vocab_size or None,
            eos_token_ids=tuple(model_info.eos_token_ids),
            max_running_requests=integer(args, "max_num_seqs") or integer(args, "max_running_requests"),
            dp_size=dp_size,
            handshake=HandshakeKind.RENDEZVOUS,
            kv_connector=text(args, "disaggregation_transfer_backend"),
            kv_block_size=integer(args, "page_size"),
            kv_dtype=text(args, "kv_cache_dtype"),
            pairing_protocol=text(args, "pairing_protocol"),
            bootstrap=bootstrap_of(args, mode),
            disaggregation_mode=mode,
            # It names dp_size only where it heeds a pin on both legs; our rooms agree with the prefill's pin, so an
            # engine that goes by the room's residue instead places alike.
            load_balance_method="follow_bootstrap_room" if dp_size > 1 else None,
            supports_seed=True,
            constraints=() if text(args, "grammar_backend") == "none" else tuple(_CONSTRAINTS),
            publishes_kv_events=True,
            flushes_cache=True,
            profiles=True,
            returns_logprobs=flag(args, "enable_output_logprobs"),
            returns_prompt_logprobs=False,
            default_sampling=default_sampling(model_info.default_sampling_params_json),
            instance=server_info.start_time.ToJsonString() if server_info.HasField("start_time") else None,
            version=server_info.tokenspeed_version or None,
        )

    def process_age_s(self, server_info: Any) -> float | None:
        """`uptime_seconds`."""
        return float(server_info.uptime_seconds) or None

    def loads_request(self) -> Message:
        """Core only: more sections cost the engine more than they tell."""
        return pb.GetLoadsRequest(include=["core"])

    def loads(self, response: Any, sampled_at_s: float) -> Sequence[RankLoad]:
        """One sample per rank."""
        return core_loads(response, sampled_at_s)

    def tokenizer_request(self) -> Message:
        """Empty."""
        return common_pb2.GetTokenizerRequest()


def _sampling(leg: LegRequest, facts: WorkerFacts | None) -> pb.SamplingParams:
    asked = leg.sampling
    defaults = facts.default_sampling if facts is not None else {}
    params = pb.SamplingParams(
        stop=asked.stop,
        stop_token_ids=asked.stop_token_ids,
        ignore_eos=asked.ignore_eos is True,
        skip_special_tokens=asked.skip_special_tokens is not False,
        spaces_between_special_tokens=True,
        n=asked.n,
        min_new_tokens=asked.min_tokens or 0,
        logit_bias={str(token): bias for token, bias in asked.logit_bias.items()},
        # The text's stop is the router's affair; the ids must be whole, or they do not add up to the count.
        no_stop_trim=True,
    )
    for name in _SCALARS:
        stated = getattr(asked, name)
        value = stated if stated is not None else defaults.get(name)
        if value is not None:
            setattr(params, name, int(value) or -1 if name == "top_k" else value)
    if asked.constraint is not None:
        setattr(params, constraint_field(asked.constraint, _CONSTRAINTS, _ENGINE), asked.constraint.text)
    if asked.max_tokens is not None:
        params.max_new_tokens = asked.max_tokens
    if asked.seed is not None:
        check_seed(asked.seed, 0, UINT64_MAX, _ENGINE)
        params.sampling_seed = asked.seed
    return params
