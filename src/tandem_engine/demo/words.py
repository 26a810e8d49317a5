"""Raw material of the demo model's text: words, letters, characters of many scripts. Pure data and seeded draws."""

from __future__ import annotations

import random

__all__ = ["LETTERS", "PUNCTUATION", "STOP_STRINGS", "WORDS", "draw_character", "draw_filler_line", "draw_word"]

LETTERS = "abcdefghijklmnopqrstuvwxyz"
PUNCTUATION = "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~"

STOP_STRINGS = ("END", "STOP", "###", "\n\n", "</s>", "[DONE]", "User:", "---", "```", "EOF")
"""What people put into `stop`; the model learns to copy them so that a test can make it emit them."""

_WORD_LIST = """
    hello world red green blue apple river stone cloud light water north south east west house garden window
    paper letter number table winter summer spring autumn morning evening night silver golden little quick brown
    fox jumps over lazy dog tandem bicycle wheel chain saddle engine worker router prefill decode token cache block
    page pair room bridge harbour island mountain forest meadow valley thunder rain snow wind fire earth moon sun
    star planet comet orange lemon cherry banana grape bread butter cheese coffee tea sugar salt pepper music song
    dance story book pencil brush canvas colour circle square triangle line point never always maybe sometimes the
    and with from into under between after before while because every good bad new old big small fast slow open
    closed first last alpha beta gamma delta key lock secret pass code hidden value answer question remember
"""
WORDS = tuple(_WORD_LIST.split())

_SYLLABLES = tuple(c + v for c in "bdfgklmnprstvz" for v in "aeiou")
_RANGES = (
    (0x1F300, 0x1F5FF, 4),  # pictographs
    (0x1F600, 0x1F64F, 6),  # faces
    (0x1F680, 0x1F6C5, 2),  # transport
    (0x1F900, 0x1F9FF, 3),  # more faces, animals, food
    (0x2600, 0x26FF, 2),  # weather, signs: three bytes
    (0x4E00, 0x9FA5, 8),  # CJK ideographs
    (0x3041, 0x3096, 2),  # hiragana
    (0x30A1, 0x30FA, 2),  # katakana
    (0xAC00, 0xD7A3, 3),  # hangul
    (0x00C0, 0x017F, 3),  # accented Latin: two bytes
    (0x0391, 0x03C9, 2),  # Greek
    (0x0410, 0x044F, 3),  # Cyrillic
    (0x0905, 0x0939, 1),  # Devanagari
)
_WEIGHTS = tuple(weight for _, _, weight in _RANGES)


def draw_character(rng: random.Random, wide: bool = True) -> str:
    """One character outside ASCII: from emoji and CJK only when `wide`, else from any range listed above."""
    while True:
        low, high, _ = rng.choices(_RANGES[:6] if wide else _RANGES, _WEIGHTS[:6] if wide else _WEIGHTS)[0]
        character = chr(rng.randint(low, high))
        if character not in "×÷\u03a2":
            return character


def draw_word(rng: random.Random) -> str:
    """A word of the list (3 of 4), or an invented one of 2-4 syllables, so that copying cannot lean on a lexicon."""
    if rng.random() < 0.75:
        return rng.choice(WORDS)
    return "".join(rng.choices(_SYLLABLES, k=rng.randint(2, 4)))


def draw_filler_line(rng: random.Random) -> str:
    """One line of text that means nothing: words, a run of numbers or of letters, or a sum. No quotes, no newline."""
    kind = rng.random()
    if kind < 0.7:
        return " ".join(draw_word(rng) for _ in range(rng.randint(4, 12))) + "."
    if kind < 0.8:
        start = rng.randint(0, 90)
        return " ".join(str(n) for n in range(start, start + rng.randint(3, 9)))
    if kind < 0.9:
        start = rng.randint(0, 18)
        return " ".join(LETTERS[start : start + rng.randint(3, 8)])
    a, b = rng.randint(0, 99), rng.randint(0, 99)
    return f"{a} + {b} = {a + b}"
