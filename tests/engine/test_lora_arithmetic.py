"""An adapter changes exactly the rows that ask for it, as a merged model would, with bits that no neighbour changes."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from adapter_folders import PROJECTIONS, random_tensors, write_adapter
from engine_driving import GREEDY, SEEDED, collect, generate, outputs, prompt, request
from engine_model import RunEngine
from engine_stepping import Rows
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tandem_engine.lora import Adapter
from tandem_engine.lora_folder import AdapterFolderError, load_adapter
from tandem_engine.model import Model, StepBatch
from tandem_engine.weights import LayerWeights


@pytest.fixture(scope="module")
def adapters(model: Model, tmp_path_factory: pytest.TempPathFactory) -> tuple[Adapter, Adapter]:
    folder = tmp_path_factory.mktemp("adapters")
    first = write_adapter(folder / "first", model.config, seed=1)
    # Rank 1: BLAS takes other kernels for products with a side of one.
    second = write_adapter(folder / "second", model.config, seed=2, rank=1, modules=("q_proj", "v_proj", "down_proj"))
    return loaded(model, first, "first"), loaded(model, second, "second")


def loaded(model: Model, folder: Path, name: str) -> Adapter:
    return load_adapter(folder, model.config, adapter_id=f"{name}-id", name=name, is_pinned=False)


def merged(model: Model, adapter: Adapter) -> Model:
    """The model with the adapter's products added to its matrices."""

    def add(matrix: Any, patches: Any) -> Any:
        matrix = matrix.copy()
        for patch in patches:
            matrix[:, patch.column : patch.column + patch.up.shape[1]] += patch.down @ patch.up
        return matrix

    def layer(weights: LayerWeights, index: int) -> LayerWeights:
        patches = adapter.layers[index]
        names = ("qkv", "attention_out", "gate_up", "down")
        return dataclasses.replace(
            weights, **{name: add(getattr(weights, name), getattr(patches, name)) for name in names}
        )

    layers = tuple(layer(weights, index) for index, weights in enumerate(model.weights.layers))
    return Model(model.config, dataclasses.replace(model.weights, layers=layers), None, "merged")


def one_step_logits(model: Model, tokens: list[int], adapter: Adapter | None) -> Any:
    rows = Rows(model, [tokens])
    if adapter is not None:
        rows.model = _Adapted(model, adapter)  # type: ignore[assignment]
    return rows.step([(0, len(tokens))])


class _Adapted:
    """A model whose every row has the adapter."""

    def __init__(self, model: Model, adapter: Adapter) -> None:
        self._model, self._adapter = model, adapter

    def forward(self, batch: StepBatch, pages: Any) -> Any:
        from tandem_engine.lora import AdapterRows

        use = AdapterRows(self._adapter, np.arange(len(batch.token_ids)))
        return self._model.forward(dataclasses.replace(batch, adapters=(use,)), pages)


@pytest.mark.parametrize("which", [0, 1])
def test_an_adapter_computes_what_a_merged_model_computes(
    model: Model, adapters: tuple[Adapter, Adapter], which: int
) -> None:
    tokens = list(prompt(70, 3))
    adapted = one_step_logits(model, tokens, adapters[which])
    assert np.abs(adapted - one_step_logits(merged(model, adapters[which]), tokens, None)).max() < 2e-3
    assert np.abs(adapted - one_step_logits(model, tokens, None)).max() > 0.1


async def test_adapters_change_the_greedy_answer_each_its_own_way(
    run_engine: RunEngine, adapters: tuple[Adapter, Adapter]
) -> None:
    async with run_engine() as engine:
        answers = [
            tuple(outputs(await generate(engine, request(f"r{at}", prompt(40), adapter=adapter)))[0])
            for at, adapter in enumerate((None, *adapters))
        ]
    assert len(set(answers)) == 3


