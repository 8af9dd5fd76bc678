"""Settings under Celery's old names: two periodic tasks, times in the zone of Shanghai, and where results are kept."""

import os
from datetime import timedelta

from umbel.schedules import crontab

CELERY_TIMEZONE = "Asia/Shanghai"
CELERYBEAT_SCHEDULE = {
    "ptask": {
        "task": "tasks.period_task",
        "schedule": timedelta(seconds=float(os.environ.get("EVERY", "5"))),
    },
    "morning": {
        "task": "tasks.add",
        "schedule": crontab(hour=7, minute=30, day_of_week="mon-fri"),
        "args": (16, 16),
    },
}
CELERY_RESULT_BACKEND = os.environ.get("RESULT_BACKEND")
