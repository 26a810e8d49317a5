"""The engine's door: what a request must be, and the live request made of one that is."""

from __future__ import annotations

from collections.abc import Callable

from tandem_engine.live import EmissionSink, LiveRequest
from tandem_engine.model import Model
from tandem_engine.requests import EngineError, EngineErrorReason, EngineRequest, Phase
from tandem_engine.settings import EngineSettings
from tandem_engine.stopping import StopWatch

__all__ = ["check", "make_live"]


def check(request: EngineRequest, model: Model, settings: EngineSettings) -> None:
    """EngineError(INVALID), naming the field, for what can never be served; real engines hang or die of some of it."""
    params, vocab = request.sampling, model.config.vocab_size
    length, context = len(request.token_ids), settings.context(model.config.max_position)
    _require(length > 0, "token_ids is empty")
    _require(
        min(request.token_ids) >= 0 and max(request.token_ids) < vocab,
        f"token_ids must be in [0, {vocab})",
    )
    if request.phase is Phase.EMBED:
        _require(length <= context, f"token_ids has {length} tokens; at most {context} fit the context")
    else:
        _require(length < context, f"token_ids has {length} tokens; at most {context - 1} leave room for output")
    problem = params.problem(vocab)
    _require(problem is None, problem or "")
    _require(not params.stop or model.tokenizer is not None, "stop: this model has no tokenizer")
    _require(params.n <= settings.max_running, f"n must be at most {settings.max_running} (max_running)")
    _require(
        request.dp_rank is None or 0 <= request.dp_rank < settings.dp_size,
        f"dp_rank must be in [0, {settings.dp_size})",
    )


def make_live(
    request: EngineRequest,
    model: Model,
    settings: EngineSettings,
    *,
    sink: EmissionSink,
    rank: int,
    draw_seed: Callable[[], int],
) -> LiveRequest:
    """A checked request with its effective limits. EngineError(INVALID) when it can never get its pages."""
    params = request.sampling
    room_left = settings.context(model.config.max_position) - len(request.token_ids)
    max_tokens = room_left if params.max_tokens is None else min(params.max_tokens, room_left)
    if request.phase in (Phase.PREFILL, Phase.EMBED):
        max_tokens = 1 if request.phase is Phase.PREFILL else 0
    live = LiveRequest(
        request,
        sink,
        rank=rank,
        page_size=settings.page_size,
        max_tokens=max_tokens,
        seed=params.seed if params.seed is not None else draw_seed(),
        stop_watches=[
            StopWatch(params, model.config.eos_token_ids, max_tokens, model.tokenizer) for _ in range(params.n)
        ],
    )
    _require(
        live.pages_needed <= settings.num_pages,
        f"token_ids, max_tokens and n need {live.pages_needed} KV pages; there are {settings.num_pages}",
    )
    return live


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise EngineError(EngineErrorReason.INVALID, message)
