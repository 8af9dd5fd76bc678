"""A web application with one slow task."""

from flask import Flask

from .task import long_task

app = Flask(__name__)


@app.route("/create")
def create() -> str:
    return long_task.delay(2).task_id


@app.route("/get/<task_id>")
def get(task_id: str) -> str:
    return long_task.AsyncResult(task_id).status
