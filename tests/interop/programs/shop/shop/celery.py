"""The shop's app."""

import os

from celery import Celery
from celery.schedules import crontab

from . import receivers, types  # noqa: F401
from .base import ShopTask

app = Celery("shop", task_cls=ShopTask)
if os.environ.get("SHOP_SETTINGS") == "class":
    from .settings import AsClass

    app.config_from_object(AsClass)
else:
    app.config_from_object("shop.settings")
app.autodiscover_tasks(["orders", "stock"])
app.autodiscover_tasks(lambda: ["mail"], related_name="jobs")


@app.on_after_finalize.connect
def periodic(sender, **_):
    from stock.tasks import recount

    sender.add_periodic_task(crontab(hour=4, minute=30), recount.s(2), name="nightly count")
    sender.add_periodic_task(10.0, recount.s(3), expires=5)