@given(
    wanted=st.lists(st.tuples(st.integers(1, 60), st.integers(0, 2), st.booleans()), min_size=2, max_size=6),
    chunk=st.sampled_from([7, 64, 256]),
    shared=st.booleans(),
)
@example(wanted=[(20, 0, False), (33, 1, False), (9, 2, True), (33, 1, True), (1, 2, False)], chunk=64, shared=False)
@example(wanted=[(20, 2, False), (33, 1, False), (9, 0, True), (17, 2, True)], chunk=7, shared=True)
@settings(max_examples=16, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_a_batch_of_mixed_adapters_answers_as_each_request_alone(
    run_engine: RunEngine,
    adapters: tuple[Adapter, Adapter],
    wanted: list[tuple[int, int, bool]],
    chunk: int,
    shared: bool,
) -> None:
    """`shared`: every prompt begins with the same 32 tokens, which other requests have left in the cache before."""
    begin = prompt(32, 99) if shared else ()
    asked = [
        request(
            f"r{at}",
            (*begin, *prompt(length, at)),
            dataclasses.replace(SEEDED if seeded else GREEDY, max_tokens=6, logprobs=2),
            adapter=(None, *adapters)[which],
        )
        for at, (length, which, seeded) in enumerate(wanted)
    ]
    async with run_engine(prefill_chunk=chunk) as together:
        for at, adapter in enumerate((adapters[1], None, adapters[0]) if shared else ()):
            await generate(together, request(f"w{at}", begin, adapter=adapter))
        handles = [together.submit(one) for one in asked]
        batched = [await collect(handle) for handle in handles]
    for one, emissions in zip(asked, batched, strict=True):
        assert not shared or emissions[0].cached_tokens >= 32
        async with run_engine() as alone:
            assert [(item.token_id, item.logprob, item.top_logprobs) for item in await generate(alone, one)] == [
                (item.token_id, item.logprob, item.top_logprobs) for item in emissions
            ]


async def test_blocks_of_one_adapter_are_never_reused_under_another(
    run_engine: RunEngine, adapters: tuple[Adapter, Adapter]
) -> None:
    async with run_engine() as engine:
        cached = []
        for at, adapter in enumerate((None, adapters[0], adapters[1], adapters[0], None)):
            [first, *_] = await generate(engine, request(f"r{at}", prompt(64), adapter=adapter))
            cached.append(first.cached_tokens)
        events = engine.kv_events().since(0)
    assert cached == [0, 0, 0, 63, 63]
    assert events is not None
    assert {event.adapter for event in events} == {None, "first", "second"}


def test_other_weights_under_the_same_name_have_another_cache_key(
    model: Model, adapters: tuple[Adapter, Adapter], tmp_path: Path
) -> None:
    same = loaded(model, write_adapter(tmp_path / "same", model.config, seed=1), "first")
    scaled = loaded(model, write_adapter(tmp_path / "scaled", model.config, seed=1, lora_alpha=9), "first")
    other = loaded(model, write_adapter(tmp_path / "other", model.config, seed=5), "first")
    keys = [adapter.cache_key for adapter in (adapters[0], same, scaled, other)]
    assert (keys[0] == keys[1], len(set(keys))) == (True, 3)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"peft_type": "LOHA"}, "peft_type 'LOHA'"),
        ({"bias": "all"}, "bias 'all'"),
        ({"use_dora": True}, "use_dora"),
        ({"rank_pattern": {"q_proj": 2}}, "rank_pattern"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"r": 0}, "r must be an integer in [1, 256], got 0"),
        ({"r": True}, "r must be an integer"),
        ({"r": 5}, "shapes are"),
        ({"lora_alpha": "8"}, "lora_alpha must be a number"),
        ({"lora_alpha": 10**400}, "lora_alpha must be a number in [-1e+06, 1e+06]"),
        ({"lora_alpha": float("nan")}, "lora_alpha must be a number"),
        ({"alora_invocation_tokens": [1, 2]}, "alora_invocation_tokens"),
        ({"use_qalora": True}, "use_qalora"),
    ],
)
def test_a_configuration_that_is_not_served_is_refused_by_name(
    model: Model, tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(AdapterFolderError) as caught:
        loaded(model, write_adapter(tmp_path, model.config, **changes), "bad")
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("base_model.model.lm_head.lora_A.weight", "not of a projection"),
        (
            "base_model.model.model.layers.99.self_attn.q_proj.lora_A.weight",
            "layer 99 self_attn.q_proj: the model has no such",
        ),
        (
            "base_model.model.model.layers.0.self_attn.x_proj.lora_A.weight",
            "layer 0 self_attn.x_proj: the model has no such",
        ),
        ("base_model.model.model.layers.0.mlp.q_proj.lora_A.weight", "layer 0 mlp.q_proj: the model has no such"),
        ("base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight", "lora_A and lora_B belong together"),
    ],
)
def test_a_tensor_that_fits_nothing_is_refused_by_name(model: Model, tmp_path: Path, name: str, words: str) -> None:
    folder = write_adapter(tmp_path, model.config, tensors={name: np.zeros((4, 128), np.float32)})
    with pytest.raises(AdapterFolderError) as caught:
        loaded(model, folder, "bad")
    assert words in str(caught.value)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_no_numbers_are_refused_by_name(model: Model, tmp_path: Path, value: float) -> None:
    tensors = random_tensors(model.config, seed=1, r=4, modules=("q_proj",), strength=1.0)
    name = "base_model.model.model.layers.1.self_attn.q_proj.lora_B.weight"
    tensors[name][3, 2] = value
    with pytest.raises(AdapterFolderError, match=rf"tensor {name} holds what is not a number"):
        loaded(model, write_adapter(tmp_path, model.config, tensors=tensors), "bad")


def test_a_tensor_under_two_names_is_refused(model: Model, tmp_path: Path) -> None:
    tensors = random_tensors(model.config, seed=1, r=4, modules=("q_proj",), strength=1.0)
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    tensors[name.replace("lora_A.", "lora_A.default.")] = tensors[name]
    with pytest.raises(AdapterFolderError, match="twice, under two names"):
        loaded(model, write_adapter(tmp_path, model.config, tensors=tensors), "bad")


@pytest.mark.parametrize("missing", ["adapter_config.json", "adapter_model.safetensors"])
def test_a_missing_or_damaged_file_is_refused_by_name(model: Model, tmp_path: Path, missing: str) -> None:
    folder = write_adapter(tmp_path, model.config)
    (folder / missing).write_bytes(b"not this")
    with pytest.raises(AdapterFolderError, match=missing):
        loaded(model, folder, "bad")
    (folder / missing).unlink()
    with pytest.raises(AdapterFolderError, match=missing):
        loaded(model, folder, "bad")


def test_rank_stabilised_scale_divides_by_the_root_of_the_rank(model: Model, tmp_path: Path) -> None:
    tensors = random_tensors(model.config, seed=1, r=4, modules=PROJECTIONS, strength=1.0)
    plain = loaded(model, write_adapter(tmp_path / "plain", model.config, tensors=tensors), "plain")
    stable = loaded(model, write_adapter(tmp_path / "stable", model.config, tensors=tensors, use_rslora=True), "stable")
    ratio = stable.layers[0].down[0].up / plain.layers[0].down[0].up
    assert np.allclose(ratio, 2.0)
