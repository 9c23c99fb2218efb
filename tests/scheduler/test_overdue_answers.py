"""Answers of the worker that do not come: is it slow, or was something lost?"""

from __future__ import annotations

from sgl_actors.actors.scheduler.overdue import PATIENCE, USUAL
from sgl_actors.actors.worker.fake import complete
from sgl_actors.actors.worker.messages import NeedFull, Reset, Step, StepDone
from tests.scheduler.desk import GREEDY, Desk, request

PROMPT = [1, 2, 3]


def overdue(desk: Desk) -> None:
    """So much time passes that whatever is owed counts as overdue."""
    desk.core.watch(desk.now)
    due = desk.core.wakeup()
    assert due is not None
    desk.now = due
    desk.take(desk.core.tick(desk.now))


def running(*, ahead: int = 0) -> Desk:
    """One request, with its first step on the way to the worker."""
    desk = Desk(ahead=ahead)
    desk.submit(request("a", PROMPT, 6))
    while desk.to_cache:
        desk.cache_once()
    assert isinstance(desk.to_worker[0], Step)
    return desk


def finish(desk: Desk) -> None:
    desk.run()
    assert desk.output("a") == complete(PROMPT, GREEDY, 6, 1000)
    desk.idle()


def test_slow_worker_is_asked_and_loses_nothing() -> None:
    """A step without work goes behind the one that takes so long, again and again; when that is done all goes on in the same epoch."""
    desk = running()
    epoch = desk.core.links.epoch
    for _ in range(5):
        overdue(desk)
    assert [len(step.work) for step in desk.to_worker if isinstance(step, Step)] == [1, 0, 0, 0, 0, 0]
    assert [step.number for step in desk.to_worker if isinstance(step, Step)] == [0, 1, 2, 3, 4, 5]
    finish(desk)
    assert (desk.core.links.epoch, desk.core.counters["requeued"]) == (epoch, 0)


def test_lost_step_is_found_out() -> None:
    """The worker does not know the number of the step that asks: everything is computed again in a new epoch."""
    desk = running(ahead=1)
    epoch = desk.core.links.epoch
    desk.to_worker.clear()
    overdue(desk)
    (probe,) = desk.to_worker
    assert isinstance(probe, Step)
    desk.to_worker.clear()
    answer = desk.model.step(probe)
    assert isinstance(answer, NeedFull)
    desk.take(desk.core.batch_lost(answer.epoch))
    finish(desk)
    assert desk.core.links.epoch == epoch + 1


def test_lost_answer_is_found_out() -> None:
    """The answer to the step that asks is not the one that is due."""
    desk = running()
    epoch = desk.core.links.epoch
    step = desk.to_worker.pop()
    assert isinstance(step, Step)
    assert isinstance(desk.model.step(step), StepDone)
    overdue(desk)
    finish(desk)
    assert desk.core.links.epoch == epoch + 1


def test_lost_reset_is_sent_again() -> None:
    """Until the worker says that nothing runs any more it is reminded, under the same epoch."""
    desk = running()
    desk.take(desk.core.batch_lost(desk.core.links.epoch))
    desk.to_worker.clear()
    overdue(desk)
    assert desk.to_worker == [Reset(desk.core.links.epoch)]
    finish(desk)


def test_patience_grows_with_the_steps() -> None:
    """What counts as overdue is a multiple of the slowest step of late, and never less than half a minute."""
    desk = running()
    desk.core.watch(0.0)
    assert desk.core.wakeup() == PATIENCE
    step = desk.to_worker.pop()
    assert isinstance(step, Step)
    done = desk.model.step(step)
    assert isinstance(done, StepDone)
    desk.take(desk.core.step_done(StepDone(done.epoch, done.number, done.results, 4.0)))
    desk.core.watch(1.0)
    assert desk.core.wakeup() == 1.0 + 4.0 * USUAL
