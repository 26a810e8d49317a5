"""Continuous batching for one rank: who gets pages, what the next step computes, who has ended.

Synchronous and free of clocks: the engine's loop calls it between steps and passes the time. Admission is first come,
first served and reserves every page a request can ever need, so nothing running is ever preempted.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator

from tandem_engine.accounts import RankAccounts
from tandem_engine.admission import give_pages, start_behind
from tandem_engine.config import ModelConfig
from tandem_engine.kv_cache import PagedKvCache, PageLayout
from tandem_engine.kv_events import KvEventLog
from tandem_engine.lifecycle import RequestInput, RequestState
from tandem_engine.live import Choice, LiveRequest
from tandem_engine.publishing import publish_generated, publish_prompt
from tandem_engine.requests import HeldPages, Phase, RankLedger, RankLoad
from tandem_engine.sampling import Sampled
from tandem_engine.settings import EngineSettings
from tandem_engine.step import PromptPart, StepPlan, StepResult, build_plan
from tandem_engine.tiles import Floats

__all__ = ["RankScheduler"]

_S, _I = RequestState, RequestInput

_NOT_NUMBERS = "logits are not numbers: a KV page was lost or overwritten"


class RankScheduler:
    """One rank's requests and pages."""

    def __init__(
        self,
        rank: int,
        config: ModelConfig,
        settings: EngineSettings,
        *,
        hold_ids: Iterator[int],
        on_token: Callable[[str, int], None],
    ) -> None:
        """`hold_ids` are unique over the engine's ranks; `on_token` hears of each token before it is emitted."""
        self.rank = rank
        layout = PageLayout(config.num_layers, config.num_kv_heads, settings.page_size, config.head_dim)
        self.cache = PagedKvCache(layout, settings.num_pages, KvEventLog(settings.kv_event_history))
        self.accounts = RankAccounts(rank)
        self._settings = settings
        self._hold_ids = hold_ids
        self._on_token = on_token
        self._waiting: deque[LiveRequest] = deque()
        self._admitted: list[LiveRequest] = []  # TRANSFER, COMPUTING, RUNNING, in order of admission
        self._holds: dict[int, LiveRequest] = {}
        self._lingering: list[LiveRequest] = []

    # ---- what happens to requests -----------------------------------------------------------------------------------

    def add(self, live: LiveRequest) -> None:
        """Queue a request; `admit` gives it pages."""
        self._waiting.append(live)

    def admit(self) -> None:
        """Give pages and slots to waiting requests, in order, until one does not fit."""
        while self._waiting:
            live = self._waiting[0]
            if self._slots_used() + len(live.choices) > self._settings.max_running:
                return
            if not give_pages(self.cache, live, self.accounts):
                return
            self._waiting.popleft()
            self._admitted.append(live)
            if live.is_decode:
                live.step(_I.LANDING_ALLOCATED)
                live.sink.landed(live.shared_pages)
            else:
                live.step(_I.ADMITTED)

    def kv_arrived(self, live: LiveRequest, n_pages: int) -> None:
        """Decode: the first `n_pages` landing pages are written; compute goes on behind them. Too late is no error."""
        if live.state is _S.DONE or live.step(_I.KV_ARRIVED) is not _S.COMPUTING:
            return
        live.arrived_pages = min(max(n_pages, 0), live.full_blocks)
        start_behind(live, live.arrived_pages)

    def abort(self, live: LiveRequest, reason: str, *, free_at_once: bool) -> None:
        """Answer "abort". Landing pages under a writer stay reserved until it stops, unless `free_at_once`."""
        state = live.step(_I.ABORT)
        self.accounts.aborted += 1
        self._end_choices(live, "abort", reason)
        if state is _S.LINGERING and free_at_once:
            state = live.step(_I.TRANSFER_STOPPED)
        if state is _S.LINGERING:
            self._admitted.remove(live)
            self._lingering.append(live)
            self._release_private(live)
        else:
            self._forget(live)
        live.sink.ended(reason)

    def kv_failed(self, live: LiveRequest, reason: str) -> None:
        """Decode: the transfer failed and its writer has stopped. Too late is no error."""
        if live.state in (_S.TRANSFER, _S.LINGERING):
            self.fail(live, reason)

    def end_all(self, finish: str, reason: str) -> None:
        """The engine stops: answer everything with `finish`, give every page back."""
        for live in (*self._waiting, *self._admitted, *self._lingering):
            self._end_choices(live, finish, reason)
            self.fail(live, reason)
        for hold_id in tuple(self._holds):
            self.release(hold_id)

    def fail(self, live: LiveRequest, reason: str) -> None:
        """Answer "error" and give everything back at once."""
        live.step(_I.FAILED)
        self._end_choices(live, "error", reason)
        self._forget(live)
        live.sink.ended(reason)

    def transfer_stopped(self, live: LiveRequest) -> None:
        """The writer of this decode's landing pages writes no more. No error when it never began, or is done with."""
        if live.state not in (_S.TRANSFER, _S.LINGERING):
            return
        live.step(_I.TRANSFER_STOPPED)
        self._end_choices(live, "error", "the KV transfer stopped before all pages arrived")
        self._forget(live)
        live.sink.ended("the KV transfer stopped")

    def release(self, hold_id: int) -> bool:
        """Give a prefill's pages back. False when that hold has ended already."""
        live = self._holds.get(hold_id)
        if live is None:
            return False
        live.step(_I.RELEASED)
        self._forget(live)
        return True

    def expire(self, now_s: float) -> None:
        """Release holds whose lease has ended."""
        due = [hold_id for hold_id, live in self._holds.items() if live.hold and live.hold.deadline_s <= now_s]
        for hold_id in due:
            self.release(hold_id)

    def next_deadline_s(self) -> float | None:
        """When `expire` has something to do next."""
        return min((live.hold.deadline_s for live in self._holds.values() if live.hold), default=None)

    @property
    def queue_length(self) -> int:
        """Requests here, waiting or admitted."""
        return len(self._waiting) + len(self._admitted)

    @property
    def has_work(self) -> bool:
        """True when `plan` would not be None."""
        return any(live.state in (_S.COMPUTING, _S.RUNNING) for live in self._admitted)

    # ---- steps ------------------------------------------------------------------------------------------------------

    def plan(self) -> StepPlan | None:
        """The next step, or None when nothing can be computed. One plan at a time."""
        running = [
            (live, choice)
            for live in self._admitted
            if live.state is _S.RUNNING
            for choice in live.choices
            if not choice.finished
        ]
        prompts = []
        budget = self._settings.prefill_chunk
        for live in self._admitted:
            if live.state is _S.COMPUTING and budget > 0:
                end = min(live.prompt_tokens, live.computed + budget)
                budget -= end - live.computed
                prompts.append((live, live.computed, end))
        if not running and not prompts:
            return None
        return build_plan(running, prompts, self._settings.page_size)

    def apply(self, plan: StepPlan, result: StepResult, now_s: float) -> None:
        """Take a step's results: tokens out, blocks published, ended requests' pages back."""
        for part, logprobs in zip(plan.parts, result.input_logprobs, strict=True):
            self._advance(part, logprobs, result.vectors)
        tokens = 0
        for job, sampled in zip(plan.jobs, result.sampled, strict=True):
            live, choice = job.live, job.choice
            if live.state is not _S.RUNNING:
                continue  # another choice's not-a-number has ended the whole request
            if sampled is None:
                self.fail(live, _NOT_NUMBERS)
                continue
            tokens += 1
            publish_generated(self.cache, live, choice)
            self._take_token(live, choice, sampled)
        self.accounts.step_done(now_s, tokens)
        touched = [part.live for part in plan.parts] + [job.live for job in plan.jobs]
        for live in dict.fromkeys(touched):
            if live.state is _S.RUNNING:
                publish_prompt(self.cache, live)
                if all(choice.finished for choice in live.choices):
                    self._complete(live, now_s)
            elif live.state is _S.COMPUTING and not live.is_decode:
                publish_prompt(self.cache, live)

    # ---- what is in hand --------------------------------------------------------------------------------------------

    def ledger(self) -> RankLedger:
        """Counts now and totals since start."""
        everything = [*self._waiting, *self._admitted, *self._holds.values(), *self._lingering]
        in_transfer = sum(1 for live in self._admitted if live.state is _S.TRANSFER)
        return self.accounts.ledger(
            self.cache,
            running=len(self._admitted) - in_transfer,
            waiting=len(self._waiting) + in_transfer,
            rooms=len({live.request.room for live in everything if live.is_open_room}),
        )

    def load(self, now_s: float) -> RankLoad:
        """Load now, for GetLoads."""
        return self.accounts.load(now_s, self.ledger(), self._settings.page_size, self._settings.max_running)

    # ---- inside -----------------------------------------------------------------------------------------------------

    def _slots_used(self) -> int:
        return sum(1 for live in self._admitted for choice in live.choices if not choice.finished)

    def _advance(self, part: PromptPart, logprobs: tuple[float, ...], vectors: Floats) -> None:
        live, page_size = part.live, self._settings.page_size
        live.computed = part.end
        live.input_logprobs.extend(logprobs)
        self.accounts.prompt_tokens += part.end - part.start
        if live.is_decode:
            self.accounts.recomputed_blocks += part.end // page_size - max(part.start, live.written_from) // page_size
        if not part.is_last:
            return
        live.step(_I.PROMPT_DONE)
        if live.prompt_tokens % page_size:
            for choice in live.choices[1:]:
                self.cache.copy_page(live.choices[0].private_pages[0], choice.private_pages[0])
        if part.vector_index is not None:
            live.embedding = tuple(vectors[part.vector_index].tolist())
        if not all(map(math.isfinite, live.embedding)):
            self.fail(live, _NOT_NUMBERS)
        elif live.max_tokens == 0:
            for choice in live.choices:
                live.emit_end(choice, "length")

    def _take_token(self, live: LiveRequest, choice: Choice, sampled: Sampled) -> None:
        choice.output.append(sampled.token_id)
        self._on_token(live.request.request_id, len(choice.output))
        stop = choice.stop_watch.after(sampled.token_id)
        live.emit_token(choice, sampled, stop.finish if stop else None, stop.matched if stop else None)
        if stop:
            choice.finished = True
            self.cache.release(choice.private_pages)
            choice.private_pages = ()

    def _complete(self, live: LiveRequest, now_s: float) -> None:
        if live.request.phase is not Phase.PREFILL:
            live.step(_I.COMPLETED)
            self._forget(live)
        else:
            live.step(_I.HELD)
            self._release_private(live)
            self._admitted.remove(live)
            live.hold = HeldPages(
                hold_id=next(self._hold_ids),
                request_id=live.request.request_id,
                rank=self.rank,
                pages=live.shared_pages,
                num_tokens=live.prompt_tokens,
                deadline_s=now_s + self._settings.kv_lease_s,
                content=live.content,
            )
            self._holds[live.hold.hold_id] = live
            live.sink.held(live.hold)
        live.sink.ended("completed")

    def _end_choices(self, live: LiveRequest, finish: str, error: str | None = None) -> None:
        for choice in live.choices:
            if not choice.finished:
                live.emit_end(choice, finish, error)

    def _release_private(self, live: LiveRequest) -> None:
        for choice in live.choices:
            self.cache.release(choice.private_pages)
            choice.private_pages = ()

    def _forget(self, live: LiveRequest) -> None:
        """Take `live` off every list and give its pages back."""
        for queue in (self._waiting, self._admitted, self._lingering):
            if live in queue:
                queue.remove(live)
        if live.hold is not None:
            self._holds.pop(live.hold.hold_id, None)
        self._release_private(live)
        self.cache.release(live.shared_pages)
        live.shared_pages = ()
