"""``task-sent``: what clients tell of the tasks that they send, where ``task_send_sent_event`` is set."""

from __future__ import annotations

import logging
from typing import Any

from umbel.exceptions import BrokerError
from umbel.interfaces import Outgoing

logger = logging.getLogger("celery.events")


def tell_sent(app: Any, outgoing: Outgoing) -> None:
    """Send the event of one message that was published. Never raises: the task is sent, whoever hears of it."""
    headers = outgoing.message.headers
    fields = {
        "uuid": outgoing.task_id,
        "name": headers.get("task"),
        "args": headers.get("argsrepr"),
        "kwargs": headers.get("kwargsrepr"),
        "retries": headers.get("retries", 0),
        "eta": headers.get("eta"),
        "expires": headers.get("expires"),
        "root_id": headers.get("root_id"),
        "parent_id": headers.get("parent_id"),
        "queue": outgoing.queue,
        "exchange": outgoing.exchange,
        "routing_key": outgoing.routing_key,
    }
    # Celery's events have no such field; only what has one tells it.
    if group := headers.get("group"):
        fields["group_id"] = group
    try:
        app.events.Dispatcher(buffer_while_offline=False).publish("task-sent", fields)
    except BrokerError as error:
        logger.warning("task-sent of %s could not be sent: %s", outgoing.task_id, error)
