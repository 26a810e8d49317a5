"""Getting a model's tokenizer from where its spec says, or from its workers, and noticing workers that disagree.

A model has one tokenizer in the router, so workers of one model whose archives differ cannot all be served right. A
worker that comes with another one brings it into use where nobody else holds the old one, as the last of a rolling
change does; until then the difference is a condition on it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace

from tandem_router.core.commands import SetConditions
from tandem_router.errors import Reason, TandemError
from tandem_router.model.failure import EngineFailure, Failure
from tandem_router.model.ids import WorkerId
from tandem_router.model.tokenizer_source import TokenizerSource
from tandem_router.model.worker import Condition, Worker
from tandem_router.ports import EngineClient, TextCodecs
from tandem_router.runtime.deadline import within
from tandem_router.runtime.pipeline import Pipeline

__all__ = ["TokenizerLoad", "Tokenizers"]

TokenizerLoad = tuple[Condition, Failure | None, bool]
"""The TOKENIZER claim, the failure to show, and whether anything was loaded now."""

_LOADED = Condition("TOKENIZER", True, "LOADED", "", 0.0)
_SHOWN_DIGITS = 12


class _DiffersError(Exception):
    """The worker's tokenizer is not the one in use; the text says which is whose."""


class Tokenizers:
    """Loads tokenizers into the codecs, and remembers which worker hands out which."""

    def __init__(self, pipeline: Pipeline, codecs: TextCodecs, timeout_s: float) -> None:
        """timeout_s: for a worker to hand out its archive."""
        self._pipeline = pipeline
        self._codecs = codecs
        self._timeout_s = timeout_s
        self._digests: dict[WorkerId, str] = {}
        self._one_at_a_time = asyncio.Lock()
        """Of two workers that come at once with different tokenizers, the second has to see the first's."""

    async def load(self, worker: Worker, client: EngineClient) -> TokenizerLoad:
        """Load the tokenizer of every model of `worker` that needs one; never raises EngineFailure.

        To be asked once per life of the worker. What the spec states (a path, a chat template) wins over the worker's
        archive, and of two workers that state different things the last one does. A worker without a tokenizer still
        serves token ids, so this is a claim about it and not a failed registration.
        """
        stated = {
            card.id: TokenizerSource(card.tokenizer_path, card.chat_template, worker.id) for card in worker.models
        }
        is_loaded = False
        try:
            for model, source in stated.items():
                if source.path is not None and self._is_due(source, model):
                    await self._codecs.load(model, None, source)
                    is_loaded = True
            asking = {model: source for model, source in stated.items() if self._wants_archive(source, model)}
            if not asking:
                return _LOADED, None, is_loaded
            archive, digest = await self._fetch(client, asking)
            if archive is None:
                return self._none_offered(asking), None, is_loaded
            async with self._one_at_a_time:
                self._remember(worker.id, digest)
                for model, source in asking.items():
                    is_loaded |= await self._use(worker.id, model, source, archive, digest)
        except _DiffersError as differs:
            return Condition("TOKENIZER", False, "TOKENIZER_DIFFERS", str(differs), 0.0), None, is_loaded
        except EngineFailure as failure:
            return _failed(Failure(Reason.TOKENIZER_UNAVAILABLE, failure.sentence))
        except TandemError as error:
            if error.reason is Reason.DRAINING:
                raise
            return _failed(Failure.of(error))
        return _LOADED, None, is_loaded

    async def _fetch(self, client: EngineClient, asking: Mapping[str, TokenizerSource]) -> tuple[bytes | None, str]:
        """The worker's archive and its digest; nothing where it offers none, or fails and no model needs it."""
        try:
            archive = await within(
                self._timeout_s, "fetching the tokenizer", client.fetch_tokenizer(timeout_s=self._timeout_s)
            )
            return archive, "" if archive is None else await self._codecs.digest(archive)
        except (EngineFailure, TandemError):
            if any(self._is_due(source, model) for model, source in asking.items()):
                raise
            return None, ""  # others have handed one out; whether this one's would differ is not known

    def _none_offered(self, asking: Mapping[str, TokenizerSource]) -> Condition:
        if any(self._is_due(source, model) for model, source in asking.items()):
            return Condition("TOKENIZER", False, "NOT_OFFERED", "the worker hands out no tokenizer", 0.0)
        return _LOADED

    async def _use(self, worker_id: WorkerId, model: str, source: TokenizerSource, archive: bytes, digest: str) -> bool:
        """Bring the archive into use where the model has none, or another one that nobody else holds.

        Returns whether it was. Raises _DiffersError where somebody does.
        """
        held = self._codecs.source(model)
        if held is None or self._is_due(source, model):
            await self._codecs.load(model, archive, replace(source, digest=digest))
            return True
        if held.digest is None or held.digest == digest:
            return False
        holder = self._other_holder(worker_id, model, held.digest)
        if holder is not None:
            raise _DiffersError(
                f"it hands out another tokenizer for {model} (sha256 {digest[:_SHOWN_DIGITS]}) than the one in use, "
                f"which worker {holder} handed out ({held.digest[:_SHOWN_DIGITS]}): its text is wrong"
            )
        await self._codecs.load(model, archive, replace(held, digest=digest))
        await self._settled(worker_id, model, digest)
        return True

    def _wants_archive(self, source: TokenizerSource, model: str) -> bool:
        """Whether the worker's archive is to be loaded, or compared with the one that was."""
        held = self._codecs.source(model)
        return source.path is None and (self._is_due(source, model) or held is None or held.digest is not None)

    def _is_due(self, source: TokenizerSource, model: str) -> bool:
        held = self._codecs.source(model)
        if held is None:
            return True
        if source.is_stated:
            return source != held
        # What this worker stated before and takes back now; another worker's statement stands.
        return held.is_stated and held.worker_id == source.worker_id

    def _remember(self, worker_id: WorkerId, digest: str) -> None:
        registry = self._pipeline.registry
        self._digests = {known: said for known, said in self._digests.items() if registry.worker(known) is not None}
        self._digests[worker_id] = digest

    def _other_holder(self, worker_id: WorkerId, model: str, digest: str) -> WorkerId | None:
        """A registered worker of the model that handed out that tokenizer when it was last asked."""
        holders = (other.id for other in self._others(worker_id, model) if self._digests.get(other.id) == digest)
        return next(holders, None)

    async def _settled(self, worker_id: WorkerId, model: str, digest: str) -> None:
        """Those that had brought it before agree from now on."""
        for other in self._others(worker_id, model):
            differed = any(claim.reason == "TOKENIZER_DIFFERS" for claim in other.conditions)
            if differed and self._digests.get(other.id) == digest:
                await self._pipeline.submit(SetConditions(other.id, other.epoch, (_LOADED,)))

    def _others(self, worker_id: WorkerId, model: str) -> list[Worker]:
        workers = self._pipeline.registry.workers().values()
        return [each for each in workers if each.id != worker_id and any(card.id == model for card in each.models)]


def _failed(failure: Failure) -> TokenizerLoad:
    return Condition("TOKENIZER", False, failure.reason, failure.sentence, 0.0), failure, False
