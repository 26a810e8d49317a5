"""Who answers: recognition, facts, health, reflection, tokenizer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from tandem_router.model.detection import told
from tandem_router.testing.conformance.subject import Subject
from tandem_router.testing.conformance.suite import Check
from tandem_router.testing.conformance.verdict import CheckFailed, CheckSkipped, Finding, expect, note

__all__ = ["IDENTITY_CHECKS"]

_GUARDED = ("vocab_size", "eos_token_ids")
"""What the guards at the router's door go by; some protocols have no field for it."""
_WANTED = (*_GUARDED, "max_running_requests", "kv_block_size", "version", "instance")
_STATED = {"vocab_size": "models[].vocab_size"}
"""What an operator should state where an engine does not say it, and the field of WorkerSpec; nothing else can be, or
need be (blocks matter to pairs, whose engines all tell them)."""
_TEXTS = ("count from 7 to 12:", "Hello, world!\n  two  spaces", "naïve café 東京 🙂")


async def is_detected(subject: Subject) -> Finding:
    runtime = subject.facts.runtime_type
    expect(subject.trace and subject.trace[-1].answer == "OK", f"no protocol answered: {told(subject.trace)}")
    return Finding(f"{runtime}; asked {told(subject.trace)}", {"runtime": str(runtime)})


async def facts_are_complete(subject: Subject) -> Finding:
    facts = subject.facts
    expect(facts.model_id != "unknown", "it does not say which model it serves")
    expect(facts.context_length, "it does not say its context length, so no prompt can be refused before it is sent")
    unsaid = [name for name in _WANTED if not getattr(facts, name)]
    sentence = f"{facts.model_id}: context {facts.context_length}, vocabulary {facts.vocab_size}"
    if not unsaid:
        return Finding(sentence)
    missed = [_STATED[name] for name in unsaid if name in _STATED]
    advice = f"; state {', '.join(missed)}" if missed else ""
    return note(f"{sentence}; not said: {', '.join(unsaid)}{advice}")


async def facts_are_stable(subject: Subject) -> Finding:
    first = await subject.client.describe(timeout_s=subject.limits.call_s)
    second = await subject.client.describe(timeout_s=subject.limits.call_s)
    expect(replace(first, adapters=()) == replace(second, adapters=()), "two readings of the facts differ")
    return Finding(f"instance {first.instance}" if first.instance else "told apart by its uptime alone")


async def own_health(subject: Subject) -> Finding:
    loop = asyncio.get_running_loop()
    began_s = loop.time()
    await subject.client.probe(timeout_s=subject.limits.call_s)
    return Finding(f"serving, {(loop.time() - began_s) * 1000:.0f} ms")


async def standard_health_agrees(subject: Subject) -> Finding:
    why = await subject.is_alive()
    stub: Any = health_pb2_grpc.HealthStub(subject.client.connection.channel)
    service = subject.client.dialect.service
    said = {}
    for name in ("", service):
        try:
            answer = await stub.Check(
                health_pb2.HealthCheckRequest(service=name),
                timeout=subject.limits.call_s,
                metadata=subject.metadata,
            )
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.UNIMPLEMENTED:
                return note("no grpc.health.v1: a mesh cannot probe it")
            said[name] = error.code().name
            continue
        said[name] = health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)
    words = ", ".join(f'"{name}" {status}' for name, status in said.items())
    own = "serving" if why is None else f"not serving ({why})"
    expect(all((status == "SERVING") is (why is None) for status in said.values()), f"its own rpc says {own}: {words}")
    return Finding(words)


async def reflection_lists_the_service(subject: Subject) -> Finding:
    channel: Any = subject.client.connection.channel
    stub: Any = reflection_pb2_grpc.ServerReflectionStub(channel)
    service = subject.client.dialect.service

    async def question() -> AsyncIterator[reflection_pb2.ServerReflectionRequest]:
        yield reflection_pb2.ServerReflectionRequest(list_services="")

    call = stub.ServerReflectionInfo(question(), timeout=subject.limits.call_s, metadata=subject.metadata)
    try:
        async for answer in call:
            names = [one.name for one in answer.list_services_response.service]
            expect(service in names, f"it lists {', '.join(names) or 'nothing'}, not {service}")
            return Finding(service)
    except grpc.aio.AioRpcError as error:
        return note(f"no reflection: {error.code().name}")
    finally:
        call.cancel()
    raise CheckFailed("the reflection stream ended without an answer")


async def tokenizer_loads(subject: Subject) -> Finding:
    expect(not subject.tokenizer_failure, subject.tokenizer_failure)
    if subject.tokenizer is None:
        raise CheckSkipped("it hands out none; state a tokenizer_path to serve text")
    size, vocabulary = subject.tokenizer.vocab_size, subject.facts.vocab_size
    expect(vocabulary is None or size <= vocabulary, f"the tokenizer has {size} ids, the model {vocabulary}")
    return Finding(f"sha256 agrees; {size} ids")


async def tokenizer_round_trips(subject: Subject) -> Finding:
    tokenizer = subject.tokenizer
    if tokenizer is None:
        raise CheckSkipped("there is no tokenizer")
    changed = []
    for text in _TEXTS:
        ids = tokenizer.encode(text, adds_special=False)
        whole = tokenizer.decode(ids, skip_special_tokens=True)
        stream = tokenizer.stream(skip_special_tokens=True)
        pieces = "".join(stream.push((one,)) for one in ids) + stream.flush()
        expect(pieces == whole, f"{text!r} streams as {pieces!r} and decodes as {whole!r}")
        if whole != text:
            changed.append(f"{text!r} -> {whole!r}")
    return note(f"it normalises {'; '.join(changed)}") if changed else Finding(f"{len(_TEXTS)} texts, emoji and CJK")


IDENTITY_CHECKS: tuple[Check[Subject], ...] = (
    Check("connect/detected", is_detected),
    Check("facts/complete", facts_are_complete),
    Check("facts/stable", facts_are_stable),
    Check("health/own-rpc", own_health),
    Check("health/standard-agrees", standard_health_agrees),
    Check("health/reflection", reflection_lists_the_service),
    Check("tokenizer/loads", tokenizer_loads),
    Check("tokenizer/round-trip", tokenizer_round_trips),
)
