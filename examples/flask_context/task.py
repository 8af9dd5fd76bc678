"""The tasks; a worker is started with ``umbel -A task worker -l debug -f worker.log``."""

import os

from flask import current_app
from pmr import create_app, init_celery

from umbel.utils.log import get_task_logger

lg = get_task_logger(__name__)
celery = init_celery(create_app(os.getenv("FLASK_CONFIG", "default")))


# Named here: run as a script, this module is called __main__, and the task would get another name than the worker's.
@celery.task(name="pmr.log_it")
def log_it(num1, num2):
    msg = num1 + num2
    print(msg)
    lg.debug("in log_it()")
    return msg


@celery.task
def greeting():
    return current_app.config["GREETING"]


if __name__ == "__main__":
    task = log_it.apply_async(args=[10, 20], countdown=float(os.getenv("COUNTDOWN", "10")))
    print(task.id)
