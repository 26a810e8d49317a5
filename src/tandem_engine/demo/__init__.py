"""The demo model: a folder that any engine can load, and prompts whose greedy answers are known.

`PROMPTS` are pairs of a prompt and the exact text that greedy decoding gives before the end token `<|end|>`. Each was
checked against the committed weights: at every step the chosen token leads by more than 1e-3, so another engine's
rounding does not change it. `python -m tandem_engine.demo.evaluate` checks again.
"""

from __future__ import annotations

from pathlib import Path

__all__ = ["MODEL_DIR", "PROMPTS"]

MODEL_DIR = Path(__file__).parent / "model"

_LETTERS = "abcdefghijklmnopqrstuvwxyz"

PROMPTS: list[tuple[str, str]] = [
    ("count from 7 to 12:", " 7 8 9 10 11 12"),
    ("count from 20 to 30:", "".join(f" {n}" for n in range(20, 31))),
    ("count from 95 to 99:", " 95 96 97 98 99"),
    ("alphabet from c to h:", " c d e f g h"),
    ("alphabet from a to z:", "".join(f" {letter}" for letter in _LETTERS)),
    ("a b", "".join(f" {letter}" for letter in _LETTERS[2:])),
    ("a b c", "".join(f" {letter}" for letter in _LETTERS[3:])),
    ("12 + 34 =", " 46"),
    ("7 + 8 =", " 15"),
    ("58 + 67 =", " 125"),
    ("repeat “hello” :", "hello"),
    ("repeat “the quick brown fox jumps over the lazy dog” :", "the quick brown fox jumps over the lazy dog"),
    ("repeat “🙂🚀” :", "🙂🚀"),
    ("repeat “你好 мир” :", "你好 мир"),
    ("repeat “one END two” :", "one END two"),
    ("repeat “red\ngreen” :", "red\ngreen"),
    (
        "good bread and butter.\nthe stone and the cloud.\nnote “secret key”\nred green lazy dog and fox.\n"
        "sun moon star planet comet.\nrepeat :",
        "secret key",
    ),
    ("<|user|>12 + 34 =<|end|><|assistant|>", " 46"),
    ("<|user|>count from 20 to 30:<|end|><|assistant|>", "".join(f" {n}" for n in range(20, 31))),
    ("<|system|>good bread and butter.<|end|><|user|>repeat “hello 🙂” :<|end|><|assistant|>", "hello 🙂"),
]
