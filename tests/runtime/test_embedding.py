"""An Embed call: one request to the router, many to the engines; each tried again, all ended together."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.runtime.embed_world import (
    BytesCodec,
    Embedder,
    EmbedWorld,
    ask,
    embedder,
    play,
    vector_of,
)

from tandem_router.core.relay_events import AttemptPlanned, FirstToken, LegClosed, LegSent, RequestAccepted, RequestKind
from tandem_router.errors import Code, Reason, TandemError
from tandem_router.model.adapters import AdapterUse
from tandem_router.model.embedding import Embedded
from tandem_router.model.failure import EngineFailure
from tandem_router.model.pairing import HandshakeKind, LegRole, LegState
from tandem_router.model.request import Timeouts
from tandem_router.model.settings import RetrySettings, RuntimeSettings
from tandem_router.model.worker import WorkerStatus
from tandem_router.runtime.embedding import LANES
from tandem_router.testing.sim_loop import Order

MANY = tuple((number % 250, 7) for number in range(100))
ONE, TWO = embedder(1), embedder(2)
LOST = EngineFailure(Reason.WORKER_LOST, "gone", connection_lost=True)


def test_every_input_has_its_vector_in_the_order_of_the_inputs() -> None:
    async def scene(world: EmbedWorld) -> None:
        answer = await world.ask(*MANY, normalize=False)
        assert answer.vectors == tuple(vector_of(tokens) for tokens in MANY)
        assert (answer.model, answer.usage.prompt_tokens, answer.usage.completion_tokens) == ("m", 200, 0)
        assert [attempt.number for attempt in answer.attempts] == list(range(1, 101))
        assert world.relay.statistics().finished_total == 1

    play(scene, ONE, TWO)


def test_vectors_are_cut_and_scaled_as_asked() -> None:
    async def scene(world: EmbedWorld) -> None:
        cut = await world.ask((3, 4), dimensions=3)
        assert cut.vectors[0] == pytest.approx((2 / 29**0.5, 3 / 29**0.5, 4 / 29**0.5))
        assert (await world.ask((3, 4), dimensions=2, normalize=False)).vectors == ((2.0, 3.0),)

    play(scene)


def test_more_dimensions_than_the_model_has_end_the_whole_call() -> None:
    async def scene(world: EmbedWorld) -> None:
        error = await world.refused(*MANY, dimensions=5)
        assert (error.reason, error.field) == (Reason.INVALID_REQUEST, "dimensions")
        assert len(world.engine.legs) < len(MANY)

    play(scene)


def test_a_call_runs_at_most_so_many_inputs_at_once_and_spreads_them_over_workers() -> None:
    async def scene(world: EmbedWorld) -> None:
        await world.ask(*MANY)
        first, second = world.fleet.engines.values()
        assert (first.most_running, second.most_running) == (LANES // 2, LANES // 2)
        assert (len(first.legs), len(second.legs)) == (50, 50)

    play(scene, ONE, TWO)


def test_texts_are_tokenized_and_engines_get_ids_of_ours_and_the_caller_s_trace() -> None:
    async def scene(world: EmbedWorld) -> None:
        call = world.start(ask("hi", (9,)), traceparent="00-abc", forwarded=(("x-request-id", "r"),))
        await call.result()
        legs = world.engine.legs
        assert [leg.token_ids for leg in legs] == [(104, 105), (9,)]
        assert {(leg.traceparent, leg.metadata, leg.dp_rank) for leg in legs} == {
            ("00-abc", (("x-request-id", "r"),), None)
        }
        assert len({leg.leg_id for leg in legs} - {"", "r"}) == 2

    play(scene, codec=BytesCodec())


def test_a_rank_is_sent_where_the_engine_has_several_and_adapters_go_along() -> None:
    async def scene(world: EmbedWorld) -> None:
        target = {"target_worker_id": ranked.id, "target_dp_rank": 1}
        await world.ask((1,), (2,), adapters=(AdapterUse("poet", 0.5),), **target)
        assert {(leg.dp_rank, leg.adapters) for leg in world.engine.legs} == {(1, (AdapterUse("poet", 0.5),))}

    ranked = embedder(1, dp_size=2, applies_adapters=True, lists_adapters=False)
    ranked = replace(ranked, ranks=tuple(replace(ranked.ranks[0], dp_rank=rank) for rank in range(2)))
    play(scene, ranked, TWO)


REFUSED: list[tuple[str, tuple[Any, ...], Reason, str | None]] = [
    ("no token", ("hi", "???"), Reason.EMPTY_PROMPT, "inputs[1]"),
    ("vocabulary", ((5,), (300,)), Reason.TOKEN_OUT_OF_VOCABULARY, "inputs[1]"),
    ("too long", ((5,) * 40, (5,) * 41), Reason.PROMPT_TOO_LONG, "inputs[1]"),
]


@pytest.mark.parametrize(("inputs", "reason", "path"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED])
def test_an_input_that_is_known_to_hurt_engines_reaches_none(
    inputs: tuple[Any, ...], reason: Reason, path: str
) -> None:
    async def scene(world: EmbedWorld) -> None:
        error = await world.refused(*inputs)
        assert (error.reason, error.field, world.engine.legs) == (reason, path, [])

    play(scene, codec=BytesCodec())


def test_text_without_a_tokenizer_is_refused_and_names_the_input() -> None:
    async def scene(world: EmbedWorld) -> None:
        error = await world.refused((5,), "hi")
        assert (error.reason, error.field) == (Reason.TOKENIZER_UNAVAILABLE, "inputs[1]")

    play(scene)


@pytest.mark.parametrize(
    ("worker", "fields", "reason"),
    [
        (ONE, {"model": "nobody's"}, Reason.MODEL_NOT_FOUND),
        (replace(ONE, status=WorkerStatus.NOT_READY), {}, Reason.NO_READY_WORKER),
        (embedder(1, can_embed=False), {}, Reason.RUNTIME_CANNOT_EMBED),
    ],
    ids=["model", "ready", "embed"],
)
def test_a_call_without_a_place_says_which(worker: Any, fields: dict[str, Any], reason: Reason) -> None:
    async def scene(world: EmbedWorld) -> None:
        error = await world.refused((5,), **fields)
        assert error.reason is reason
        assert (error.retry_after_s is not None) == (reason is Reason.NO_READY_WORKER)

    play(scene, worker)


RETRYABLE = [
    LOST,
    EngineFailure(Reason.WORKER_UNREACHABLE, "nobody there", was_sent=False),
    EngineFailure(Reason.WORKER_REFUSED, "queue full", code=Code.RESOURCE_EXHAUSTED),
    EngineFailure(Reason.ENGINE_ERROR, "odd", code=Code.INTERNAL),
    EngineFailure(Reason.ENGINE_ABORTED, "abort", code=Code.ABORTED),
]


@pytest.mark.parametrize("failure", RETRYABLE, ids=lambda failure: str(failure.reason))
def test_an_input_that_a_worker_failed_is_tried_on_another_one(failure: EngineFailure) -> None:
    async def scene(world: EmbedWorld) -> None:
        world.fleet.engines[ONE.id].fails = [failure] * 99
        answer = await world.ask(*MANY[:8], normalize=False)
        assert answer.vectors == tuple(vector_of(tokens) for tokens in MANY[:8])
        lost = [attempt for attempt in answer.attempts if attempt.failure is not None]
        assert lost
        assert {attempt.failure.reason for attempt in lost if attempt.failure} == {failure.reason}
        assert {attempt.served_by.decode_worker_id for attempt in lost} == {ONE.id}
        assert len(answer.attempts) == 8 + len(lost)
        assert world.fleet.failed == [(ONE.id, failure.reason)] * len(lost)

    play(scene, ONE, TWO)


@pytest.mark.parametrize(
    ("failure", "path"),
    [
        (EngineFailure(Reason.INVALID_REQUEST, "no", code=Code.INVALID_ARGUMENT), "inputs[0]"),
        (EngineFailure(Reason.RUNTIME_CANNOT_EMBED, "no rpc", code=Code.UNIMPLEMENTED), None),
        (EngineFailure(Reason.ENGINE_PROTOCOL_ERROR, "no vector", code=Code.INTERNAL), None),
        (TandemError(Reason.RUNTIME_CANNOT_APPLY_ADAPTERS, "no field", field="adapters"), "adapters"),
    ],
    ids=["request", "rpc", "protocol", "dialect"],
)
def test_what_no_other_worker_would_do_better_is_not_tried_again(
    failure: EngineFailure | TandemError, path: str | None
) -> None:
    async def scene(world: EmbedWorld) -> None:
        for engine in world.fleet.engines.values():
            engine.fails = [failure]
        error = await world.refused((5,))
        assert (error.reason, error.field) == (failure.reason, path)
        assert {name: error.metadata[name] for name in ("request_id", "input", "attempts")} == {
            "request_id": "r", "input": "0", "attempts": "1",
        }  # fmt: skip
        assert sum(len(engine.legs) for engine in world.fleet.engines.values()) == 1

    play(scene, ONE, TWO)


def test_attempts_of_an_input_are_counted_and_the_last_failure_is_told_with_the_rest_ended() -> None:
    async def scene(world: EmbedWorld) -> None:
        world.engine.fails = [LOST] * 99
        error = await world.refused(*MANY)
        assert (error.reason, error.metadata["attempts"]) == (Reason.WORKER_LOST, "2")
        assert error.metadata["worker_id"] == ONE.id
        assert len(world.engine.legs) <= 2 * LANES

    play(scene, settings=RuntimeSettings(retry=RetrySettings(max_attempts=2)))


def test_a_worker_that_is_gone_before_the_rpc_counts_as_unreachable_and_another_is_asked() -> None:
    async def scene(world: EmbedWorld) -> None:
        world.fleet.gone = {ONE.id}
        answer = await world.ask((5,), (6,))
        lost = {attempt.failure.reason for attempt in answer.attempts if attempt.failure}
        assert lost == {Reason.WORKER_UNREACHABLE}
        assert world.fleet.engines[ONE.id].legs == []

    play(scene, ONE, TWO)


def test_what_is_observed_is_a_leg_per_try_and_no_first_token() -> None:
    async def scene(world: EmbedWorld) -> None:
        world.fleet.engines[ONE.id].fails = [LOST]
        await world.ask((5,), (6,))
        events = [event for _, event in world.trace.events]
        accepted = [event for event in events if isinstance(event, RequestAccepted)]
        planned = [event for event in events if isinstance(event, AttemptPlanned)]
        closed = [event for event in events if isinstance(event, LegClosed)]
        assert [event.kind for event in accepted] == [RequestKind.EMBEDDINGS]
        assert {(event.kind, event.prefill, event.room) for event in planned} == {(HandshakeKind.AGGREGATE, None, None)}
        assert sorted(event.state for event in closed) == [LegState.DONE, LegState.DONE, LegState.FAILED]
        assert {event.role for event in closed} == {LegRole.DECODE}
        sent = [event for event in events if isinstance(event, LegSent)]
        assert {event.leg_id for event in sent} == {event.leg_id for event in closed}
        assert len(planned) == len(sent) == 3
        assert not [event for event in events if isinstance(event, FirstToken)]

    play(scene, ONE, TWO)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    inputs=st.integers(1, 60),
    failures=st.lists(st.sampled_from([*RETRYABLE, EngineFailure(Reason.INVALID_REQUEST, "no")]), max_size=20),
    takes_s=st.tuples(*[st.sampled_from([0.0, 0.01, 0.3])] * 2),
    stop_after_s=st.none() | st.sampled_from([0.0, 0.005, 0.05]),
    total_s=st.none() | st.sampled_from([0.02, 0.5]),
)
def test_whatever_happens_a_call_ends_once_and_leaves_nothing(
    seed: int,
    inputs: int,
    failures: list[EngineFailure],
    takes_s: tuple[float, float],
    stop_after_s: float | None,
    total_s: float | None,
) -> None:
    async def scene(world: EmbedWorld) -> None:
        engines: list[Embedder] = list(world.fleet.engines.values())
        for engine, seconds in zip(engines, takes_s, strict=True):
            engine.takes_s = seconds
        engines[0].fails = list(failures)
        call = world.start(ask(*MANY[:inputs], normalize=False, timeouts=Timeouts(total_s=total_s)))
        if stop_after_s is not None:
            asyncio.get_running_loop().call_later(stop_after_s, call.cancel)
        [end] = await asyncio.gather(call.result(), return_exceptions=True)
        if isinstance(end, TandemError):
            assert stop_after_s is not None or total_s is not None or failures, end
            assert end.code is not Code.INTERNAL or end.reason is Reason.ENGINE_ERROR
        else:
            assert isinstance(end, Embedded)
            assert end.vectors == tuple(vector_of(tokens) for tokens in MANY[:inputs])
        statistics = world.relay.statistics()
        assert statistics.finished_total + statistics.failed_total == 1

    play(scene, ONE, TWO, seed=seed, order=Order.SHUFFLED)
