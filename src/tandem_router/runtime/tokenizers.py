"""Getting a model's tokenizer from a worker, once per model."""

from __future__ import annotations

from tandem_router.errors import Reason, TandemError
from tandem_router.model.failure import EngineFailure, Failure
from tandem_router.model.worker import Condition, Worker
from tandem_router.ports import EngineClient, TextCodecs
from tandem_router.runtime.deadline import within

__all__ = ["TokenizerLoad", "load_tokenizer"]

_FETCH_TIMEOUT_S = 30.0
"""Archives are a few MB; a worker that is loading weights may answer slowly."""

TokenizerLoad = tuple[Condition, Failure | None, bool]
"""The TOKENIZER claim, the failure to show, and whether anything was loaded now."""


async def load_tokenizer(worker: Worker, client: EngineClient, codecs: TextCodecs) -> TokenizerLoad:
    """Load the tokenizer of every model of `worker` that has none yet; never raises EngineFailure or TandemError.

    A worker without a tokenizer still serves token ids, so this is a claim about it and not a failed registration.
    """
    missing = [card.id for card in worker.models if codecs.get(card.id) is None]
    if not missing:
        return Condition("TOKENIZER", True, "LOADED", "", 0.0), None, False
    try:
        archive = await within(
            _FETCH_TIMEOUT_S, "fetching the tokenizer", client.fetch_tokenizer(timeout_s=_FETCH_TIMEOUT_S)
        )
        if archive is None:
            return Condition("TOKENIZER", False, "NOT_OFFERED", "the worker hands out no tokenizer", 0.0), None, False
        for model in missing:
            await codecs.load(model, archive)
    except EngineFailure as failure:
        return _failed(Failure(Reason.TOKENIZER_UNAVAILABLE, failure.sentence))
    except TandemError as error:
        return _failed(Failure.of(error))
    return Condition("TOKENIZER", True, "LOADED", "", 0.0), None, True


def _failed(failure: Failure) -> TokenizerLoad:
    return Condition("TOKENIZER", False, failure.reason, failure.sentence, 0.0), failure, False
