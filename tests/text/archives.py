"""Tokenizers trained in the test, in the archives that engines send."""

from __future__ import annotations

import functools
import io
import json
import zipfile

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

CORPUS = [
    "the quick brown fox jumps over the lazy dog " * 3,
    "naïve café 日本語のテキスト 中文文本 👩‍👩‍👧‍👦 🇩🇪 e\u0301 o\u0308 क्षि",
    "0123456789 abc def ghi",
] * 4
SPECIAL = ["<s>", "<|end|>", "<|user|>"]
TEMPLATE = "{{ bos_token }}{% for m in messages %}<|user|>{{ m['content'] }}<|end|>{% endfor %}"


@functools.cache
def byte_level() -> str:
    """GPT-2's kind: every byte is a token, merges on top; `<s>` is added in front."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(
            vocab_size=400,
            special_tokens=SPECIAL,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    tokenizer.add_tokens([AddedToken("“", normalized=False), AddedToken("🦜", normalized=False)])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return str(tokenizer.to_str())


@functools.cache
def byte_fallback() -> str:
    """Llama's kind: pieces with `▁` for spaces, and `<0xNN>` for what has no piece."""
    alphabet = sorted(set("▁" + "abcdefghijklmnopqrstuvwxyz日本"))
    pieces = [*SPECIAL, "<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *alphabet, "▁t", "th", "▁th", "he"]
    merges = [("▁", "t"), ("t", "h"), ("▁t", "h"), ("h", "e")]
    tokenizer = Tokenizer(
        models.BPE(
            {piece: number for number, piece in enumerate(pieces)}, merges, unk_token="<unk>", byte_fallback=True
        )
    )
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(SPECIAL)
    return str(tokenizer.to_str())


def files(**changes: str | None) -> dict[str, str]:
    """The files of an archive; None leaves one out."""
    found: dict[str, str | None] = {
        "tokenizer.json": byte_level(),
        "tokenizer_config.json": json.dumps({"chat_template": TEMPLATE, "eos_token": {"content": "<|end|>"}}),
        "special_tokens_map.json": json.dumps({"bos_token": "<s>", "eos_token": "wrong"}),
        "README.md": "hello",
    }
    found.update({name.replace("__", "."): text for name, text in changes.items()})
    return {name: text for name, text in found.items() if text is not None}


def archive(contents: dict[str, str] | None = None) -> bytes:
    """The zip of some files."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as written:
        for name, text in (files() if contents is None else contents).items():
            written.writestr(name, text)
    return buffer.getvalue()
