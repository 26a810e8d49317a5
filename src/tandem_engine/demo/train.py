"""Trains the demo model and writes its Hugging Face folder: `python -m tandem_engine.demo.train --out DIR`.

Needs the extra `model` (torch on CPU, tokenizers, safetensors). Same seed, same torch, same threads: same weights.
The schedule is constant and then falls to zero; checkpoints are written on the way, so an early stop leaves a folder.

The committed weights are the output of this command as it stands (4,600 updates, seed 0, 2 threads; 25 minutes beside
other work). `python -m tandem_engine.demo.evaluate --seed 7` gave: sums held out 199/200, counts of up to 12 numbers
88/100, alphabet 44/44, repeats of words 99/100, of letters 98/100, of emoji and CJK 96/100, of anything 98/100, and of
a note in 2,000 tokens 20/24.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional

from tandem_engine.demo import corpus, torch_llama
from tandem_engine.demo.evaluate import report
from tandem_engine.demo.torch_llama import Weights
from tandem_engine.demo.vocabulary import ADDED_TOKENS, END_ID, VOCAB_SIZE, build_tokenizer, write_side_files
from tandem_engine.demo.words import draw_filler_line

LONGEST = 2144
"""Longest training row in tokens: a prompt of 2,048 and its answer."""
SHORT, MOST_ROWS = 15, 96
"""Rows of at most SHORT tokens are short; a group holds at most MOST_ROWS rows."""

_ROLES = tuple(ADDED_TOKENS.index(token) for token in ("<|system|>", "<|user|>", "<|assistant|>"))


@dataclass(frozen=True, slots=True)
class Row:
    """One training row: the loss is taken on the last `answer` tokens, which the ones before them determine."""

    ids: list[int]
    answer: int


@dataclass(frozen=True, slots=True)
class Stage:
    """What is drawn during a part of training: shares of rows, and how long the filler may get."""

    repeats: float
    long_share: float
    longest: int


def stage_at(progress: float) -> Stage:
    """The curriculum: short copies first (they form the induction heads), then notes in longer and longer filler."""
    if progress < 0.2:
        return Stage(repeats=0.6, long_share=0.0, longest=64)
    if progress < 0.35:
        return Stage(repeats=0.5, long_share=0.15, longest=200)
    if progress < 0.55:
        return Stage(repeats=0.5, long_share=0.15, longest=600)
    return Stage(repeats=0.45, long_share=0.12, longest=LONGEST - 110)


class RowSource:
    """Draws rows and groups rows of like length into batches of at most `budget` tokens (padding included)."""

    def __init__(self, tokenizer: Tokenizer, seed: int, budget: int) -> None:
        self._tokenizer = tokenizer
        self._rng = random.Random(f"rows-{seed}")
        self._budget = budget
        lines = "\n".join(draw_filler_line(self._rng) for _ in range(30_000))
        self._filler: list[int] = tokenizer.encode(lines).ids

    def updates(self, stage: Stage) -> list[list[list[Row]]]:
        """A few dozen shuffled updates, each a group of short rows (sums above all) and a group of longer rows.

        Without the pairing, short rows fill few groups and so get few updates: sums are then not learned.
        """
        rows = sorted(self._rows(stage, 3000), key=lambda row: len(row.ids))
        middle = sum(len(row.ids) <= SHORT for row in rows)
        short, long = self._groups(rows[:middle]), self._groups(rows[middle:])
        return [[self._rng.choice(short), group] for group in long]

    def _groups(self, rows: list[Row]) -> list[list[Row]]:
        groups: list[list[Row]] = [[]]
        for row in rows:
            full = (len(groups[-1]) + 1) * len(row.ids) > self._budget or len(groups[-1]) >= MOST_ROWS
            if full and groups[-1]:
                groups.append([])
            groups[-1].append(row)
        self._rng.shuffle(groups)
        return groups

    def _rows(self, stage: Stage, count: int) -> Iterator[Row]:
        rng = self._rng
        examples = []
        for _ in range(count):
            example = corpus.draw_example(rng, stage.repeats)
            examples.append(corpus.with_chat(rng, example) if rng.random() < 0.5 else example)
        prompts = self._tokenizer.encode_batch_fast([example.prompt for example in examples])
        answers = self._tokenizer.encode_batch_fast([example.answer for example in examples])
        for example, prompt, answer in zip(examples, prompts, answers, strict=True):
            ids, quote = prompt.ids, answer.ids
            if example.skill == "repeat":
                opening = ids.index(ADDED_TOKENS.index("“"))
                closing = ids.index(ADDED_TOKENS.index("”"), opening)
                if rng.random() < 0.3:  # any token may follow any other: copying must not lean on likely text
                    quote = [rng.randrange(len(ADDED_TOKENS), VOCAB_SIZE) for _ in range(rng.randint(1, 24))]
                    ids = ids[: opening + 1] + quote + ids[closing:]
                if rng.random() < stage.long_share:
                    chat = ids[0] in _ROLES
                    ids = self._in_filler(quote, stage.longest)
                    ids = [_ROLES[1], *ids, END_ID, _ROLES[2]] if chat else ids
            yield Row([*ids, *quote, END_ID], len(quote) + 1)

    def _in_filler(self, quote: list[int], longest: int) -> list[int]:
        """A note with `quote` somewhere in filler, log-uniform in length up to `longest` tokens, and the question."""
        total = int(16 * (longest / 16) ** self._rng.random())
        before = self._rng.randint(0, total)
        note = self._tokenizer.encode("\nnote “”").ids
        question = self._tokenizer.encode("\nrepeat :").ids
        return [*self._slice(before), *note[:-1], *quote, note[-1], *self._slice(total - before), *question]

    def _slice(self, length: int) -> list[int]:
        start = self._rng.randrange(len(self._filler) - length)
        return self._filler[start : start + length]


def batch_loss(weights: Weights, cfg: dict[str, Any], rows: list[Row], tables: tuple[Tensor, Tensor]) -> Tensor:
    """Cross entropy on answers, of the rows of one group.

    A row weighs as the square root of its length, so long counts do not drown sums; the end token weighs 1, for where
    a count stops is one decision in hundreds of tokens.
    """
    width = max(len(row.ids) for row in rows) - 1
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    at, targets, weighing = [], [], []
    for index, row in enumerate(rows):
        ids[index, : len(row.ids) - 1] = torch.tensor(row.ids[:-1])
        first = len(row.ids) - 1 - row.answer
        at += [index * width + first + step for step in range(row.answer)]
        targets += row.ids[-row.answer :]
        weighing += [row.answer**-0.5] * (row.answer - 1) + [1.0]
    states = torch_llama.hidden_states(weights, cfg, ids, tables).flatten(0, 1)[torch.tensor(at)]
    losses = functional.cross_entropy(torch_llama.logits(weights, states), torch.tensor(targets), reduction="none")
    scale = torch.tensor(weighing)
    return (losses * scale).sum() / scale.sum()


def learning_rate(step: int, steps: int, peak: float) -> float:
    """100 steps of warm-up, constant, and a linear fall to zero over the last 30 %."""
    return peak * min(1.0, (step + 1) / 100, (steps - step) / (0.3 * steps))


def train(out: Path, steps: int, seed: int, peak: float, budget: int, start: Path | None) -> None:
    """Trains for `steps` updates from fresh weights, or from the folder `start`, and writes `out`."""
    torch.manual_seed(seed)
    if start is None:
        tokenizer = build_tokenizer(corpus.tokenizer_text(seed))
    else:
        tokenizer = Tokenizer.from_file(str(start / "tokenizer.json"))
    cfg = torch_llama.config(VOCAB_SIZE)
    write_side_files(out, cfg, tokenizer)
    weights = torch_llama.initial_weights(cfg, torch.Generator().manual_seed(seed))
    if start is not None:
        weights = load_file(start / "model.safetensors")
    for tensor in weights.values():
        tensor.requires_grad_(True)
    matrices = [tensor for tensor in weights.values() if tensor.ndim == 2]
    vectors = [tensor for tensor in weights.values() if tensor.ndim == 1]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.05}, {"params": vectors, "weight_decay": 0.0}],
        lr=peak,
        betas=(0.9, 0.98),
    )
    tables = torch_llama.rotary_tables(cfg, LONGEST + 512)
    source = RowSource(tokenizer, seed if start is None else seed + 1, budget)
    pending: list[list[list[Row]]] = []
    began_s, seen, smooth = time.monotonic(), 0, 0.0
    for step in range(steps):
        if not pending:
            pending = source.updates(stage_at(1.0 if start is not None else step / steps))
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps, peak)
        optimizer.zero_grad(set_to_none=True)
        total = 0.0
        for rows in pending.pop():
            loss = batch_loss(weights, cfg, rows, tables) / 2
            loss.backward()
            total += loss.item()
            seen += sum(len(row.ids) for row in rows)
        torch.nn.utils.clip_grad_norm_(list(weights.values()), 1.0)
        optimizer.step()
        smooth = total if step == 0 else 0.98 * smooth + 0.02 * total
        if step % 100 == 99:
            elapsed_s = time.monotonic() - began_s
            print(f"step {step + 1} loss {smooth:.4f} {seen / elapsed_s:.0f} tokens/s {elapsed_s:.0f} s", flush=True)
        if step % 500 == 499 or step == steps - 1:
            save(weights, out)
        if step % 1000 == 999 and step != steps - 1:
            print(report(weights, cfg, tokenizer, seed, each=24, long_prompts=4), flush=True)
    print(report(weights, cfg, tokenizer, seed, each=100, long_prompts=30), flush=True)


def save(weights: Weights, out: Path) -> None:
    """Replaces the folder's weights in one step, so that a reader never sees half a file."""
    partial = out / "model.safetensors.partial"
    save_file({name: tensor.detach().contiguous() for name, tensor in weights.items()}, partial, {"format": "pt"})
    partial.chmod(0o644)
    partial.replace(out / "model.safetensors")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="the folder to write")
    parser.add_argument("--steps", type=int, default=4600, help="updates (default 4600)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--peak", type=float, default=2e-3, help="highest learning rate")
    parser.add_argument("--budget", type=int, default=4096, help="tokens per update, padding included")
    parser.add_argument("--threads", type=int, default=2, help="torch threads")
    parser.add_argument("--start", type=Path, default=None, help="go on from this folder's weights")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    train(given.out, given.steps, given.seed, given.peak, given.budget, given.start)


if __name__ == "__main__":
    main()
