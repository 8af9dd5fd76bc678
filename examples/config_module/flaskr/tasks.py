"""Tasks at the top level and in a class, retried by hand, and what happens when the retries are used up."""

from flaskr.libs.system import celery


class Flaky(Exception):
    """What the unreliable service raises."""


def unreliable(succeed_at: int, attempt: int) -> str:
    if attempt < succeed_at:
        raise Flaky(f"attempt {attempt} failed")
    return f"worked at attempt {attempt}"


@celery.task
def add(x, y):
    return x + y


@celery.task(bind=True)
def retried(self, succeed_at):
    try:
        return unreliable(succeed_at, self.request.retries)
    except Flaky as error:
        raise self.retry(exc=error, countdown=0.1, max_retries=3)


@celery.task(bind=True)
def retried_then_answered(self, succeed_at):
    """Answer with an error of its own when the retries are used up."""
    try:
        return unreliable(succeed_at, self.request.retries)
    except Flaky as error:
        max_retries = 3
        if self.request.retries >= max_retries:
            return {"code": "9999", "message": str(error)}
        self.retry(exc=error, countdown=0.1, max_retries=max_retries)


@celery.task
def retried_by_name(succeed_at):
    """Without ``bind`` the task is at hand under its own name."""
    try:
        return unreliable(succeed_at, retried_by_name.request.retries)
    except Flaky as error:
        raise retried_by_name.retry(exc=error, countdown=0.1, max_retries=1)


class Tasks:
    """A task may be defined inside a class; its ``self`` is then the task."""

    @celery.task(bind=True)
    def tenfold(self, x):
        return {"task": self.name, "value": x * 10}

    @celery.task(bind=True)
    def retried_in_a_class(self, succeed_at):
        try:
            return unreliable(succeed_at, self.request.retries)
        except Flaky as error:
            raise self.retry(exc=error, countdown=0.1, max_retries=3)


def exec_task(x, y):
    """Run a task and return its id."""
    return add.delay(x, y).task_id


def check_status(task_id):
    """Say how the task stands."""
    result = celery.AsyncResult(task_id)
    if not result.ready():
        return {"code": "105", "message": "the task is still running"}
    if not result.successful():
        return {"code": "9999", "message": f"{result.result}"}
    return {"code": "200", "data": result.get(), "message": "the task succeeded"}
