"""vLLM's messages: a GenerateRequest as an engine request, emissions as vLLM writes them, and the NIXL parameters.

Habits (vLLM 0.32): zero means the default; counts and ids of a chunk are of this chunk only, and a streamed `complete`
repeats the last chunk's; with stream=false one `complete` per choice has everything; a stop by end-of-sequence names no
matched stop.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from smg_grpc_proto.generated import vllm_engine_pb2 as pb

from tandem_engine.model import Model
from tandem_engine.requests import Emission, EngineError, EngineErrorReason, EngineRequest, HeldPages, Phase
from tandem_engine.sampling import SamplingParams
from tandem_engine.transfer import KvAddress

__all__ = [
    "MAX_LOGPROBS",
    "VllmReplies",
    "engine_request",
    "handoff",
    "prompt_of",
    "remote",
    "transfer",
]

MAX_LOGPROBS = 20
"""vLLM's own default of --max-logprobs."""


def engine_request(
    request: pb.GenerateRequest, model: Model, *, engine_id: str, phase: Phase, room: int | None
) -> EngineRequest:
    """Raises EngineError(INVALID) for what vLLM refuses, and for what this engine cannot do."""
    sampling = request.sampling_params
    constraint = sampling.WhichOneof("constraint")
    if constraint is not None:
        raise _invalid(f"sampling_params.{constraint} is not supported by this engine")
    if request.HasField("mm_inputs") or request.extra_mm_inputs or request.HasField("media_refs"):
        raise _invalid("multimodal inputs are not supported by this engine")
    return EngineRequest(
        request_id=engine_id,
        token_ids=prompt_of(request, model),
        sampling=_sampling(sampling, phase),
        phase=phase,
        room=room,
        stream=request.stream,
        input_logprobs=sampling.HasField("prompt_logprobs") and phase is not Phase.DECODE,
        dp_rank=request.data_parallel_rank if request.HasField("data_parallel_rank") else None,
    )


def prompt_of(request: pb.GenerateRequest, model: Model) -> tuple[int, ...]:
    """The prompt's tokens. Raises EngineError(INVALID) for text without a tokenizer to read it."""
    if request.WhichOneof("input") != "text":
        return tuple(request.tokenized.input_ids)
    if model.tokenizer is None:
        raise _invalid("text: this model has no tokenizer")
    return tuple(model.tokenizer.encode(request.text).ids)


def _sampling(raw: pb.SamplingParams, phase: Phase) -> SamplingParams:
    temperature = raw.temperature if raw.HasField("temperature") else 1.0
    if temperature < 0:
        raise _invalid(f"temperature must be non-negative, got {temperature}")
    if raw.HasField("max_tokens") and raw.max_tokens < 1:
        raise _invalid(f"max_tokens must be at least 1, got {raw.max_tokens}")
    if raw.HasField("logprobs") and not 0 <= raw.logprobs <= MAX_LOGPROBS:
        raise _invalid(f"logprobs must be in [0, {MAX_LOGPROBS}], got {raw.logprobs}")
    is_prefill = phase is Phase.PREFILL
    return SamplingParams(
        temperature=temperature,
        top_k=raw.top_k,
        top_p=raw.top_p or 1.0,
        min_p=raw.min_p,
        repetition_penalty=raw.repetition_penalty or 1.0,
        frequency_penalty=raw.frequency_penalty,
        presence_penalty=raw.presence_penalty,
        seed=raw.seed if raw.HasField("seed") else None,
        max_tokens=1 if is_prefill else (raw.max_tokens if raw.HasField("max_tokens") else None),
        min_tokens=0 if is_prefill else raw.min_tokens,
        stop_token_ids=tuple(raw.stop_token_ids),
        stop=tuple(raw.stop),
        ignore_eos=raw.ignore_eos,
        n=1 if is_prefill else (raw.n or 1),
        logprobs=raw.logprobs if raw.HasField("logprobs") else None,
        logit_bias=tuple(raw.logit_bias.items()),
    )


_BEGUN_BLOCK = -1
"""Stands for the block that a prompt shorter than one began. Real prefill engines name it, and their decode engines die
of an empty list; this one's decode computes those few tokens anew."""


def transfer(request: pb.GenerateRequest) -> dict[str, Any] | None:
    """The request's kv_transfer_params; None when it has none. Raises EngineError(INVALID) unless a JSON object."""
    if not request.HasField("kv_transfer_params_json"):
        return None
    try:
        params = json.loads(request.kv_transfer_params_json)
    except ValueError as error:
        raise _invalid(f"kv_transfer_params_json is not JSON: {error}") from None
    if not isinstance(params, dict):
        raise _invalid("kv_transfer_params_json must be a JSON object")
    return params


