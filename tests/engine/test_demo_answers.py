"""The committed demo model, through this engine: the answers it was trained to give."""

from __future__ import annotations

import pytest
from engine_driving import collect, request
from engine_model import RunEngine

from tandem_engine.demo import MODEL_DIR, PROMPTS
from tandem_engine.model import Model
from tandem_engine.sampling import SamplingParams


@pytest.fixture(scope="module")
def demo() -> Model:
    return Model.from_folder(MODEL_DIR)


def encode(demo: Model, text: str) -> tuple[int, ...]:
    assert demo.tokenizer is not None
    return tuple(demo.tokenizer.encode(text).ids)


@pytest.mark.parametrize(("text", "answer"), PROMPTS, ids=[repr(text)[:40] for text, _ in PROMPTS])
async def test_a_known_prompt_gets_its_known_answer(run_engine: RunEngine, demo: Model, text: str, answer: str) -> None:
    async with run_engine(of=demo) as engine:
        handle = engine.submit(request("a", encode(demo, text), SamplingParams(temperature=0.0)))
        tokens = [item.token_id for item in await collect(handle)]
    assert demo.tokenizer is not None
    assert demo.tokenizer.decode([token for token in tokens if token is not None]) == answer


async def test_a_stop_string_ends_the_copy_where_it_is_complete(run_engine: RunEngine, demo: Model) -> None:
    sampling = SamplingParams(temperature=0.0, stop=("END",))
    async with run_engine(of=demo) as engine:
        handle = engine.submit(request("a", encode(demo, "repeat “one END two” :"), sampling))
        emissions = await collect(handle)
    assert demo.tokenizer is not None
    text = demo.tokenizer.decode([item.token_id for item in emissions if item.token_id is not None])
    assert (text, emissions[-1].finish, emissions[-1].matched_stop) == ("one END", "stop", "END")
