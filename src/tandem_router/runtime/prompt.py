"""From what a client wrote to what can be placed: the model that is meant, the prompt's tokens, and the query."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from tandem_router.errors import Reason, TandemError
from tandem_router.model.ids import WorkerId
from tandem_router.model.request import GenerateRequest
from tandem_router.model.worker import Worker, WorkerFacts
from tandem_router.policies.contract import Query
from tandem_router.policies.plan import unknown_model
from tandem_router.ports import TextCodec

__all__ = ["facts_of_model", "query_of", "resolve_model", "tokenize"]


def resolve_model(name: str, workers: Mapping[WorkerId, Worker]) -> str:
    """The id of the model card that a name means; an empty name means the only model there is.

    Raises TandemError(MODEL_NOT_FOUND) with the names that would have been found.
    """
    cards = [card for worker in workers.values() for card in worker.models]
    known = list(dict.fromkeys(card.id for card in cards))
    if not name and len(known) == 1:
        return known[0]
    for card in cards:
        if name == card.id or name in card.aliases:
            return card.id
    raise unknown_model(name, workers).to_error()


def facts_of_model(model: str, workers: Mapping[WorkerId, Worker], can: Callable[[Worker], bool]) -> WorkerFacts | None:
    """What the first worker of a model that can do what is wanted says of itself; None while none has been read.

    The context length and the vocabulary that its spec states of the model win over what its engine says.
    """
    for worker in workers.values():
        card = next((card for card in worker.models if model == card.id or model in card.aliases), None)
        if (facts := worker.facts) is None or card is None or not can(worker):
            continue
        context_length = facts.context_length if card.context_length is None else card.context_length
        vocab_size = facts.vocab_size if card.vocab_size is None else card.vocab_size
        if (context_length, vocab_size) == (facts.context_length, facts.vocab_size):
            return facts
        return replace(facts, context_length=context_length, vocab_size=vocab_size)
    return None


async def tokenize(request: GenerateRequest, model: str, codec: TextCodec | None) -> tuple[int, ...]:
    """The prompt's token ids; raises TandemError(TOKENIZER_UNAVAILABLE) for text where no tokenizer is loaded.

    Also INVALID_REQUEST where log probabilities are wanted from a position that a text's tokens do not reach.
    """
    if request.token_ids is not None:
        return request.token_ids
    if codec is None:
        raise TandemError(
            Reason.TOKENIZER_UNAVAILABLE,
            f"no tokenizer is loaded for model {model}",
            field="input",
            metadata={"model": model},
        )
    text = request.text
    if text is None:
        messages = request.messages or ()
        text = await codec.render_chat([(message.role, message.content) for message in messages])
    token_ids = await codec.encode(text, adds_special=request.text is not None)
    if request.prompt_logprobs and request.prompt_logprobs_start >= max(len(token_ids), 1):
        raise TandemError(
            Reason.INVALID_REQUEST, f"the prompt has {len(token_ids)} tokens", field="logprobs.prompt_start"
        )
    return token_ids


def query_of(request: GenerateRequest, model: str, prompt_tokens: int) -> Query:
    """What policies are asked. Greedy sampling draws nothing, so a seed changes nothing there: any worker will do."""
    sampling = request.sampling
    is_greedy = sampling.temperature == 0 or sampling.top_k == 1
    return Query(
        model,
        prompt_tokens,
        needs_seed=sampling.seed is not None and not is_greedy,
        constraint=None if sampling.constraint is None else sampling.constraint.kind,
        adapters=tuple(adapter.name for adapter in request.adapters),
        target_worker_id=request.target_worker_id,
        target_dp_rank=request.target_dp_rank,
        target_prefill_id=request.target_prefill_id,
        target_prefill_rank=request.target_prefill_rank,
        serving_mode=request.serving_mode,
    )
