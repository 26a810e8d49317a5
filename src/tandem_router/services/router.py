"""RouterService: answers requests through workers. Served on the public listener."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import grpc

from tandem.v1 import embed_pb2, generate_pb2, model_pb2, router_service_pb2, router_service_pb2_grpc, session_pb2
from tandem_router.errors import Reason, TandemError
from tandem_router.model.request import RequestContext
from tandem_router.ports import Clock, Ids, TextCodec, TextCodecs
from tandem_router.runtime.models import ServedModel
from tandem_router.services.contract import Registry, TokenRelay
from tandem_router.services.forwarding import ForwardedMetadata, Metadata
from tandem_router.services.guard import name_request, unimplemented
from tandem_router.services.sink import GrpcTokenSink, ServerContext
from tandem_router.wire.checks import at_most, invalid, not_yet, present, text
from tandem_router.wire.embed import embed_of, pack_embedded
from tandem_router.wire.generate import generate_of, messages_of, request_id_of, text_of
from tandem_router.wire.model import Fits, model_pb
from tandem_router.wire.paging import page

__all__ = ["RouterLimits", "RouterServicer"]

PRINCIPAL = "anonymous"
"""Of every caller until there is authentication."""
_MAX_DETOKENIZE = 1 << 20
_DECODE_ON_LOOP_MOST = 512
"""Tokens decoded on the loop, well below 1 ms; more go to a thread."""

Context = grpc.aio.ServicerContext[object, object]


@dataclass(frozen=True, slots=True)
class RouterLimits:
    """What one call may cost."""

    max_prompt_bytes: int = 4 * 1024 * 1024
    slow_client_timeout_s: float = 30.0
    """A write that waits longer than this for the client to read ends the call with SLOW_CLIENT."""
    forward: ForwardedMetadata = field(default_factory=ForwardedMetadata)
    """What of a call's metadata workers see."""


