"""What `engines/abacus.py` would be: the whole of what Tandem must know of a new engine's protocol."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from google.protobuf.message import Message
from tests.conformance import abacus_proto as pb

from tandem_router.engines.contract import ItemDecoder, Methods, OperationRpc, Rpc, Traits
from tandem_router.engines.decoding import Counts, Reading, StreamDecoder
from tandem_router.engines.guards import (
    cannot_carry,
    check_biased_tokens,
    check_healthy,
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
from tandem_router.model.request import LegRequest
from tandem_router.model.spec import RuntimeType
from tandem_router.model.worker import WorkerFacts

__all__ = ["AbacusDialect"]

_ENGINE = "Abacus"
_READING = Reading(Counts.RUNNING, matched_stop=lambda complete: None)
_NO_OPERATIONS: Mapping[type[Operation], OperationRpc] = {}


def _rpc(name: str, response: type[Message]) -> Rpc:
    return Rpc(f"/{pb.SERVICE}/{name}", response)


class AbacusDialect(NoLoads):
    """`Dialect` of Abacus, which counts beads: greedy, one choice, no pairs."""

    runtime_type = RuntimeType.NATIVE
    service = pb.SERVICE
    methods = Methods(
        generate=_rpc("Generate", pb.GenerateResponse),
        abort=_rpc("Abort", pb.Empty),
        health=_rpc("State", pb.State),
        model_info=_rpc("Info", pb.Info),
        server_info=_rpc("Info", pb.Info),
        loads=None,
        tokenizer=None,
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
        check_biased_tokens(leg, facts)
        if leg.kind is not HandshakeKind.AGGREGATE:
            raise refuse_broken_leg(leg, f"{_ENGINE} has no pairs")
        refuse_rank(leg, _ENGINE)
        refuse_adapters(leg.adapters, _ENGINE)
        refuse_prompt_logprobs(leg, _ENGINE)
        asked = leg.sampling
        if asked.temperature:
            raise cannot_carry("sampling.temperature", _ENGINE)
        if asked.min_tokens:
            raise cannot_carry("sampling.min_tokens", _ENGINE)
        if asked.seed is not None:
            raise TandemError(Reason.RUNTIME_CANNOT_SEED, f"{_ENGINE} draws nothing", field="sampling.seed")
        request: Any = pb.GenerateRequest(
            call=leg.leg_id,
            limit=asked.max_tokens or 16,
            runs_on=asked.ignore_eos is True,
            halts=asked.stop_token_ids,
            whole=not leg.is_streaming,
        )
        write_prompt(request.beads, leg.token_ids, facts)
        built: Message = request
        return built

    def decoder(self, leg: LegRequest) -> ItemDecoder:
        return StreamDecoder(leg, _READING, choices=1)

    def status_failure(self, leg: LegRequest, code: Code, details: str) -> EngineFailure:
        return engine_status_failure(code, details)

    def abort_request(self, leg_id: str) -> Message:
        request: Message = pb.Abort(call=leg_id)
        return request

    def health_request(self) -> Message:
        return self.server_info_request()

    def check_health(self, response: Any) -> None:
        check_healthy(response.works, "a bead is stuck")

    def model_info_request(self) -> Message:
        return self.server_info_request()

    def server_info_request(self) -> Message:
        request: Message = pb.Empty()
        return request

    def facts(self, model_info: Any, server_info: Any) -> WorkerFacts:
        return WorkerFacts(
            runtime_type=self.runtime_type,
            model_id=model_info.model or "unknown",
            context_length=model_info.window or None,
            vocab_size=model_info.beads or None,
            eos_token_ids=(model_info.last_bead,),
            max_running_requests=server_info.at_once or None,
            max_choices=self.traits.max_choices,
            returns_logprobs=False,
            returns_prompt_logprobs=False,
        )

    def process_age_s(self, server_info: Any) -> float | None:
        return float(server_info.age_seconds) or None

    def tokenizer_request(self) -> Message:
        raise NotImplementedError("the protocol hands out no tokenizer")