def handoff(held: HeldPages, *, engine_id: str, request_id: str, host: str, port: int) -> str:
    """What a NIXL prefill engine returns for the decode engine, to be relayed verbatim."""
    return json.dumps(
        {
            "do_remote_prefill": True,
            "do_remote_decode": False,
            "remote_block_ids": list(held.pages) or [_BEGUN_BLOCK],
            "remote_engine_id": engine_id,
            "remote_request_id": request_id,
            "remote_host": host,
            "remote_port": port,
            "tp_size": 1,
        }
    )


def remote(params: dict[str, Any]) -> KvAddress:
    """Where the pages are. Raises KeyError, TypeError or ValueError, of which an unmodified engine dies."""
    return KvAddress(
        host=str(params["remote_host"]),
        port=int(params["remote_port"]),
        engine_id=str(params["remote_engine_id"]),
        request_id=str(params["remote_request_id"]),
        block_ids=tuple(int(block) for block in params["remote_block_ids"] if block != _BEGUN_BLOCK),
    )


class VllmReplies:
    """Turns one request's emissions into messages, in order."""

    def __init__(self, request: pb.GenerateRequest, prompt: tuple[int, ...], eos: tuple[int, ...]) -> None:
        self._is_streamed = request.stream
        self._prompt = prompt
        self._silent_stops = frozenset(eos) - frozenset(request.sampling_params.stop_token_ids)
        self._log: dict[int, list[Emission]] = {}

    def messages(self, emission: Emission, kv_transfer_params: str | None = None) -> Iterator[pb.GenerateResponse]:
        """What vLLM sends for `emission`: a chunk when streaming, a `complete` when the choice ends."""
        log = self._log.setdefault(emission.choice, [])
        if emission.token_id is not None:
            if self._is_streamed:
                log.clear()
                yield pb.GenerateResponse(chunk=self._chunk(emission))
            log.append(emission)
        if emission.finish is not None:
            complete = self._complete(emission, log)
            if kv_transfer_params is not None:
                complete.kv_transfer_params_json = kv_transfer_params
            yield pb.GenerateResponse(complete=complete)

    def _chunk(self, emission: Emission) -> pb.GenerateStreamChunk:
        assert emission.token_id is not None
        return pb.GenerateStreamChunk(
            token_ids=[emission.token_id],
            prompt_tokens=emission.prompt_tokens,
            completion_tokens=1,
            cached_tokens=emission.cached_tokens,
            index=emission.choice,
            output_logprobs=_output_logprobs([emission]),
            input_logprobs=self._input_logprobs([emission]),
        )

    def _complete(self, last: Emission, log: list[Emission]) -> pb.GenerateComplete:
        ids = [emission.token_id for emission in log if emission.token_id is not None]
        complete = pb.GenerateComplete(
            output_ids=ids,
            finish_reason=last.finish or "",
            prompt_tokens=last.prompt_tokens,
            completion_tokens=len(ids),
            cached_tokens=last.cached_tokens,
            index=last.choice,
            output_logprobs=_output_logprobs(log),
            input_logprobs=self._input_logprobs(log),
        )
        if isinstance(last.matched_stop, str):
            complete.matched_stop_str = last.matched_stop
        elif last.matched_stop is not None and last.matched_stop not in self._silent_stops:
            complete.matched_token_id = last.matched_stop
        return complete

    def _input_logprobs(self, log: list[Emission]) -> pb.InputLogProbs | None:
        values = next((emission.input_logprobs for emission in log if emission.input_logprobs), None)
        if values is None:
            return None
        return pb.InputLogProbs(
            token_logprobs=[pb.InputTokenLogProb(value=value) for value in values], token_ids=self._prompt
        )


def _output_logprobs(log: list[Emission]) -> pb.OutputLogProbs | None:
    known = [emission for emission in log if emission.logprob is not None and emission.token_id is not None]
    if not known:
        return None
    return pb.OutputLogProbs(
        token_logprobs=[emission.logprob for emission in known if emission.logprob is not None],
        token_ids=[emission.token_id for emission in known if emission.token_id is not None],
        top_logprobs=[
            pb.TopLogProbs(
                values=[value for _, value in emission.top_logprobs],
                token_ids=[token for token, _ in emission.top_logprobs],
            )
            for emission in known
        ],
    )


def _invalid(message: str) -> EngineError:
    return EngineError(EngineErrorReason.INVALID, message)
