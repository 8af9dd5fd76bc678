"""What happened, one JSON document a line, from every process of the shop into one file."""

import json
import os

from celery.exceptions import Retry
from celery.result import AsyncResult, GroupResult

#: The scenario that the client is in; workers have none.
scenario = None

#: What a task may see of its message.
REQUEST = (
    "id root_id parent_id group group_index retries hostname delivery_info correlation_id is_eager called_directly "
    "lang argsrepr kwargsrepr shadow ignore_result replaced_task_nesting timelimit expires eta headers callbacks "
    "errbacks chain chord task args kwargs origin utc stamps stamped_headers children"
).split()


def plain(value):
    """Return the value as JSON has it, with the type of everything that JSON would lose."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, AsyncResult | GroupResult):
        return [type(value).__name__, value.id]
    if isinstance(value, BaseException):
        return error(value)
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return [type(value).__name__, repr(value)]


def error(exc):
    """Return the class, the arguments and the text of an exception."""
    # Classes of the library live elsewhere in another library; their names say enough.
    home = type(exc).__module__ if type(exc).__module__.split(".")[0] in ("orders", "stock", "mail", "shop") else "-"
    # Celery's Retry holds itself.
    args = [] if isinstance(exc, Retry) else plain(list(exc.args))
    return {"error": f"{home}.{type(exc).__qualname__}", "args": args, "text": str(exc)}


def request_of(task):
    """Return what the task sees of its message."""
    seen = {name: plain(getattr(task.request, name, None)) for name in REQUEST}
    seen["reply_to"] = bool(task.request.reply_to)
    return seen


def note(what, **fields):
    """Add a line; lines of several processes never mix."""
    line = json.dumps({"what": what, "scenario": scenario, "pid": os.getpid(), **plain(fields)}) + "\n"
    journal = os.open(os.environ["SHOP_JOURNAL"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(journal, line.encode())
    finally:
        os.close(journal)