class RouterServicer(router_service_pb2_grpc.RouterServiceServicer):
    """Unpacks, calls the relay, packs."""

    def __init__(
        self,
        relay: TokenRelay,
        registry: Registry,
        codecs: TextCodecs,
        clock: Clock,
        ids: Ids,
        fits: Fits,
        limits: RouterLimits,
    ) -> None:
        self._relay = relay
        self._registry = registry
        self._codecs = codecs
        self._clock = clock
        self._ids = ids
        self._fits = fits
        self._limits = limits

    async def Generate(  # type: ignore[override]  # grpc.aio also takes a coroutine that writes; the stub knows one style
        self, request: generate_pb2.GenerateRequest, context: ServerContext
    ) -> None:
        """Relay one request; the client's leaving cancels it within milliseconds, also while a write is stalled."""
        request_id = request_id_of(request.request_id) if request.request_id else self._ids.uuid()
        name_request(request_id)
        if not request.model:
            self._model("")  # raises INVALID_REQUEST unless exactly one is served
        checked = generate_of(request, request_id=request_id, max_prompt_bytes=self._limits.max_prompt_bytes)
        sink = GrpcTokenSink(context, request_id, request.model)
        call = self._relay.start(checked, self._caller(context, request_id), sink)
        # A stalled client's cancel is no CancelledError for a blocked handler; the callback fires in every case.
        context.add_done_callback(lambda _: call.cancel())  # type: ignore[arg-type]  # the stub wants a class of its own
        sink.watch(self._limits.slow_client_timeout_s, call.cancel)
        try:
            await call.result()
        finally:
            call.cancel()
            await sink.close()

    async def Abort(
        self, request: router_service_pb2.AbortRequest, context: Context
    ) -> router_service_pb2.AbortResponse:
        """Stop a live request of the caller."""
        request_id = request_id_of(request.request_id)
        text("reason", request.reason, most=512)
        aborted = self._relay.abort(PRINCIPAL, request_id)
        if aborted is None:
            raise TandemError(
                Reason.REQUEST_NOT_FOUND,
                f'No live request has the id "{request_id}".',
                metadata={"request_id": request_id},
            )
        return router_service_pb2.AbortResponse(request_id=request_id, completion_tokens=aborted.completion_tokens)

    async def ListModels(
        self, request: router_service_pb2.ListModelsRequest, context: Context
    ) -> router_service_pb2.ListModelsResponse:
        """A page of the models that workers serve, by id."""
        models = sorted(self._registry.models(), key=lambda model: model.card.id)
        filters = router_service_pb2.ListModelsRequest()
        chosen, token = page(
            models, lambda model: model.card.id, size=request.page_size, token=request.page_token, filters=filters
        )
        return router_service_pb2.ListModelsResponse(
            models=[await self._pack(model) for model in chosen], next_page_token=token
        )

    async def GetModel(
        self, request: router_service_pb2.GetModelRequest, context: Context
    ) -> router_service_pb2.GetModelResponse:
        """One model by id or alias."""
        text("model", request.model, least=1, most=256)
        return router_service_pb2.GetModelResponse(model=await self._pack(self._model(request.model)))

    async def Tokenize(
        self, request: router_service_pb2.TokenizeRequest, context: Context
    ) -> router_service_pb2.TokenizeResponse:
        """Token ids of a text or chat, as Generate would make them."""
        kind, most = request.WhichOneof("input"), self._limits.max_prompt_bytes
        if kind is None:
            raise invalid("input", "Set exactly one of text and chat.")
        if present(request, "add_special_tokens") and request.add_special_tokens != (kind == "text"):
            raise not_yet("add_special_tokens", "Only what Generate does is carried out.")
        card = self._model(request.model).card
        codec = self._codec(card.id)
        if kind == "text":
            prompt = text_of(request.text, most)
        else:
            messages = messages_of(request.chat, most)
            prompt = await codec.render_chat([(message.role, message.content) for message in messages])
        return router_service_pb2.TokenizeResponse(
            token_ids=await codec.encode(prompt, adds_special=kind == "text"),
            text=prompt,
            context_length=card.context_length,
        )

    async def Detokenize(
        self, request: router_service_pb2.DetokenizeRequest, context: Context
    ) -> router_service_pb2.DetokenizeResponse:
        """The text of token ids."""
        at_most("token_ids", request.token_ids, _MAX_DETOKENIZE)
        card = self._model(request.model).card
        codec = self._codec(card.id)
        tokens = tuple(request.token_ids)
        if tokens and max(tokens) >= codec.vocab_size:
            sentence = f"{max(tokens)} is not below the vocabulary's size, {codec.vocab_size}."
            raise TandemError(Reason.TOKEN_OUT_OF_VOCABULARY, sentence, field="token_ids")
        skip = request.skip_special_tokens if present(request, "skip_special_tokens") else True
        if len(tokens) <= _DECODE_ON_LOOP_MOST:
            return router_service_pb2.DetokenizeResponse(text=codec.decode(tokens, skip_special_tokens=skip))
        decoded = await asyncio.to_thread(codec.decode, tokens, skip_special_tokens=skip)
        return router_service_pb2.DetokenizeResponse(text=decoded)

    async def Embed(self, request: embed_pb2.EmbedRequest, context: Context) -> embed_pb2.EmbedResponse:
        """A vector per input; the client's leaving ends them all."""
        request_id = request_id_of(request.request_id) if request.request_id else self._ids.uuid()
        name_request(request_id)
        if not request.model:
            self._model("")  # raises INVALID_REQUEST unless exactly one is served
        checked = embed_of(request, request_id=request_id, max_prompt_bytes=self._limits.max_prompt_bytes)
        call = self._relay.embed(checked, self._caller(context, request_id))
        try:
            answer = await call.result()
        finally:
            call.cancel()
        packed = embed_pb2.EmbedResponse(request_id=request_id)
        for _ in pack_embedded(answer, packed):
            await asyncio.sleep(0)
        return packed

    async def ResumeGenerate(  # type: ignore[override]  # as Generate
        self, request: router_service_pb2.ResumeGenerateRequest, context: Context
    ) -> None:
        """Not carried out yet."""
        raise unimplemented("ResumeGenerate")

    async def GenerateSession(  # type: ignore[override]  # as Generate
        self, request_iterator: session_pb2.GenerateSessionRequest, context: Context
    ) -> None:
        """Not carried out yet."""
        raise unimplemented("GenerateSession")

    def _caller(self, context: ServerContext | Context, request_id: str) -> RequestContext:
        remaining_s = context.time_remaining()
        metadata: Metadata = context.invocation_metadata() or ()  # type: ignore[assignment]  # the stub's type is looser
        return RequestContext(
            principal=PRINCIPAL,
            deadline_s=None if remaining_s is None else self._clock.monotonic_s() + remaining_s,
            traceparent=self._limits.forward.traceparent(metadata),
            forwarded=self._limits.forward.of(metadata, request_id),
        )

    async def _pack(self, model: ServedModel) -> model_pb2.Model:
        workers = [worker for worker in await self._registry.list_workers() if worker.id in model.worker_ids]
        return model_pb(model.card, workers, self._fits)

    def _model(self, name: str) -> ServedModel:
        models = self._registry.models()
        if not name and len(models) == 1:
            return models[0]
        if not name and not models:
            raise invalid("model", "No model is served yet: no worker was added, or none has said what it serves.")
        if not name:
            raise invalid("model", f"{len(models)} models are served; name one of them.")
        for model in models:
            if name == model.card.id or name in model.card.aliases:
                return model
        raise TandemError(
            Reason.MODEL_NOT_FOUND, f'No worker serves the model "{name}".', field="model", metadata={"model": name}
        )

    def _codec(self, model: str) -> TextCodec:
        codec = self._codecs.get(model)
        if codec is None:
            sentence = f'No tokenizer is loaded for the model "{model}".'
            raise TandemError(Reason.TOKENIZER_UNAVAILABLE, sentence, metadata={"model": model})
        return codec
