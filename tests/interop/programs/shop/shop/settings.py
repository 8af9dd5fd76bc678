"""The shop's settings, as a module and as a class."""

import os
import re

from kombu import Exchange, Queue

broker_url = os.environ["SHOP_BROKER"]
result_backend = os.environ["SHOP_RESULTS"]
broker_connection_retry_on_startup = True
task_serializer = "json"
result_serializer = "json"
accept_content = ["json", "mirror"]
timezone = "Europe/Rome"
enable_utc = True
result_expires = 3600
result_extended = True
task_send_sent_event = True
task_default_queue = "celery"
task_queue_max_priority = 10
worker_prefetch_multiplier = 1
worker_log_format = "%(levelname)s %(message)s"
worker_task_log_format = "%(levelname)s <%(task_name)s> %(message)s"
task_queues = (
    Queue("celery", Exchange("celery"), routing_key="celery"),
    Queue("orders", Exchange("orders"), routing_key="orders"),
    Queue("mail", Exchange("mail", type="topic"), routing_key="mail.#"),
    Queue("slow", Exchange("slow"), routing_key="slow"),
)
task_routes = (
    [
        ("mail.*", {"queue": "mail", "routing_key": "mail.out"}),
        (re.compile(r"stock\..*_count"), {"queue": "slow"}),
        ("orders.tasks.place", {"queue": "orders", "priority": 3}),
    ],
    "shop.routing.by_country",
)
task_annotations = {"stock.tasks.reserve": {"rate_limit": "100/s"}, "*": {"default_retry_delay": 1}}
beat_schedule = {
    "clean baskets": {"task": "stock.tasks.recount", "schedule": 3600.0, "args": (1,), "options": {"queue": "slow"}},
}


class AsClass:
    """The same, under the names of before Celery 4."""

    BROKER_URL = broker_url
    CELERY_RESULT_BACKEND = result_backend
    BROKER_CONNECTION_RETRY_ON_STARTUP = True
    CELERY_TASK_SERIALIZER = task_serializer
    CELERY_RESULT_SERIALIZER = result_serializer
    CELERY_ACCEPT_CONTENT = accept_content
    CELERY_TIMEZONE = timezone
    CELERY_ENABLE_UTC = True
    CELERY_TASK_RESULT_EXPIRES = result_expires
    CELERY_RESULT_EXTENDED = True
    CELERY_SEND_TASK_SENT_EVENT = True
    CELERY_DEFAULT_QUEUE = task_default_queue
    CELERYD_PREFETCH_MULTIPLIER = worker_prefetch_multiplier
    CELERYD_LOG_FORMAT = worker_log_format
    CELERYD_TASK_LOG_FORMAT = worker_task_log_format
    CELERY_QUEUES = task_queues
    CELERY_ROUTES = task_routes
    CELERY_ANNOTATIONS = task_annotations
    CELERYBEAT_SCHEDULE = beat_schedule
    CELERY_QUEUE_MAX_PRIORITY = 10
