"""The web page: start tasks, watch them."""

import os

from flask import Flask, Response, jsonify, render_template, url_for
from longtask import long_task

app = Flask(__name__)
PAUSE = float(os.environ.get("PAUSE", "1"))


@app.get("/")
def index() -> str:
    return render_template("index.html")


@app.post("/longtask")
def start() -> tuple[Response, int, dict[str, str]]:
    task = long_task.delay(PAUSE)
    return jsonify({}), 202, {"Location": url_for("status", task_id=task.id)}


@app.get("/status/<task_id>")
def status(task_id: str) -> Response:
    task = long_task.AsyncResult(task_id)
    state, info = task.state, task.info
    if state == "PENDING":
        answer = {"state": state, "current": 0, "total": 1, "status": "Waiting for a worker"}
    elif state == "FAILURE":
        answer = {"state": state, "current": 1, "total": 1, "status": str(info)}
    else:
        answer = {"state": state, **info}
    return jsonify(answer)
