"""Use the models and the admin pages of both extensions; prints what came of it as JSON."""

import json
import os

os.environ["DJANGO_SETTINGS_MODULE"] = "settings"
import django

django.setup()
from celery.schedules import crontab, schedule  # noqa: E402
from desk.tasks import greet  # noqa: E402
from django.contrib.auth.models import User  # noqa: E402
from django.test import Client  # noqa: E402
from django.test.utils import setup_test_environment  # noqa: E402
from django_celery_beat.models import CrontabSchedule, IntervalSchedule, PeriodicTask  # noqa: E402
from django_celery_results.models import TaskResult  # noqa: E402

setup_test_environment()
User.objects.create_superuser("ada", password="secret")
browser = Client()
assert browser.login(username="ada", password="secret")

minutely, _ = IntervalSchedule.objects.get_or_create(every=1, period=IntervalSchedule.MINUTES)
weekly, _ = CrontabSchedule.objects.get_or_create(minute="30", hour="6", day_of_week="1")
PeriodicTask.objects.create(name="greet", task="desk.tasks.greet", interval=minutely, args='["ada"]')
PeriodicTask.objects.create(name="monday", task="desk.tasks.greet", crontab=weekly, args='["monday"]')
TaskResult.objects.store_result(
    "application/json", "utf-8", "an-id", '"hello"', "SUCCESS", task_name="desk.tasks.greet"
)
pages = {}
for path in (
    "django_celery_beat/periodictask/", "django_celery_beat/periodictask/add/",
    "django_celery_beat/periodictask/1/change/", "django_celery_beat/crontabschedule/",
    "django_celery_beat/intervalschedule/", "django_celery_results/taskresult/",
    "django_celery_results/taskresult/1/change/", "django_celery_results/groupresult/",
):  # fmt: skip
    pages[path] = browser.get(f"/admin/{path}").status_code
# The action "run selected tasks" of the admin sends them.
ran = browser.post(
    "/admin/django_celery_beat/periodictask/",
    {"action": "run_tasks", "_selected_action": [str(PeriodicTask.objects.get(name="greet").pk)]},
    follow=True,
)
kinds = {each.name: type(each.schedule) for each in PeriodicTask.objects.all()}
print(
    json.dumps(
        {
            "pages": pages,
            "offered": "desk.tasks.greet"
            in browser.get("/admin/django_celery_beat/periodictask/add/").content.decode(),
            "ran": [str(message) for message in ran.context["messages"]],
            "interval": kinds["greet"] is schedule,
            "crontab": issubclass(kinds["monday"], crontab),
            "names": sorted(TaskResult.objects.values_list("task_name", "status")),
            "greeted": greet.delay("bob").get(timeout=30),
        }
    )
)
