"""Run the command line of the Celery that is installed, one command after the other; prints the answers as JSON."""

import json
import sys

from celery.bin.celery import celery
from click.testing import CliRunner

answers = []
for words in json.load(sys.stdin):
    done = CliRunner().invoke(celery, words)
    answers.append({"code": done.exit_code, "text": done.output})
print(json.dumps(answers))
