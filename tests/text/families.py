"""Small tokenizers with the structure of the public families, trained here on a few lines of text.

What matters of a family is its pipeline (normalizer, pre-tokenizer, model, decoder) and its kinds of added tokens; the
size of the vocabulary does not.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

CORPUS = [
    "the quick brown fox jumps over the lazy dog, and it's not done; do not ask. ",
    "def main(argument):\n    if argument:\n        return [1, 22, 333]\n\n\n\tprint('naïve café') ",
    "日本語のテキスト 中文文本 한국어 русский текст العربية नमस्ते 😀 👍 ",
    "Die Größe der Äpfel: 3,14 € – “so”… don't, can't, we've. ",
] * 8
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
GPT_SPLIT = Regex(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def special(*texts: str, **how: bool) -> list[AddedToken]:
    return [AddedToken(text, special=True, normalized=False, **how) for text in texts]


def ordinary(*texts: str, **how: bool) -> list[AddedToken]:
    return [AddedToken(text, special=False, normalized=False, **how) for text in texts]


def _byte_level(pre_tokenizer: pre_tokenizers.PreTokenizer, added: list[AddedToken]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=420, initial_alphabet=alphabet, show_progress=False)
    )
    tokenizer.add_tokens(added)
    return tokenizer


def _byte_fallback(
    normalizer: normalizers.Normalizer | None, pre_tokenizer: pre_tokenizers.PreTokenizer | None, first: list[str]
) -> Tokenizer:
    """BPE over characters with `▁` for spaces; what the few characters of the alphabet do not cover falls to bytes."""
    learnt = Tokenizer(models.BPE())
    learnt.normalizer = normalizers.Replace(" ", "▁")
    learnt.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    alphabet = sorted("▁abcdefghijklmnopqrstuvwyz,.()日本中한국р😀")
    learnt.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(
            vocab_size=180, initial_alphabet=alphabet, limit_alphabet=len(alphabet), show_progress=False
        ),
    )
    model = json.loads(learnt.to_str())["model"]
    # A newline is a byte in these families.
    pieces = [*first, *BYTES, *(piece for piece in model["vocab"] if "\n" not in piece and "\t" not in piece)]
    vocab = {piece: number for number, piece in enumerate(pieces)}
    merges = [(left, right) for left, right in model["merges"] if left in vocab and right in vocab]
    merges = [(left, right) for left, right in merges if left + right in vocab]
    tokenizer = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    if pre_tokenizer is not None:
        tokenizer.pre_tokenizer = pre_tokenizer
    return tokenizer


def _llama2_decoder() -> decoders.Decoder:
    return decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )


def llama2() -> Tokenizer:
    """Space put in front by the normalizer, taken from the front by the decoder."""
    tokenizer = _byte_fallback(
        normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]), None, ["<unk>", "<s>", "</s>"]
    )
    tokenizer.decoder = _llama2_decoder()
    tokenizer.add_tokens(special("<unk>", "<s>", "</s>"))
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return tokenizer


def mistral() -> Tokenizer:
    """The newer conversion: Metaspace before the first piece only, and control tokens in the vocabulary."""
    tokenizer = _byte_fallback(
        None, pre_tokenizers.Metaspace(prepend_scheme="first", split=False), ["<unk>", "<s>", "</s>", "[INST]"]
    )
    tokenizer.decoder = _llama2_decoder()
    tokenizer.add_tokens(special("<unk>", "<s>", "</s>", "[INST]", "[/INST]"))
    return tokenizer


def phi3() -> Tokenizer:
    """Llama-2's kind, with chat tokens that eat the spaces after them."""
    tokenizer = llama2()
    tokenizer.add_tokens(special("<|user|>", "<|assistant|>", "<|end|>", rstrip=True))
    tokenizer.add_tokens(ordinary("<|tool|>", rstrip=True, lstrip=True))
    return tokenizer


def gemma() -> Tokenizer:
    """No space in front; runs of spaces and newlines, and markup, are added tokens."""
    tokenizer = _byte_fallback(
        normalizers.Replace(" ", "▁"),
        pre_tokenizers.Split(" ", "merged_with_previous"),
        ["<pad>", "<eos>", "<bos>", "<unk>"],
    )
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_tokens(special("<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"))
    tokenizer.add_tokens(ordinary(*("\n" * count for count in range(1, 9)), *("▁" * count for count in range(2, 9))))
    tokenizer.add_tokens(ordinary("<table>", "</b>", "<unused0>"))
    return tokenizer


