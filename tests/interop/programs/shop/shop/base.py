"""The class of the shop's tasks: every hook leaves a line."""

from celery import Task

from .journal import note, request_of


class ShopTask(Task):
    """A task that says what is done with it."""

    abstract = True

    def __call__(self, *args, **kwargs):
        note("call", id=self.request.id, retries=self.request.retries, name=self.name, request=request_of(self))
        return super().__call__(*args, **kwargs)

    def _note(self, what, task_id, **fields):
        note(what, id=task_id, retries=self.request.retries, name=self.name, same=task_id == self.request.id, **fields)

    def before_start(self, task_id, args, kwargs):
        self._note("before_start", task_id, args=args, kwargs=kwargs)

    def on_success(self, retval, task_id, args, kwargs):
        self._note("on_success", task_id, retval=retval, args=args, kwargs=kwargs)

    def on_failure(self, exc, task_id, args, kwargs, einfo):
        self._note("on_failure", task_id, exc=exc, args=args, kwargs=kwargs, last=last_line(einfo))

    def on_retry(self, exc, task_id, args, kwargs, einfo):
        self._note("on_retry", task_id, exc=exc, args=args, kwargs=kwargs, last=last_line(einfo))

    def after_return(self, status, retval, task_id, args, kwargs, einfo):
        self._note("after_return", task_id, status=status, retval=retval, einfo=einfo is not None)


def last_line(einfo):
    """Return the last line of a traceback."""
    return str(einfo).strip().splitlines()[-1]
