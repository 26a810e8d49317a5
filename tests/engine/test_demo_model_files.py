"""The demo model's folder is whole, small, and what the engines expect."""

from __future__ import annotations

import json
import struct
from typing import Any

import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

from tandem_engine.demo import MODEL_DIR, PROMPTS
from tandem_engine.demo.corpus import chat_text, exact_prompt, long_prompt


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(MODEL_DIR / "tokenizer.json"))


def token_id(tokenizer: Tokenizer, token: str) -> int:
    index = tokenizer.token_to_id(token)
    assert index is not None, token
    return index


def read(name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((MODEL_DIR / name).read_text(encoding="utf-8"))
    return content


def tensor_header() -> dict[str, Any]:
    with (MODEL_DIR / "model.safetensors").open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header: dict[str, Any] = json.loads(file.read(length))
    header.pop("__metadata__", None)
    return header


def test_the_weights_are_at_most_two_million_bytes() -> None:
    assert (MODEL_DIR / "model.safetensors").stat().st_size <= 2_000_000


def test_the_folder_is_at_most_2_mib() -> None:
    assert sum(file.stat().st_size for file in MODEL_DIR.iterdir()) <= 2 * 1024 * 1024


def test_the_config_is_a_llama_with_head_dim_64_and_4096_positions() -> None:
    config = read("config.json")
    wanted = {
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": 128,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 64,
        "num_hidden_layers": 3,
        "vocab_size": 512,
        "tie_word_embeddings": True,
        "max_position_embeddings": 4096,
        "torch_dtype": "float32",
    }
    assert {name: config[name] for name in wanted} == wanted


def test_every_tensor_of_every_layer_is_there_in_float32_and_no_lm_head() -> None:
    layers = read("config.json")["num_hidden_layers"]
    parts = [
        *("input_layernorm", "post_attention_layernorm"),
        *(f"self_attn.{name}_proj" for name in "qkvo"),
        *(f"mlp.{name}_proj" for name in ("gate", "up", "down")),
    ]
    names = {f"model.layers.{layer}.{part}.weight" for layer in range(layers) for part in parts}
    names |= {"model.embed_tokens.weight", "model.norm.weight"}
    assert {name: tensor["dtype"] for name, tensor in tensor_header().items()} == dict.fromkeys(names, "F32")


def test_the_end_token_has_one_id_in_every_file(tokenizer: Tokenizer) -> None:
    token = read("tokenizer_config.json")["eos_token"]
    ids = {
        tokenizer.token_to_id(token),
        read("config.json")["eos_token_id"],
        read("generation_config.json")["eos_token_id"],
    }
    assert ids == {1}


@pytest.mark.parametrize("token", ["<|end|>", "<|system|>", "<|user|>", "<|assistant|>", "“", "”"])
def test_roles_and_delimiters_are_added_tokens_that_merges_never_cross(tokenizer: Tokenizer, token: str) -> None:
    ids = tokenizer.encode(f"🙂{token}🙂").ids
    assert ids.count(token_id(tokenizer, token)) == 1


def test_a_quote_has_the_same_tokens_inside_and_outside_its_delimiters(tokenizer: Tokenizer) -> None:
    quote = "hello 🙂END\n42"
    inside = tokenizer.encode(f"repeat “{quote}” :").ids
    opening, closing = (token_id(tokenizer, token) for token in "“”")
    assert inside[inside.index(opening) + 1 : inside.index(closing)] == tokenizer.encode(quote).ids


@pytest.mark.parametrize("text", ["🙂🚀👩‍👩‍👧", "漢字かなカナ한글", "naïve «ÿ» ë\n\tEND", "\u0000\u007f\ufffd"])
def test_any_text_survives_the_tokenizer(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_every_digit_is_a_token(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode("0123456789").tokens == list("0123456789")


def test_no_token_is_added_by_itself(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode("").ids == []


def test_the_chat_template_renders_in_a_sandbox_what_the_model_was_trained_on() -> None:
    template = ImmutableSandboxedEnvironment().from_string(read("tokenizer_config.json")["chat_template"])
    turns = [("system", "good."), ("user", "1 + 2 ="), ("assistant", " 3"), ("user", "repeat “a” :")]
    messages = [{"role": role, "content": content} for role, content in turns]
    assert template.render(messages=messages, add_generation_prompt=True) == chat_text(turns)


@pytest.mark.parametrize("total_tokens", [1, 2, 15, 16, 17, 33])
def test_short_prompts_can_have_an_exact_length(tokenizer: Tokenizer, total_tokens: int) -> None:
    example = exact_prompt(total_tokens, lambda text: tokenizer.encode(text).ids)
    assert len(tokenizer.encode(example.prompt).ids) == total_tokens


@pytest.mark.parametrize("quote_at", [100, 1000, 1900])
def test_a_long_prompt_has_its_length_and_its_quote_where_asked(tokenizer: Tokenizer, quote_at: int) -> None:
    ids = tokenizer.encode(long_prompt(2000, quote_at, "END 🙂", lambda text: tokenizer.encode(text).ids).prompt).ids
    assert (len(ids), abs(ids.index(token_id(tokenizer, "“")) + 1 - quote_at) <= 4) == (2000, True)


def test_a_note_that_does_not_fit_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(ValueError, match="do not fit"):
        long_prompt(50, 45, "hello world", lambda text: tokenizer.encode(text).ids)


def test_no_answer_of_the_known_prompts_holds_a_special_token(tokenizer: Tokenizer) -> None:
    assert all(min(tokenizer.encode(answer).ids) > 4 for _, answer in PROMPTS)
