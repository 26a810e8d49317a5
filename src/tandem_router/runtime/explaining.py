"""What would happen to a request now: the dry run behind PlanPair. Reserves and sends nothing."""

from __future__ import annotations

from tandem_router.model.explanation import Explanation
from tandem_router.model.request import GenerateRequest
from tandem_router.policies.explain import explain
from tandem_router.runtime.prompt import query_of, resolve_model, tokenize
from tandem_router.runtime.relay_environment import RelayEnvironment

__all__ = ["explain_request"]


async def explain_request(
    env: RelayEnvironment, request: GenerateRequest, assumed_prompt_tokens: int | None
) -> Explanation:
    """Explain; without an assumed length the request's own prompt counts, where a tokenizer is known.

    Raises TandemError(MODEL_NOT_FOUND). That nobody could serve it is an answer, not an error.
    """
    workers = env.fleet.workers()
    model = resolve_model(request.model, workers)
    length = assumed_prompt_tokens
    if length is None:
        codec = env.codecs.get(model)
        if request.token_ids is not None or codec is not None:
            length = len(await tokenize(request, model, codec))
    # A prompt whose length nobody knows is taken for a long one: nothing that could serve it is hidden by that.
    query = query_of(request, model, env.settings.disaggregate_min_tokens if length is None else length)
    random = env.rng.random()
    return explain(env.planner, query, workers, env.ledger.in_flight, random=random, prompt_tokens=length)
