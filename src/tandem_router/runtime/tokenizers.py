"""Getting a model's tokenizer from where its spec says, or from its worker; once per model and statement."""

from __future__ import annotations

from tandem_router.errors import Reason, TandemError
from tandem_router.model.failure import EngineFailure, Failure
from tandem_router.model.tokenizer_source import TokenizerSource
from tandem_router.model.worker import Condition, Worker
from tandem_router.ports import EngineClient, TextCodecs
from tandem_router.runtime.deadline import within

__all__ = ["TokenizerLoad", "load_tokenizer"]

_FETCH_TIMEOUT_S = 30.0
"""Archives are a few MB; a worker that is loading weights may answer slowly."""

TokenizerLoad = tuple[Condition, Failure | None, bool]
"""The TOKENIZER claim, the failure to show, and whether anything was loaded now."""


async def load_tokenizer(worker: Worker, client: EngineClient, codecs: TextCodecs) -> TokenizerLoad:
    """Load the tokenizer of every model of `worker` that needs one; never raises EngineFailure or TandemError.

    What the spec states (a path, a chat template) wins over the worker's archive, and of two workers that state
    different things the last one does. A worker without a tokenizer still serves token ids, so this is a claim about
    it and not a failed registration.
    """
    stated = {card.id: TokenizerSource(card.tokenizer_path, card.chat_template, worker.id) for card in worker.models}
    due = {model: source for model, source in stated.items() if _is_due(source, model, codecs)}
    if not due:
        return Condition("TOKENIZER", True, "LOADED", "", 0.0), None, False
    try:
        for model, source in due.items():
            if source.path is not None:
                await codecs.load(model, None, source)
        asking = {model: source for model, source in due.items() if source.path is None}
        if asking:
            archive = await within(
                _FETCH_TIMEOUT_S, "fetching the tokenizer", client.fetch_tokenizer(timeout_s=_FETCH_TIMEOUT_S)
            )
            if archive is None:
                claim = Condition("TOKENIZER", False, "NOT_OFFERED", "the worker hands out no tokenizer", 0.0)
                return claim, None, False
            for model, source in asking.items():
                await codecs.load(model, archive, source)
    except EngineFailure as failure:
        return _failed(Failure(Reason.TOKENIZER_UNAVAILABLE, failure.sentence))
    except TandemError as error:
        return _failed(Failure.of(error))
    return Condition("TOKENIZER", True, "LOADED", "", 0.0), None, True


def _is_due(source: TokenizerSource, model: str, codecs: TextCodecs) -> bool:
    held = codecs.source(model)
    if held is None:
        return True
    if source.is_stated:
        return source != held
    # What this worker stated before and takes back now; another worker's statement stands.
    return held.is_stated and held.worker_id == source.worker_id


def _failed(failure: Failure) -> TokenizerLoad:
    return Condition("TOKENIZER", False, failure.reason, failure.sentence, 0.0), failure, False
