"""What a served request looks like: tokens, counts, log probabilities, choices, limits, ranks."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import Any

import numpy as np
import pytest
from engine_driving import GREEDY, IDLE, SEEDED, collect, generate, in_hand, outputs, prompt, request, ticks
from engine_model import ManualClock, RunEngine
from engine_stepping import Rows, plain_logits

from tandem_engine.engine import Engine, EngineSettings
from tandem_engine.handle import RequestHandle
from tandem_engine.model import Model
from tandem_engine.requests import EngineError, EngineErrorReason, Phase
from tandem_engine.sampling import SamplingParams, log_softmax


def test_greedy_tokens_are_those_of_a_plain_float64_llama(model: Model) -> None:
    tokens = list(prompt(40))
    logits = plain_logits(model, tokens)
    margins = np.sort(logits, axis=-1)[:, -1] - np.sort(logits, axis=-1)[:, -2]
    rows = Rows(model, [tokens])
    ours = [int(rows.step([(0, 1)])[0].argmax()) for _ in tokens]
    clear = [at for at in range(40) if margins[at] > 1e-3]
    assert [ours[at] for at in clear] == [int(logits[at].argmax()) for at in clear]


async def test_tokens_come_one_by_one_with_running_counts_and_absolute_positions(run_engine: RunEngine) -> None:
    async with run_engine() as engine:
        emissions = await generate(engine, request("a", prompt(20), dataclasses.replace(GREEDY, max_tokens=5)))
    assert [(item.position, item.completion_tokens, item.finish) for item in emissions] == [
        (20, 1, None),
        (21, 2, None),
        (22, 3, None),
        (23, 4, None),
        (24, 5, "length"),
    ]


async def test_a_prompt_continued_by_its_own_output_gives_the_same_seeded_tokens(run_engine: RunEngine) -> None:
    async with run_engine() as engine:
        whole = outputs(await generate(engine, request("a", prompt(33), SEEDED)))[0]
        begun = (*prompt(33), *(token for token in whole[:10] if token is not None))
        rest = dataclasses.replace(SEEDED, max_tokens=14)
        assert outputs(await generate(engine, request("b", begun, rest)))[0] == whole[10:]


async def test_a_seeded_request_does_not_depend_on_what_runs_beside_it(run_engine: RunEngine) -> None:
    async with run_engine() as alone, run_engine(prefill_chunk=13) as busy:
        expected = outputs(await generate(alone, request("a", prompt(50), SEEDED)))
        others = [busy.submit(request(f"o{at}", prompt(5 + at * 17, at), SEEDED)) for at in range(12)]
        found = outputs(await generate(busy, request("a", prompt(50), SEEDED)))
        await asyncio.gather(*map(collect, others))
    assert found == expected


async def test_choices_of_one_seed_differ_and_each_is_reproducible(run_engine: RunEngine) -> None:
    sampling = dataclasses.replace(SEEDED, n=3)
    async with run_engine() as engine:
        first = outputs(await generate(engine, request("a", prompt(20), sampling)))
        second = outputs(await generate(engine, request("b", prompt(20), sampling)))
    assert first == second
    assert len({tuple(tokens) for tokens in first.values()}) == 3


@pytest.mark.parametrize("length", [16, 20])
async def test_the_first_of_two_choices_equals_a_request_for_one(run_engine: RunEngine, length: int) -> None:
    async with run_engine() as engine:
        one = outputs(await generate(engine, request("a", prompt(length), SEEDED)))
        two = outputs(await generate(engine, request("b", prompt(length), dataclasses.replace(SEEDED, n=2))))
    assert two[0] == one[0]


async def test_logprobs_are_those_of_the_raw_distribution(run_engine: RunEngine, model: Model) -> None:
    tokens = prompt(20)
    sampling = dataclasses.replace(SEEDED, logprobs=3, temperature=2.0, max_tokens=1)
    async with run_engine() as engine:
        (emission,) = await generate(engine, request("a", tokens, sampling))
    expected = log_softmax(Rows(model, [tokens]).step([(0, 20)])[0])
    best = tuple((int(token), float(expected[token])) for token in np.argsort(-expected, kind="stable")[:3])
    assert emission.top_logprobs == best
    assert emission.logprob == float(expected[emission.token_id or 0])


@pytest.mark.parametrize("chunk", [7, 256])
async def test_input_logprobs_cover_the_prompt_also_when_it_is_cached(
    run_engine: RunEngine, model: Model, chunk: int
) -> None:
    tokens = prompt(40)
    rows = log_softmax(plain_logits(model, tokens).astype(np.float32))
    expected = [float(row[token]) for row, token in zip(rows, tokens[1:], strict=False)]
    async with run_engine(prefill_chunk=chunk) as engine:
        await generate(engine, request("a", tokens))
        emissions = await generate(engine, request("b", tokens, input_logprobs=True))
    assert emissions[0].input_logprobs[0] is None
    assert emissions[0].input_logprobs[1:] == pytest.approx(expected, abs=1e-3)
    assert emissions[1].input_logprobs == ()


async def test_max_tokens_zero_only_reads_the_prompt(run_engine: RunEngine) -> None:
    sampling = dataclasses.replace(GREEDY, max_tokens=0)
    async with run_engine() as engine:
        (only,) = await generate(engine, request("a", prompt(20), sampling, input_logprobs=True))
        assert (only.token_id, only.finish, len(only.input_logprobs), in_hand(engine)) == (None, "length", 20, IDLE)


async def test_a_stop_token_is_emitted_and_named(run_engine: RunEngine) -> None:
    async with run_engine() as engine:
        free = outputs(await generate(engine, request("a", prompt(20))))[0]
        sampling = dataclasses.replace(GREEDY, stop_token_ids=(free[2] or 0,))
        last = (await generate(engine, request("b", prompt(20), sampling)))[-1]
    assert (last.token_id, last.finish, last.matched_stop) == (free[2], "stop", free[2])


async def test_output_ends_with_the_context(run_engine: RunEngine) -> None:
    sampling = SamplingParams(temperature=0.0, ignore_eos=True)
    async with run_engine(max_model_len=50) as engine:
        emissions = await generate(engine, request("a", prompt(20), sampling))
        assert (len(emissions), emissions[-1].finish, engine.context) == (30, "length", 50)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"token_ids": ()}, "token_ids"),
        ({"token_ids": (512,)}, "token_ids"),
        ({"token_ids": (-1,)}, "token_ids"),
        ({"token_ids": (1,) * 512}, "token_ids"),
        ({"sampling": SamplingParams(top_p=2.0)}, "top_p"),
        ({"sampling": SamplingParams(stop=("x",))}, "stop"),
        ({"sampling": SamplingParams(n=9)}, "max_running"),
        ({"sampling": SamplingParams(n=8)}, "KV pages"),
        ({"dp_rank": 2}, "dp_rank"),
    ],
)
async def test_a_request_that_cannot_be_served_is_refused_by_name(
    run_engine: RunEngine, change: dict[str, Any], named: str
) -> None:
    async with run_engine(num_pages=32, max_running=8, dp_size=2) as engine:
        with pytest.raises(EngineError, match=named) as refused:
            engine.submit(dataclasses.replace(request("a", prompt(5)), **change))
        assert (refused.value.reason, in_hand(engine)) == (EngineErrorReason.INVALID, IDLE)


async def test_a_live_request_id_is_refused_and_a_finished_one_is_free(run_engine: RunEngine) -> None:
    async with run_engine() as engine:
        handle = engine.submit(request("a", prompt(5)))
        with pytest.raises(EngineError) as refused:
            engine.submit(request("a", prompt(5)))
        await collect(handle)
        await generate(engine, request("a", prompt(5)))
    assert refused.value.reason is EngineErrorReason.ALREADY_EXISTS


async def test_running_choices_never_exceed_the_limit(run_engine: RunEngine) -> None:
    async with run_engine(max_running=5) as engine:
        handles = [engine.submit(request(f"r{at}", prompt(9, at), dataclasses.replace(GREEDY, n=2))) for at in range(6)]

        async def most_running(handle: RequestHandle) -> int:
            seen = [engine.ledger().running async for _ in handle]
            return max(seen)

        assert max(await asyncio.gather(*map(most_running, handles))) == 2


async def test_a_long_prompt_does_not_stop_running_requests(run_engine: RunEngine) -> None:
    async with run_engine(prefill_chunk=16) as engine:
        running = engine.submit(request("a", prompt(9), dataclasses.replace(GREEDY, max_tokens=60)))
        await anext(running)
        before = engine.ledger().generated_tokens
        await anext(engine.submit(request("b", prompt(320, 1))))
        assert engine.ledger().generated_tokens - before >= 20


async def test_a_room_chooses_the_rank_and_each_rank_has_its_own_row(run_engine: RunEngine) -> None:
    async with run_engine(dp_size=3) as engine:
        handles = [
            engine.submit(request(f"r{room}", prompt(64), room=room, phase=Phase.PREFILL)) for room in (7, 8, 11)
        ]
        held = [await handle.held_pages() for handle in handles]
        ledger = engine.ledger()
        rows = [(rank.rank, rank.rooms, rank.held_pages) for rank in ledger.ranks]
    assert ([item.rank for item in held], rows, ledger.rooms) == ([1, 2, 2], [(0, 0, 0), (1, 1, 4), (2, 2, 8)], 3)


async def test_without_a_room_the_least_loaded_rank_serves(run_engine: RunEngine) -> None:
    async with run_engine(dp_size=3) as engine:
        handles = [engine.submit(request(f"r{at}", prompt(9))) for at in range(6)]
        assert [handle.rank for handle in handles] == [0, 1, 2, 0, 1, 2]


async def test_ledger_totals_count_computed_prompt_and_generated_tokens(run_engine: RunEngine) -> None:
    async with run_engine() as engine:
        await generate(engine, request("a", prompt(40)))
        await generate(engine, request("b", prompt(40)))
        ledger = engine.ledger()
    assert (ledger.prompt_tokens, ledger.generated_tokens, ledger.aborted) == (48, 48, 0)


async def test_loads_show_use_throughput_and_hits(run_engine: RunEngine, clock: ManualClock) -> None:
    async with run_engine(num_pages=100) as engine:
        await generate(engine, request("a", prompt(40)))
        await generate(engine, request("b", prompt(40)))
        held = await engine.submit(request("p", prompt(160, 3), phase=Phase.PREFILL)).held_pages()
        (load,) = engine.loads()
        clock.now_s += 10.0
        (later,) = engine.loads()
        engine.release(held)
    assert (load.used_tokens, load.max_tokens, load.token_usage) == (160, 1600, 0.1)
    assert (load.gen_throughput, later.gen_throughput) == (49 / 5.0, 0.0)
    assert load.cache_hit_rate == 32 / 240


async def test_an_idle_engine_makes_no_steps(run_engine: RunEngine) -> None:
    async with run_engine() as engine:
        await generate(engine, request("a", prompt(5)))
        before = engine.ledger().steps
        await ticks(200)
        assert engine.ledger().steps == before


async def test_calls_for_another_phase_are_refused(run_engine: RunEngine) -> None:
    async with run_engine() as engine:
        handle = engine.submit(request("a", prompt(5)))
        with pytest.raises(EngineError) as refused:
            handle.kv_arrived(0)
        assert refused.value.reason is EngineErrorReason.WRONG_STATE
        with pytest.raises(EngineError):
            await handle.held_pages()


async def test_an_engine_runs_once(model: Model) -> None:
    engine = Engine(model, EngineSettings(num_pages=4))
    task = asyncio.create_task(engine.run())
    await ticks()
    with pytest.raises(EngineError):
        await engine.run()
    engine.stop()
    await task
