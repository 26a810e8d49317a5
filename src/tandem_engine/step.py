"""One compute step: what to run, the run itself, and what came out. The run is a pure function, safe in a thread."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tandem_engine.attention import Span
from tandem_engine.live import Choice, LiveRequest
from tandem_engine.lora import Adapter, AdapterRows
from tandem_engine.model import Model, StepBatch
from tandem_engine.requests import Phase
from tandem_engine.sampling import Sampled, log_softmax, sample
from tandem_engine.tiles import Floats

__all__ = ["PromptPart", "SampleJob", "StepPlan", "StepResult", "build_plan", "run_step"]


@dataclass(frozen=True, slots=True)
class PromptPart:
    """Prompt positions [start, end) of `live`. `logit_index` is its first row among the logits, when it has any, and
    `vector_index` its row among the vectors.
    """

    live: LiveRequest
    start: int
    end: int
    logit_index: int
    vector_index: int | None = None

    @property
    def is_last(self) -> bool:
        return self.end == self.live.prompt_tokens


@dataclass(frozen=True, slots=True)
class SampleJob:
    """The next token of one choice, from row `logit_index` of the logits."""

    live: LiveRequest
    choice: Choice
    logit_index: int


@dataclass(frozen=True, slots=True)
class StepPlan:
    """Everything a step reads; no page in it changes hands until the step is applied."""

    batch: StepBatch
    parts: tuple[PromptPart, ...]
    jobs: tuple[SampleJob, ...]


@dataclass(frozen=True, slots=True)
class StepResult:
    """`sampled` follows the plan's jobs (None: the logits were not numbers), `input_logprobs` its parts.

    `vectors` [n, hidden] has a row per part that wants an embedding.
    """

    sampled: tuple[Sampled | None, ...]
    input_logprobs: tuple[tuple[float, ...], ...]
    vectors: Floats


def build_plan(
    running: Sequence[tuple[LiveRequest, Choice]], prompts: Sequence[tuple[LiveRequest, int, int]], page_size: int
) -> StepPlan:
    """The plan for one more token of each of `running` and the prompt positions [start, end) of each of `prompts`."""
    tokens: list[int] = []
    positions: list[int] = []
    tables: list[int] = []
    writes: list[int] = []
    spans: list[Span] = []
    logit_rows: list[int] = []
    jobs: list[SampleJob] = []
    parts: list[PromptPart] = []
    vector_rows: list[int] = []
    adapted: dict[Adapter, list[int]] = {}
    for live, choice in running:
        position = live.prompt_tokens + len(choice.output) - 1
        row = len(tokens)
        spans.append(Span(row, position, 1, choice.table))
        jobs.append(SampleJob(live, choice, len(logit_rows)))
        logit_rows.append(row)
        writes.append(row)
        tokens.append(choice.output[-1])
        positions.append(position)
        tables.append(choice.table[position // page_size])
        if live.request.adapter is not None:
            adapted.setdefault(live.request.adapter, []).append(row)
    for live, start, end in prompts:
        row = len(tokens)
        table = live.choices[0].table
        spans.append(Span(row, start, end - start, table))
        wants_vector = live.request.phase is Phase.EMBED and end == live.prompt_tokens
        parts.append(PromptPart(live, start, end, len(logit_rows), len(vector_rows) if wants_vector else None))
        if live.request.adapter is not None:
            adapted.setdefault(live.request.adapter, []).extend(range(row, row + end - start))
        if wants_vector:
            vector_rows.append(row + end - start - 1)
        elif live.request.input_logprobs:
            logit_rows.extend(range(row, row + end - start))
        elif end == live.prompt_tokens:
            logit_rows.append(row + end - start - 1)
        if end == live.prompt_tokens and live.max_tokens > 0:
            jobs.extend(SampleJob(live, choice, len(logit_rows) - 1) for choice in live.choices)
        tokens.extend(live.request.token_ids[start:end])
        positions.extend(range(start, end))
        tables.extend(table[position // page_size] for position in range(start, end))
        writes.extend(range(row + max(live.written_from - start, 0), row + end - start))
    position_array = np.array(positions, dtype=np.intp)
    write_rows = np.array(writes, dtype=np.intp)
    write_pages = np.array(tables, dtype=np.intp)[write_rows]
    write_slots = position_array[write_rows] % page_size
    batch = StepBatch(
        token_ids=np.array(tokens, dtype=np.intp),
        positions=position_array,
        spans=tuple(spans),
        write_rows=write_rows,
        write_pages=write_pages,
        write_slots=write_slots,
        new_pages=write_pages[write_slots == 0],
        logit_rows=np.array(logit_rows, dtype=np.intp),
        vector_rows=np.array(vector_rows, dtype=np.intp),
        adapters=tuple(AdapterRows(adapter, np.array(rows, dtype=np.intp)) for adapter, rows in adapted.items()),
    )
    return StepPlan(batch, tuple(parts), tuple(jobs))


def run_step(model: Model, plan: StepPlan, pages: Floats) -> StepResult:
    """Compute and sample. Reads and writes only pages of the plan; changes no request."""
    hidden = model.hidden(plan.batch, pages)
    logits = model.logits(hidden, plan.batch.logit_rows)
    best = logits.argmax(axis=-1).tolist()
    usable = [bool(row.all()) for row in np.isfinite(logits)]
    sampled: list[Sampled | None] = []
    for job in plan.jobs:
        params, choice = job.live.request.sampling, job.choice
        forbidden = choice.stop_watch.forbidden()
        if not usable[job.logit_index]:
            sampled.append(None)
        elif params.is_greedy and params.logprobs is None and not params.changes_logits and not forbidden:
            sampled.append(Sampled(best[job.logit_index]))
        else:
            sampled.append(
                sample(
                    logits[job.logit_index],
                    params,
                    seed=job.live.seed,
                    choice=choice.index,
                    position=job.live.prompt_tokens + len(choice.output),
                    prompt=job.live.request.token_ids,
                    output=choice.output,
                    forbidden=forbidden,
                )
            )
    return StepResult(
        sampled=tuple(sampled),
        input_logprobs=tuple(_input_logprobs(part, logits) for part in plan.parts),
        vectors=model.vectors(hidden, plan.batch.vector_rows),
    )


def _input_logprobs(part: PromptPart, logits: Floats) -> tuple[float, ...]:
    if not part.live.request.input_logprobs:
        return ()
    # Row i of the part predicts token start + i + 1; the last prompt position predicts the output.
    targets = part.live.request.token_ids[part.start + 1 : part.end + 1]
    rows = log_softmax(logits[part.logit_index : part.logit_index + len(targets)])
    return tuple(float(value) for value in rows[np.arange(len(targets)), list(targets)])
