"""The demo model's text: examples of its skills, and prompts of an exact token length. Pure, seeded, no torch.

Prompt forms (each is followed by the answer and then by the end token):

    count from 3 to 9:              ->  " 3 4 5 6 7 8 9"
    alphabet from c to h:           ->  " c d e f g h"
    a b c                           ->  " d e f ... z"     (a run of letters is continued to z)
    12 + 34 =                       ->  " 46"
    repeat “hello” :                ->  "hello"            (any text without “ and ”, no leading space)
    ... note “hello” ... repeat :   ->  "hello"            (with filler lines before and after the note)

The same prompt may be the user's message of a chat; the answer is then the same text.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from tandem_engine.demo.words import (
    LETTERS,
    PUNCTUATION,
    STOP_STRINGS,
    draw_character,
    draw_filler_line,
    draw_word,
)

__all__ = [
    "END",
    "Example",
    "chat_text",
    "draw_example",
    "draw_quote",
    "evaluation_sets",
    "exact_prompt",
    "long_prompt",
    "tokenizer_text",
]

END = "<|end|>"
Encode = Callable[[str], Sequence[int]]


@dataclass(frozen=True, slots=True)
class Example:
    """A prompt and the one right continuation of it; `skill` names the row of the evaluation it belongs to."""

    skill: str
    prompt: str
    answer: str


def chat_text(turns: Sequence[tuple[str, str]]) -> str:
    """What the chat template renders for (role, content) turns, up to and with the marker that asks for an answer."""
    return "".join(f"<|{role}|>{content}{END}" for role, content in turns) + "<|assistant|>"


def count_example(start: int, stop: int) -> Example:
    return Example("count", f"count from {start} to {stop}:", "".join(f" {n}" for n in range(start, stop + 1)))


def alphabet_example(first: int, last: int) -> Example:
    answer = "".join(f" {letter}" for letter in LETTERS[first : last + 1])
    return Example("alphabet", f"alphabet from {LETTERS[first]} to {LETTERS[last]}:", answer)


def letters_example(first: int, length: int) -> Example:
    run = " ".join(LETTERS[first : first + length])
    return Example("letters", run, "".join(f" {letter}" for letter in LETTERS[first + length :]))


def sum_example(a: int, b: int) -> Example:
    return Example("sum", f"{a} + {b} =", f" {a + b}")


def repeat_example(quote: str, skill: str = "repeat") -> Example:
    return Example(skill, f"repeat “{quote}” :", quote)


def held_out(a: int, b: int) -> bool:
    """Whether the sum a + b is kept for evaluation: 1 in 25 of all pairs, chosen without a random number."""
    return (a * 7 + b * 13) % 25 == 3


def draw_quote(rng: random.Random, skill: str = "any") -> str:
    """Text to be copied: never empty, never with a delimiter. `skill`: "words", "wide" (emoji, CJK) or "any"."""
    kind = {"words": 0.0, "wide": 0.5}.get(skill, rng.random())
    longer = rng.random() < 0.15
    if kind < 0.25:
        return " ".join(draw_word(rng) for _ in range(rng.randint(1, 16 if longer else 5)))
    if 0.3 <= kind < 0.6:
        return "".join(draw_character(rng, skill == "wide") for _ in range(rng.randint(1, 20 if longer else 6)))
    if kind < 0.7:
        return "".join(rng.choices(LETTERS, k=rng.randint(1, 30 if longer else 10)))
    if kind < 0.8:
        alphabet = LETTERS + LETTERS.upper() + "0123456789" * 2 + PUNCTUATION + "  \n"
        return "".join(rng.choices(alphabet, k=rng.randint(1, 24 if longer else 10)))
    pieces: list[str] = []
    for _ in range(rng.randint(1, 10 if longer else 4)):
        pick = rng.random()
        if pick < 0.35:
            pieces.append(draw_word(rng))
        elif pick < 0.5:
            pieces.append(rng.choice(STOP_STRINGS))
        elif pick < 0.75:
            pieces.append(draw_character(rng, wide=False))
        elif pick < 0.85:
            pieces.append(draw_word(rng).capitalize())
        else:
            pieces.append(str(rng.randint(0, 9999)))
    return rng.choice(("", " ", " ", "\n", ", ")).join(pieces)


def draw_count(rng: random.Random) -> Example:
    """A count of 2 to 12 numbers below 100. Longer ones are trained too, but where they stop is not learned well."""
    start = rng.randint(0, 98)
    return count_example(start, min(99, start + rng.randint(1, 11)))


def draw_example(rng: random.Random, repeats: float, held: bool = False) -> Example:
    """One short example in its plain form; `repeats` is the share of copying. Held-out sums appear only when `held`."""
    kind = rng.random()
    if kind < repeats:
        return repeat_example(draw_quote(rng))
    kind = rng.random()
    if kind < 0.55:
        while True:
            a, b = rng.randint(0, 99), rng.randint(0, 99)
            if held_out(a, b) == held:
                return sum_example(a, b)
    if kind < 0.85:
        start = rng.randint(0, 98)
        longest = 99 - start if rng.random() < 0.2 else min(99 - start, 15)
        return count_example(start, start + rng.randint(1, longest))
    first = rng.randint(0, 24)
    if kind < 0.93:
        return alphabet_example(first, rng.randint(first + 1, 25))
    return letters_example(first, rng.randint(1, 25 - first))


def with_chat(rng: random.Random, example: Example) -> Example:
    """The same example as the user's message of a chat, now and then after a system text or an earlier turn."""
    turns: list[tuple[str, str]] = []
    if rng.random() < 0.25:
        turns.append(("system", draw_filler_line(rng)))
    if rng.random() < 0.2:
        earlier = draw_example(rng, repeats=0.0)
        turns += [("user", earlier.prompt), ("assistant", earlier.answer)]
    turns.append(("user", example.prompt))
    return Example(example.skill, chat_text(turns), example.answer)


