"""Builds the demo model's tokenizer and the small files beside the weights. Needs only the tokenizers package."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

__all__ = ["ADDED_TOKENS", "CHAT_TEMPLATE", "END_ID", "VOCAB_SIZE", "build_tokenizer", "write_side_files"]

VOCAB_SIZE = 512
ROLE_TOKENS = ("<|pad|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>")
DELIMITERS = ("“", "”")
ADDED_TOKENS = ROLE_TOKENS + DELIMITERS
"""Ids 0-6 in this order. Merges never cross them. The delimiters are text (kept by decode), the others are special.

None may be a character that the byte-level alphabet uses for a byte, as guillemets are: it would share that byte's id.
"""
END_ID = 1

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] not in ['system', 'user', 'assistant'] %}"
    "{{ raise_exception('role must be system, user or assistant') }}"
    "{% endif %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def build_tokenizer(lines: Iterable[str]) -> Tokenizer:
    """A byte-level BPE of 512 tokens: every digit is its own token, every byte has one, no token is added by itself."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[AddedToken(text, normalized=False, special=True) for text in ADDED_TOKENS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(lines, trainer)
    shared = set(ADDED_TOKENS) & set(pre_tokenizers.ByteLevel.alphabet())
    if shared:
        raise ValueError(f"added tokens {sorted(shared)} are also the names of bytes")
    layout = json.loads(tokenizer.to_str())
    for token in layout["added_tokens"]:
        token["special"] = token["content"] in ROLE_TOKENS
    return Tokenizer.from_str(json.dumps(layout))


def write_side_files(folder: Path, config: dict[str, Any], tokenizer: Tokenizer) -> None:
    """Writes everything of the Hugging Face layout but the weights."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    special = {"eos_token": "<|end|>", "pad_token": "<|pad|>"}
    tokenizer_config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": config["max_position_embeddings"],
        "clean_up_tokenization_spaces": False,
        "bos_token": None,
        **special,
        "chat_template": CHAT_TEMPLATE,
        "added_tokens_decoder": {
            str(index): {
                "content": text,
                "lstrip": False,
                "normalized": False,
                "rstrip": False,
                "single_word": False,
                "special": text in ROLE_TOKENS,
            }
            for index, text in enumerate(ADDED_TOKENS)
        },
    }
    generation = {"eos_token_id": END_ID, "pad_token_id": 0, "do_sample": False}
    for name, content in (
        ("config.json", config),
        ("tokenizer_config.json", tokenizer_config),
        ("special_tokens_map.json", special),
        ("generation_config.json", generation),
    ):
        text = json.dumps(content, ensure_ascii=False, indent=2) + "\n"
        (folder / name).write_text(text, encoding="utf-8")
