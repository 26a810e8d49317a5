"""SGLang's messages: a GenerateRequest as an engine request, and emissions as SGLang writes them.

Habits (SGLang 0.5.23): numbers are taken as they come, zero meaning zero; `ignore_eos` also ignores stop_token_ids;
chunk ids are deltas and counts are running totals; a streamed `complete` repeats the last chunk's ids with the total.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

from smg_grpc_proto.generated import sglang_scheduler_pb2 as pb

from tandem_engine.lora import Adapter
from tandem_engine.requests import Emission, EngineError, EngineErrorReason, EngineRequest, Phase
from tandem_engine.sampling import SamplingParams

__all__ = ["SglangReplies", "engine_request"]


def engine_request(
    request: pb.GenerateRequest, *, engine_id: str, phase: Phase, adapter: Adapter | None = None
) -> EngineRequest:
    """Raises EngineError(INVALID) for what this engine cannot do: constraints, media, input embeddings."""
    sampling = request.sampling_params
    for field, present in (
        (f"sampling_params.{sampling.WhichOneof('constraint')}", sampling.WhichOneof("constraint") is not None),
        ("mm_inputs", request.HasField("mm_inputs")),
        ("input_embeds", bool(request.input_embeds)),
    ):
        if present:
            raise EngineError(EngineErrorReason.INVALID, f"{field} is not supported by this engine")
    params = request.disaggregated_params
    # follow_bootstrap_room: the room decides where a prefill runs; a pin decides everywhere else.
    pinned = request.HasField("data_parallel_rank") and phase is not Phase.PREFILL
    return EngineRequest(
        request_id=engine_id,
        token_ids=tuple(request.tokenized.input_ids),
        sampling=_sampling(request, phase),
        phase=phase,
        room=None if phase is Phase.AGGREGATED else params.bootstrap_room,
        stream=request.stream,
        adapter=adapter,
        input_logprobs=request.return_logprob and request.logprob_start_len >= 0 and phase is not Phase.DECODE,
        dp_rank=request.data_parallel_rank if pinned else None,
    )


def _sampling(request: pb.GenerateRequest, phase: Phase) -> SamplingParams:
    raw = request.sampling_params
    seed = raw.custom_params.fields.get("sampling_seed")
    try:
        bias = tuple((int(token), value) for token, value in raw.logit_bias.items())
    except ValueError:
        raise EngineError(EngineErrorReason.INVALID, "logit_bias keys must be token ids") from None
    is_prefill = phase is Phase.PREFILL
    return SamplingParams(
        temperature=raw.temperature,
        top_k=raw.top_k,
        # Zero is taken literally, as SGLang does: nothing but the best token is left.
        top_p=min(max(raw.top_p, sys.float_info.min), 1.0),
        min_p=raw.min_p,
        # Zero again: dividing by it makes what was seen win for ever.
        repetition_penalty=max(raw.repetition_penalty, 1e-6),
        frequency_penalty=raw.frequency_penalty,
        presence_penalty=raw.presence_penalty,
        seed=None if seed is None else int(seed.number_value),
        max_tokens=1 if is_prefill else (raw.max_new_tokens if raw.HasField("max_new_tokens") else None),
        min_tokens=0 if is_prefill else raw.min_new_tokens,
        stop_token_ids=() if raw.ignore_eos else tuple(raw.stop_token_ids),
        stop=tuple(raw.stop),
        ignore_eos=raw.ignore_eos,
        n=1 if is_prefill else (raw.n or 1),
        logprobs=request.top_logprobs_num if request.return_logprob else None,
        logit_bias=bias,
    )


class SglangReplies:
    """Turns one request's emissions into messages, in order."""

    def __init__(self, request: pb.GenerateRequest) -> None:
        self._request = request
        self._log: dict[int, list[Emission]] = {}

    def messages(self, emission: Emission) -> Iterator[pb.GenerateResponse]:
        """What SGLang sends for `emission`: a chunk when streaming, a `complete` when the choice ends."""
        log = self._log.setdefault(emission.choice, [])
        if emission.token_id is not None:
            if self._request.stream:
                log.clear()
                yield self._chunk(emission)
            log.append(emission)
        if emission.finish is not None:
            yield self._complete(emission, log)

    def _chunk(self, emission: Emission) -> pb.GenerateResponse:
        assert emission.token_id is not None
        chunk = pb.GenerateStreamChunk(
            token_ids=[emission.token_id],
            prompt_tokens=emission.prompt_tokens,
            completion_tokens=emission.completion_tokens,
            cached_tokens=emission.cached_tokens,
            index=emission.choice,
            output_logprobs=_output_logprobs([emission]),
            input_logprobs=self._input_logprobs([emission]),
        )
        return pb.GenerateResponse(request_id=self._request.request_id, chunk=chunk)

    def _complete(self, last: Emission, log: list[Emission]) -> pb.GenerateResponse:
        complete = pb.GenerateComplete(
            output_ids=[emission.token_id for emission in log if emission.token_id is not None],
            finish_reason=last.finish or "",
            prompt_tokens=last.prompt_tokens,
            completion_tokens=last.completion_tokens,
            cached_tokens=last.cached_tokens,
            index=last.choice,
            output_logprobs=_output_logprobs(log),
            input_logprobs=self._input_logprobs(log),
        )
        if isinstance(last.matched_stop, str):
            complete.matched_stop_str = last.matched_stop
        elif last.matched_stop is not None:
            complete.matched_token_id = last.matched_stop
        return pb.GenerateResponse(request_id=self._request.request_id, complete=complete)

    def _input_logprobs(self, log: list[Emission]) -> pb.InputLogProbs | None:
        values = next((emission.input_logprobs for emission in log if emission.input_logprobs), None)
        if values is None:
            return None
        return pb.InputLogProbs(
            token_logprobs=[pb.InputTokenLogProb(value=value) for value in values],
            token_ids=self._request.tokenized.input_ids,
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
