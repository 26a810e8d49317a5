"""Greedy answers of the demo model in torch, and the table of how many are right. Needs the extra `model`."""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer

from tandem_engine.demo import MODEL_DIR, PROMPTS, corpus, torch_llama
from tandem_engine.demo.corpus import Example
from tandem_engine.demo.torch_llama import Weights
from tandem_engine.demo.vocabulary import END_ID

__all__ = ["long_examples", "margins", "report", "right"]

LEAST_MARGIN = 1e-3
"""Engines differ by about 1e-5 in a score; a lead above this is the same answer everywhere."""


def margins(weights: Weights, cfg: dict[str, Any], prompt: Sequence[int], answer: Sequence[int]) -> list[float]:
    """Per answer token and the end token: its score minus the best other score. Greedy says the answer if all > 0."""
    wanted = [*answer, END_ID]
    ids = torch.tensor([[*prompt, *answer]])
    with torch.no_grad():
        states = torch_llama.hidden_states(weights, cfg, ids, torch_llama.rotary_tables(cfg, ids.shape[1]))
        scores = torch_llama.logits(weights, states[0, len(prompt) - 1 :])
    chosen = scores.gather(1, torch.tensor(wanted)[:, None])[:, 0]
    others = scores.scatter(1, torch.tensor(wanted)[:, None], -torch.inf).max(dim=1).values
    return [float(margin) for margin in chosen - others]


def right(weights: Weights, cfg: dict[str, Any], tokenizer: Tokenizer, example: Example) -> bool:
    """Whether greedy decoding gives exactly the answer and then the end token."""
    prompt = tokenizer.encode(example.prompt).ids
    least: float = min(margins(weights, cfg, prompt, tokenizer.encode(example.answer).ids))
    return least > 0


def long_examples(tokenizer: Tokenizer, seed: int, count: int, total_tokens: int = 2000) -> list[Example]:
    """Prompts of exactly `total_tokens` with the note at 100, at 1,900 and between."""
    rng = random.Random(f"long-evaluation-{seed}")
    last = total_tokens - 100
    places = [100, last] * (count // 4) + [rng.randint(20, last) for _ in range(count - 2 * (count // 4))]
    skills = ("words", "wide", "any")
    examples = []
    for index, place in enumerate(places):
        quote = corpus.draw_quote(rng, skills[index % 3])
        while len(tokenizer.encode(quote).ids) > 60:
            quote = corpus.draw_quote(rng, skills[index % 3])
        examples.append(
            corpus.long_prompt(total_tokens, place, quote, lambda text: tokenizer.encode(text).ids, seed=index)
        )
    return examples


def report(weights: Weights, cfg: dict[str, Any], tokenizer: Tokenizer, seed: int, each: int, long_prompts: int) -> str:
    """One line per skill: right / asked, and the first wrong prompt."""
    sets = corpus.evaluation_sets(seed, each)
    sets["long-500"] = long_examples(tokenizer, seed, long_prompts, total_tokens=500)
    sets["long-2000"] = long_examples(tokenizer, seed, long_prompts)
    lines = []
    for skill, examples in sets.items():
        wrong = [example for example in examples if not right(weights, cfg, tokenizer, example)]
        shown = f"  first wrong: {wrong[0].answer!r}" if wrong else ""
        lines.append(f"{skill:16} {len(examples) - len(wrong)}/{len(examples)}{shown}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?", default=MODEL_DIR)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--each", type=int, default=200, help="examples per skill")
    parser.add_argument("--long", type=int, default=40, help="long prompts")
    given = parser.parse_args()
    weights = load_file(given.folder / "model.safetensors")
    cfg = json.loads((given.folder / "config.json").read_text(encoding="utf-8"))
    tokenizer = Tokenizer.from_file(str(given.folder / "tokenizer.json"))
    failed = 0
    for prompt, answer in PROMPTS:
        least = min(margins(weights, cfg, tokenizer.encode(prompt).ids, tokenizer.encode(answer).ids))
        failed += least <= LEAST_MARGIN
        print(f"{'ok   ' if least > LEAST_MARGIN else 'WRONG'} {least:8.3f} {prompt!r}")
    print(report(weights, cfg, tokenizer, given.seed, given.each, given.long))
    raise SystemExit(1 if failed else 0)


if __name__ == "__main__":
    main()
