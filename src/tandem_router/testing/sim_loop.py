"""SimLoop: an asyncio event loop whose time is a number and whose order of play is drawn from a seed.

Time stands still while anything is ready and then jumps to the next timer, so an hour of timeouts takes milliseconds.
There is no selector, no socket and no thread: whatever needs one raises instead of making the run unrepeatable.

The order of handles. asyncio runs its ready queue in rounds: what is scheduled during a round runs in a later one.
SimLoop keeps the rounds (so `await asyncio.sleep(0)` still lets all others take a turn) and, with `Order.SHUFFLED`,
shuffles each round. That is legal for everything asyncio leaves open, and only for that:

- steps of different tasks: no document promises their order (eager tasks, uvloop and Python versions differ), and a
  task has at most one step pending, so nothing inside one task is reordered;
- timers due at one instant: "the order in which they are called is undefined" (loop.call_later);
- callbacks given to `call_soon` keep their order among themselves: asyncio promises first in, first out.

In production, order within an instant depends on which socket the kernel reports first; a bug that needs a lucky
order is found here by some seed and found again by the same seed. `Order.FIFO` is the order of asyncio itself, for
bisecting.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import enum
import heapq
import random
import sys
import threading
import weakref
from asyncio import events
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

from tandem_router.testing.sim_errors import (
    SimBudgetExceeded,
    SimDeadlock,
    SimError,
    SimFault,
    SimForbidden,
    SimLeak,
)
from tandem_router.testing.sim_tasks import (
    close_generator,
    exception_of,
    is_task_step,
    is_unretrieved,
    name_of,
    where,
)

__all__ = ["Order", "SimLoop"]

T = TypeVar("T")
ExceptionCallback = Callable[[asyncio.AbstractEventLoop, dict[str, Any]], object]


class Order(enum.StrEnum):
    """In which order the handles of one round run."""

    SHUFFLED = "SHUFFLED"
    FIFO = "FIFO"


if TYPE_CHECKING:
    # typeshed calls the abstract loop's methods abstract; at run time those that are not overridden here raise
    # NotImplementedError, which is what a socket, a signal or a subprocess deserves.
    _Loop = asyncio.BaseEventLoop
else:
    _Loop = asyncio.AbstractEventLoop


class SimLoop(_Loop):
    """One run, one loop: make it, call `run` once, throw it away. The same seed gives the same run."""

    def __init__(
        self,
        seed: int = 0,
        *,
        order: Order = Order.SHUFFLED,
        start_s: float = 1000.0,
        max_steps: int = 5_000_000,
        max_virtual_s: float = 86_400.0,
    ) -> None:
        """Args:
        seed: of the order within rounds, nothing else.
        start_s: what `time()` says first.
        max_steps: handles run before SimBudgetExceeded; ends runs in which tasks wake each other for ever.
        max_virtual_s: seconds after start_s before SimBudgetExceeded; ends runs in which only a periodic task lives.
        """
        self.seed = seed
        self.steps = 0
        """Handles run so far; two runs with equal traces but unequal steps are not equal."""
        self._rng = random.Random(seed)
        self._order = order
        self._now_s = start_s
        self._end_s = start_s + max_virtual_s
        self._max_steps = max_steps
        self._ready: list[tuple[asyncio.Handle, bool]] = []
        self._timers: list[tuple[float, int, asyncio.TimerHandle]] = []
        self._cancelled_timers = 0
        self._scheduled = 0
        self._tasks: list[asyncio.Task[Any]] = []
        self._tasks_made = 0
        self._generators: weakref.WeakSet[AsyncGenerator[Any, Any]] = weakref.WeakSet()
        self._faults: list[str] = []
        self._handler: ExceptionCallback | None = None
        self._thread_id: int | None = None
        self._stopping = False
        self._closed = False
        self._debug = False

    def run(self, main: Coroutine[Any, Any, T]) -> T:
        """The result of `main`, after which the loop is closed.

        Raises what `main` raised; else SimDeadlock, SimBudgetExceeded, SimLeak (tasks left over once all that was
        ready has run) or SimFault (exceptions nobody retrieved, callbacks that raised). Whatever happens, all tasks
        have ended.
        """
        task = self.create_task(main, name="main")
        try:
            result: T = self.run_until_complete(task)
            self._settle()
            leaked = [self._describe(left) for left in self.pending_tasks()]
            if leaked:
                raise SimLeak(f"{len(leaked)} tasks left (seed {self.seed}): " + "; ".join(leaked))
            faults = self.faults()
            if faults:
                raise SimFault(f"{len(faults)} lost exceptions (seed {self.seed}): " + "; ".join(faults))
            return result
        finally:
            self._cancel_everything()
            self.close()

    def pending_tasks(self) -> tuple[asyncio.Task[Any], ...]:
        """The tasks that have not ended, oldest first."""
        return tuple(task for task in self._tasks if not task.done())

    def faults(self) -> tuple[str, ...]:
        """Lost exceptions so far: of callbacks, of futures, and of ended tasks whose exception nobody has retrieved."""
        unretrieved = tuple(
            f"{task.get_name()}: {exception_of(task)!r}" for task in self._tasks if task.done() and is_unretrieved(task)
        )
        return (*self._faults, *unretrieved)

    # --- time and scheduling

    def time(self) -> float:
        """Virtual seconds; moves only between rounds."""
        return self._now_s

    def call_soon(  # type: ignore[override]
        self, callback: Callable[..., object], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.Handle:
        """First in, first out among plain callbacks; steps of tasks may run before or after."""
        self._check_open()
        handle = asyncio.Handle(callback, args, self, context)
        self._ready.append((handle, not is_task_step(callback)))
        return handle

    def call_soon_threadsafe(  # type: ignore[override]
        self, callback: Callable[..., object], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.Handle:
        """`call_soon`, and SimForbidden from another thread."""
        if self._thread_id not in (None, threading.get_ident()):
            raise SimForbidden("call_soon_threadsafe from another thread: the run could not be repeated")
        return self.call_soon(callback, *args, context=context)

    def call_later(  # type: ignore[override]
        self, delay: float, callback: Callable[..., object], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.TimerHandle:
        """Run `delay` virtual seconds from now."""
        return self.call_at(self._now_s + delay, callback, *args, context=context)

    def call_at(  # type: ignore[override]
        self, when: float, callback: Callable[..., object], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.TimerHandle:
        """Run at virtual time `when`, in any order among the timers of that instant."""
        self._check_open()
        timer = asyncio.TimerHandle(when, callback, args, self, context)
        self._scheduled += 1
        heapq.heappush(self._timers, (when, self._scheduled, timer))
        return timer

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        # Called by TimerHandle.cancel. Timeouts that did not strike would otherwise fill the heap until their time.
        self._cancelled_timers += 1
        if self._cancelled_timers > 64 and self._cancelled_timers * 2 > len(self._timers):
            self._timers = [entry for entry in self._timers if not entry[2].cancelled()]
            heapq.heapify(self._timers)
            self._cancelled_timers = 0

    # --- running

    def run_forever(self) -> None:
        """Run until `stop`; SimDeadlock when nothing can ever happen again."""
        with self._entered():
            while True:
                self._run_round()
                if self._stopping:
                    return

    def run_until_complete(self, future: Any) -> Any:
        """The result of an awaitable."""
        self._check_open()
        task: asyncio.Future[Any] = asyncio.ensure_future(future, loop=self)
        task.add_done_callback(self._stop_on_done)
        try:
            self.run_forever()
        finally:
            task.remove_done_callback(self._stop_on_done)
        return task.result()

    def _stop_on_done(self, _future: asyncio.Future[Any]) -> None:
        self.stop()

    def stop(self) -> None:
        """End `run_forever` after this round."""
        self._stopping = True

    def is_running(self) -> bool:
        return self._thread_id is not None

    def is_closed(self) -> bool:
        return self._closed

    def close(self) -> None:
        """Drop what is scheduled; idempotent."""
        if self.is_running():
            raise RuntimeError("cannot close a running loop")
        self._closed = True
        self._ready.clear()
        self._timers.clear()

    def _run_round(self) -> None:
        self._take_due_timers()
        if not self._ready and not self._stopping:
            self._advance()
            self._take_due_timers()
        batch, self._ready = self._ready, []
        if self._order is Order.SHUFFLED and len(batch) > 1:
            batch = self._shuffled(batch)
        done = 0
        try:
            for handle, _ in batch:
                done += 1
                if not handle.cancelled():
                    self.steps += 1
                    handle._run()
        finally:
            # Only a BaseException leaves early; what it overtook still has its turn.
            self._ready[:0] = batch[done:]
        if self.steps > self._max_steps:
            raise SimBudgetExceeded(f"{self.steps} steps, time stands at {self._now_s} (seed {self.seed})")

    def _shuffled(self, batch: list[tuple[asyncio.Handle, bool]]) -> list[tuple[asyncio.Handle, bool]]:
        shuffled = batch.copy()
        self._rng.shuffle(shuffled)
        plain = iter([entry for entry in batch if entry[1]])
        return [next(plain) if entry[1] else entry for entry in shuffled]

    def _take_due_timers(self) -> None:
        while self._timers and (self._timers[0][0] <= self._now_s or self._timers[0][2].cancelled()):
            _, _, timer = heapq.heappop(self._timers)
            if timer.cancelled():
                self._cancelled_timers = max(0, self._cancelled_timers - 1)
            else:
                self._ready.append((timer, False))

    def _advance(self) -> None:
        if not self._timers:
            waiting = "; ".join(self._describe(task) for task in self.pending_tasks())
            raise SimDeadlock(
                f"nothing can happen any more at {self._now_s} (seed {self.seed}): {waiting or 'no task'}"
            )
        when = self._timers[0][0]
        if when > self._end_s:
            waiting = "; ".join(self._describe(task) for task in self.pending_tasks())
            raise SimBudgetExceeded(f"virtual time is used up at {self._now_s} (seed {self.seed}): {waiting}")
        self._now_s = max(self._now_s, when)

    @contextlib.contextmanager
    def _entered(self) -> Iterator[None]:
        self._check_open()
        if self.is_running() or events._get_running_loop() is not None:
            raise RuntimeError("another loop is running in this thread")
        hooks = sys.get_asyncgen_hooks()
        self._thread_id = threading.get_ident()
        events._set_running_loop(self)
        sys.set_asyncgen_hooks(firstiter=self._generators.add, finalizer=self._finalize_generator)
        try:
            yield
        finally:
            self._stopping = False
            self._thread_id = None
            events._set_running_loop(None)
            sys.set_asyncgen_hooks(*hooks)

    def _settle(self) -> None:
        # Runs what is ready at this instant and no timer, so that a task whose cancel is already on its way is no leak.
        with self._entered():
            self._take_due_timers()
            while self._ready:
                self._run_round()

    def _cancel_everything(self) -> None:
        # Errors of the clean-up itself are dropped: the run already has its verdict.
        with contextlib.suppress(SimError):
            for _ in range(100):
                left = self.pending_tasks()
                if not left:
                    break
                for task in left:
                    task.cancel()
                self._settle()
        for task in self.pending_tasks():
            task._log_destroy_pending = False  # type: ignore[attr-defined]
        for task in self._tasks:
            if task.done():
                exception_of(task)
        self._tasks.clear()

    # --- futures, tasks, generators

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=self)

    def create_task(  # type: ignore[override]
        self,
        coro: Coroutine[Any, Any, T] | Generator[Any, None, T],
        *,
        name: str | None = None,
        context: contextvars.Context | None = None,
        **_kwargs: Any,
    ) -> asyncio.Task[T]:
        """A task of this loop. An unnamed one is named by its number in this loop: asyncio counts over the process."""
        self._check_open()
        self._tasks_made += 1
        task: asyncio.Task[T] = asyncio.Task(coro, loop=self, name=name or f"sim-{self._tasks_made}", context=context)
        if len(self._tasks) >= 1024 and self._tasks_made % 256 == 0:
            self._tasks = [known for known in self._tasks if not known.done() or is_unretrieved(known)]
        self._tasks.append(task)
        return task

    def _finalize_generator(self, generator: AsyncGenerator[Any, Any]) -> None:
        if not self._closed:
            self.create_task(close_generator(generator), name="aclose")

    async def shutdown_asyncgens(self) -> None:
        """Close every asynchronous generator that was begun and not ended."""
        for generator in sorted(self._generators, key=name_of):
            await generator.aclose()

    async def shutdown_default_executor(self, timeout: float | None = None) -> None:
        """Nothing to do: there is none."""

    # --- faults

    def get_exception_handler(self) -> ExceptionCallback | None:
        return self._handler

    def set_exception_handler(self, handler: ExceptionCallback | None) -> None:
        self._handler = handler

    def default_exception_handler(self, context: dict[str, Any]) -> None:
        error = context.get("exception")
        self._faults.append(f"{context.get('message')}: {error!r}")

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """Told by futures, tasks and handles of an exception nobody else will see."""
        if self._handler is None:
            self.default_exception_handler(context)
        else:
            self._handler(self, context)

    def get_debug(self) -> bool:
        return self._debug

    def set_debug(self, enabled: bool) -> None:
        self._debug = enabled

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> Any:  # type: ignore[override]
        raise SimForbidden(f"run_in_executor({func!r}): threads end in no repeatable order")

    def _check_open(self) -> None:
        if self._closed:
            raise RuntimeError("the loop is closed")

    def _describe(self, task: asyncio.Task[Any]) -> str:
        return f"{task.get_name()} at {where(task)}"

    def __repr__(self) -> str:
        return f"<SimLoop seed {self.seed}, {self.steps} steps, time {self._now_s}, {len(self.pending_tasks())} tasks>"
