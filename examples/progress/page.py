"""The web page: every visit starts a task and shows its bar."""

import os
import secrets

from flask import Flask, render_template_string
from tasks import app as celery
from tasks import resize

from umbel.contrib.progress.flask import Progress

app = Flask(__name__)
# One of your own, kept, where there is more than one process or a restart.
app.config["SECRET_KEY"] = os.environ.get("SECRET_KEY") or secrets.token_hex()
Progress(app, celery)

PAGE = """<!doctype html>
<html lang="en">
<title>Pictures</title>
{{ umbel_progress_script() }}
<h1>Pictures</h1>
{{ umbel_progress(result, label="Resizing pictures") }}
"""


@app.get("/")
def index() -> str:
    result = resize.delay([f"{number}.jpg" for number in range(20)], float(os.environ.get("PAUSE", "0.5")))
    return render_template_string(PAGE, result=result)