def llama3() -> Tokenizer:
    """Byte-level BPE behind a splitting expression, with hundreds of reserved tokens."""
    tokenizer = _byte_level(
        pre_tokenizers.Sequence(
            [pre_tokenizers.Split(GPT_SPLIT, "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
        ),
        special("<|begin_of_text|>", "<|eot_id|>", *(f"<|reserved_special_token_{number}|>" for number in range(240))),
    )
    begin = tokenizer.token_to_id("<|begin_of_text|>")
    tokenizer.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", begin)]),
        ]
    )
    return tokenizer


def qwen2() -> Tokenizer:
    """As Llama-3's, normalized to NFC, with added tokens that are not special."""
    tokenizer = _byte_level(
        pre_tokenizers.Sequence(
            [pre_tokenizers.Split(GPT_SPLIT, "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
        ),
        special("<|endoftext|>", "<|im_start|>", "<|im_end|>") + ordinary("<tool_call>", "</tool_call>", "<think>"),
    )
    tokenizer.normalizer = normalizers.NFC()
    return tokenizer


def deepseek() -> Tokenizer:
    """Several splits in sequence; tokens written with full-width bars and `▁`."""
    return _byte_level(
        pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(r"\p{N}{1,3}"), "isolated"),
                pre_tokenizers.Split(Regex("[一-龥\u3040-ゟ゠-ヿ]+"), "isolated"),
                pre_tokenizers.Split(Regex(r"[!-/:-~]?[A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+|\s+"), "isolated"),
                pre_tokenizers.ByteLevel(False, use_regex=False),
            ]
        ),
        special("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>")
        + ordinary("<｜User｜>", "<｜tool▁calls▁begin｜>", "é", "Ġ"),
    )


def phi2() -> Tokenizer:
    """GPT-2's kind, with runs of spaces and tabs as added tokens, some of which eat their neighbours."""
    return _byte_level(
        pre_tokenizers.ByteLevel(add_prefix_space=False),
        special("<|endoftext|>")
        + ordinary(*(" " * count for count in range(2, 9)), *("\t" * count for count in range(2, 5)))
        + special("<mask>", lstrip=True)
        + special("<|sep|>", lstrip=True, rstrip=True),
    )


def bert() -> Tokenizer:
    """WordPiece: `##` goes on with a word, everything else begins one, and the decoder tidies punctuation."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    tokenizer.train_from_iterator(
        CORPUS,
        trainers.WordPieceTrainer(
            vocab_size=300, special_tokens=["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"], show_progress=False
        ),
    )
    return tokenizer


def _unigram(scheme: str) -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme=scheme)
    tokenizer.train_from_iterator(
        CORPUS,
        trainers.UnigramTrainer(
            vocab_size=260, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>", show_progress=False
        ),
    )
    tokenizer.add_tokens(special(*(f"<extra_id_{number}>" for number in range(20)), lstrip=True))
    return tokenizer


def t5() -> Tokenizer:
    """Unigram: `▁` in front of every word, and none left of the first."""
    return _unigram("always")


def xlm_r() -> Tokenizer:
    """Unigram whose decoder keeps the first space."""
    return _unigram("never")


def bare() -> Tokenizer:
    """No decoder at all: tokens are joined by spaces."""
    tokenizer = bert()
    tokenizer.decoder = None
    return tokenizer


def openai_gpt() -> Tokenizer:
    """Suffixes end words: a decoder that does not work token by token."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", end_of_word_suffix="</w>"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.BPEDecoder(suffix="</w>")
    tokenizer.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(vocab_size=260, special_tokens=["<unk>"], end_of_word_suffix="</w>", show_progress=False),
    )
    return tokenizer


_MAKERS: tuple[Callable[[], Tokenizer], ...] = (
    llama2, mistral, phi3, gemma, llama3, qwen2, deepseek, phi2, bert, t5, xlm_r, bare, openai_gpt
)  # fmt: skip
FAMILIES = {maker.__name__: maker for maker in _MAKERS}
BYTE_FALLBACK = ("llama2", "mistral", "phi3", "gemma")
BYTE_LEVEL = ("llama3", "qwen2", "deepseek", "phi2")
WINDOWED = ("openai_gpt",)


@functools.cache
def tokenizer_json(family: str) -> str:
    return str(FAMILIES[family]().to_str())
