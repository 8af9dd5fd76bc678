"""A Flask application factory, and tasks that run inside the application's context."""

import os

from flask import Flask

from umbel import Umbel


def create_app(name="default"):
    """Build the web application."""
    app = Flask("pmr")
    app.config["CELERY_BROKER_URL"] = os.environ.get("BROKER_URL")
    app.config["CELERY_RESULT_BACKEND"] = os.environ.get("RESULT_BACKEND")
    app.config["GREETING"] = f"hello from {name}"
    return app


def init_celery(app):
    """Return a task queue whose tasks see ``current_app``."""
    celery = Umbel(app.import_name, broker=app.config["CELERY_BROKER_URL"])
    celery.conf.update(app.config)
    TaskBase = celery.Task

    class ContextTask(TaskBase):
        abstract = True

        def __call__(self, *args, **kwargs):
            with app.app_context():
                return TaskBase.__call__(self, *args, **kwargs)

    celery.Task = ContextTask
    return celery
