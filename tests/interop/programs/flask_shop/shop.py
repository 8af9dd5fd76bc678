"""A Flask app with Celery, in the two ways that the documentation of Flask has had."""

import os

from celery import Celery, Task
from flask import Flask


def create_app():
    app = Flask("shop")
    app.config.from_mapping(
        TOWN="Rome",
        CELERY={
            "broker_url": os.environ["SHOP_URL"],
            "result_backend": os.environ["SHOP_URL"],
            "task_ignore_result": True,
            "broker_connection_retry_on_startup": True,
        },
    )
    app.config.from_prefixed_env()
    if os.environ["SHOP_PATTERN"] == "shared":
        celery_init_app(app)
    else:
        app.extensions["celery"] = make_celery(app)

    @app.route("/add/<int:left>/<int:right>")
    def add(left, right):
        from tasks import add_together

        result = add_together.delay(left, right)
        return {"id": result.id, "value": result.get(timeout=20)}

    return app


def celery_init_app(app):
    class FlaskTask(Task):
        def __call__(self, *args, **kwargs):
            with app.app_context():
                return self.run(*args, **kwargs)

    celery_app = Celery(app.name, task_cls=FlaskTask)
    celery_app.config_from_object(app.config["CELERY"])
    celery_app.set_default()
    app.extensions["celery"] = celery_app
    return celery_app


def make_celery(app):
    celery = Celery(
        app.import_name, backend=app.config["CELERY"]["result_backend"], broker=app.config["CELERY"]["broker_url"]
    )
    celery.conf.update(app.config["CELERY"])
    TaskBase = celery.Task

    class ContextTask(TaskBase):
        abstract = True

        def __call__(self, *args, **kwargs):
            with app.app_context():
                return TaskBase.__call__(self, *args, **kwargs)

    celery.Task = ContextTask
    celery.set_default()
    return celery