def tokenizer_text(seed: int) -> Iterator[str]:
    """Lines to learn the byte-pair merges from: the prompt forms, words, letters; few wide characters on purpose."""
    rng = random.Random(f"tokenizer-{seed}")
    for _ in range(20_000):
        kind = rng.random()
        if kind < 0.35:
            yield draw_filler_line(rng)
        elif kind < 0.5:
            yield "repeat "
            yield " :"
            yield rng.choice(("\nnote ", "\nrepeat :", "repeat :"))
        elif kind < 0.6:
            yield " " + " ".join(LETTERS)
        elif kind < 0.65:
            yield draw_character(rng)
        else:
            yield draw_example(rng, repeats=0.0).prompt


def evaluation_sets(seed: int, each: int) -> dict[str, list[Example]]:
    """Examples per skill, drawn apart from training: unseen sums, fresh quotes; `-chat` rows hold the chat form."""
    rng = random.Random(f"evaluation-{seed}")
    sums = [sum_example(a, b) for a in range(100) for b in range(100) if held_out(a, b)]
    sets = {
        "sum": rng.sample(sums, min(2 * each, len(sums))),
        "count": [draw_count(rng) for _ in range(each)],
        "alphabet": [alphabet_example(a, b) for a in range(0, 24, 3) for b in range(a + 1, 26, 3)],
        "letters": [letters_example(first, n) for first in range(0, 20, 3) for n in range(1, 6)],
        "repeat-words": [repeat_example(draw_quote(rng, "words")) for _ in range(each)],
        "repeat-letters": [repeat_example("".join(rng.choices(LETTERS, k=rng.randint(1, 16)))) for _ in range(each)],
        "repeat-wide": [repeat_example(draw_quote(rng, "wide")) for _ in range(each)],
        "repeat-any": [repeat_example(draw_quote(rng)) for _ in range(each)],
    }
    for skill in ("sum", "count", "repeat-words", "repeat-wide"):
        sets[f"{skill}-chat"] = [with_chat(rng, example) for example in sets[skill][: each // 2]]
    return sets


def exact_prompt(total_tokens: int, encode: Encode, seed: int = 0) -> Example:
    """A short prompt of exactly `total_tokens` (1-200) by `encode`: a run of letters up to 8 tokens, else a repeat.

    ValueError when no such prompt is found, which means that `encode` is not this model's tokenizer.
    """
    if total_tokens <= 8:
        candidates = iter([letters_example(0, total_tokens)])
    else:
        candidates = _growing_quotes(random.Random(f"exact-{seed}"), total_tokens)
    for example in candidates:
        if len(encode(example.prompt)) == total_tokens:
            return example
    raise ValueError(f"no prompt of exactly {total_tokens} tokens")


def _growing_quotes(rng: random.Random, total_tokens: int) -> Iterator[Example]:
    for _ in range(400):
        quote = draw_word(rng)
        while len(quote) <= 4 * total_tokens:
            yield repeat_example(quote)
            quote += rng.choice((" " + draw_word(rng), rng.choice(LETTERS)))


def long_prompt(total_tokens: int, quote_at: int, quote: str, encode: Encode, seed: int = 0) -> Example:
    """Filler with a note whose quote starts at about token `quote_at` (within 4, not before 3); the question ends it.

    The prompt has exactly `total_tokens` tokens. ValueError when the note and the question do not fit.
    """
    rng = random.Random(f"long-{seed}")
    note, question = f"\nnote “{quote}”", "\nrepeat :"
    opening = len(encode(note)) - len(encode(f"{quote}”"))
    head = _fill(rng, "", quote_at - opening, encode)
    missing = quote_at - opening - len(encode(head))
    head += min(_paddings(rng, missing), key=lambda padding: abs(missing - len(encode(padding)))) + note
    body_tokens = total_tokens - len(encode(question))
    if len(encode(head)) > body_tokens:
        raise ValueError(f"a note at {quote_at} and its question do not fit into {total_tokens} tokens")
    body = _fill(rng, head, body_tokens, encode)
    for padding in _paddings(rng, body_tokens - len(encode(body))):
        prompt = body + padding + question
        if len(encode(prompt)) == total_tokens:
            return Example("long", prompt, quote)
    raise ValueError(f"no filler makes exactly {total_tokens} tokens")


def _fill(rng: random.Random, text: str, upto_tokens: int, encode: Encode) -> str:
    """`text` with filler lines added while it stays below `upto_tokens`; ends less than one line short of it."""
    while True:
        longer = f"{text}\n{draw_filler_line(rng)}" if text else draw_filler_line(rng)
        if len(encode(longer)) >= upto_tokens:
            return text
        text = longer


def _paddings(rng: random.Random, missing: int) -> list[str]:
    """Short texts of about `missing` tokens, one of which has exactly that many whatever the text before them."""
    if missing <= 0:
        return [""]
    letters = ["\n" + " ".join(rng.choices(LETTERS, k=max(1, missing - drop))) for drop in range(3)]
    return ["", *letters, *(" a" * count for count in range(1, 4))]
