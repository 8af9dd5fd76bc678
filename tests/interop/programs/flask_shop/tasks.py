"""Tasks that need the context of the Flask app."""

from celery import shared_task
from celery.utils.log import get_task_logger
from flask import current_app, g, has_app_context

logger = get_task_logger(__name__)


@shared_task(ignore_result=False)
def add_together(left, right):
    used = hasattr(g, "used")
    g.used = True
    return [current_app.config["TOWN"], left + right, used]


@shared_task(bind=True, ignore_result=False, max_retries=1)
def order(self, number):
    logger.info("order %s for %s", number, current_app.config["TOWN"])
    if self.request.retries == 0:
        raise self.retry(countdown=0.1)
    return [number, self.request.retries, has_app_context()]


@shared_task
def forget():
    return current_app.name
