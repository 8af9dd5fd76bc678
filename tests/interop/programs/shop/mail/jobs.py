"""Letters to customers, and what happens when something went wrong."""

from celery import current_task, shared_task
from shop.journal import note


@shared_task(name="mail.send")
def send(text, to="customer", **kwargs):
    return f"{to}: {text}"


@shared_task(name="mail.alarm")
def alarm(request, exc, traceback):
    """An error callback that wants to know all."""
    note("alarm", id=current_task.request.id, retries=0, name="mail.alarm", failed=[request.id, request.task], exc=exc,
         traceback=str(traceback).strip().splitlines()[-1:])  # fmt: skip
    return "told"


@shared_task(name="mail.old_alarm")
def old_alarm(task_id):
    """An error callback as Celery 3 had them."""
    note("old_alarm", id=current_task.request.id, retries=0, name="mail.old_alarm", failed=task_id)
    return task_id


@shared_task(name="mail.logged", bind=True)
def logged(self, text):
    import logging

    logging.getLogger("mail.plain").warning("plain %s", text)
    return self.request.id == current_task.request.id
