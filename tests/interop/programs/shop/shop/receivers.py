"""Receivers for every signal that a shop may want to hear."""

import json
import logging
import os

from celery import signals

from .journal import note

TASK_SIGNALS = (
    "before_task_publish after_task_publish task_received task_prerun task_postrun task_success task_failure "
    "task_retry task_revoked task_rejected task_internal_error task_unknown"
).split()
WORKER_SIGNALS = (
    "celeryd_init celeryd_after_setup worker_init worker_process_init worker_process_shutdown worker_ready "
    "worker_shutting_down worker_shutdown after_setup_logger after_setup_task_logger"
).split()


def named(sender):
    """Return what identifies a sender in every run."""
    if isinstance(sender, str) or sender is None:
        return sender
    return getattr(sender, "name", None) or "an object"


def found(names, signal):
    """Return the id, the number of the attempt and the name of the task that a signal is about."""
    if "headers" in names:  # of a message that is published
        headers = names["headers"]
        return headers["id"], headers["retries"], headers["task"], headers["root_id"]
    request = names.get("request") or getattr(names.get("task") or names["sender"], "request", None)
    # The worker's own request, which some signals have, holds the task itself.
    name = getattr(request, "task", None)
    name = getattr(name, "name", name)
    return (
        names.get("task_id") or getattr(request, "id", None),
        request_retries(request),
        name,
        getattr(request, "root_id", None),
    )


def request_retries(request):
    """Return the number of the attempt; a request in the worker's main process keeps it in its headers."""
    retries = getattr(request, "retries", None)
    return request.request_dict["retries"] if retries is None else retries


KEPT = "state retval result exception reason terminated signum expired exchange routing_key".split()


def listen(name):
    def receiver(sender=None, signal=None, **names):
        fields = {key: names[key] for key in KEPT if key in names}
        if name in TASK_SIGNALS:
            if name == "task_rejected":
                return
            id, retries, task, root = found({"sender": sender, **names}, signal)
            if name == "before_task_publish":
                body = names["body"]
                fields.update(
                    args=body[0], kwargs=body[1], headers=names["headers"], retry_policy=names["retry_policy"]
                )
                fields["properties"] = {key: value for key, value in names["properties"].items() if key != "reply_to"}
            fields.update(id=id, retries=retries, name=task, root_id=root)
        note(name, sender=named(sender), keys=sorted(names), **fields)

    receiver.__name__ = f"on_{name}"
    getattr(signals, name).connect(receiver, weak=False)


for each in TASK_SIGNALS + WORKER_SIGNALS:
    listen(each)


class JsonLines(logging.Formatter):
    """One document a record."""

    def format(self, record):
        from celery import current_task

        task = current_task._get_current_object() if current_task else None
        fields = {
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            "error": record.exc_info[0].__name__ if record.exc_info and record.exc_info[0] else None,
            "id": task.request.id if task is not None else None,
        }
        return json.dumps(fields)


@signals.after_setup_logger.connect
@signals.after_setup_task_logger.connect
def add_json(logger=None, **_):
    handler = logging.FileHandler(os.environ["SHOP_LOG"], encoding="utf-8")
    handler.setFormatter(JsonLines())
    logger.addHandler(handler)
