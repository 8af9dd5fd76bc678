"""Write ``docs/settings.md`` from the table of settings: ``python docs/make_settings.py``."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

from umbel.setting_rows import CHANGED, ROWS, SECTIONS, Setting

PAGE = Path(__file__).with_name("settings.md")

INTRODUCTION = """\
# Settings

<!-- Made from src/umbel/setting_rows.py by "make docs". Change the rows, not this page. -->

```python
app.conf.task_serializer = "json"  # one
app.conf.update(result_expires=3600)  # several
app.config_from_object("celeryconfig")  # a module, "module:attribute", a class, an object or a dict
app.config_from_object("django.conf:settings", namespace="CELERY")
```

* **Names.** Celery's lowercase names and its old uppercase ones are accepted, also with `CELERY_` before them, and
  with the namespace before them where one is given. Old and new names in one configuration source are an error.
* **Unknown names.** A name that starts with `task_`, `worker_`, `broker_`, `result_` or `beat_`, or is within two
  letters of a setting, is an error that says which one is nearest. All other keys are kept: `app.conf.MY_KEY` works.
* **Who wins.** The environment (`CELERY_BROKER_URL`, `CELERY_BROKER_READ_URL`, `CELERY_BROKER_WRITE_URL`,
  `CELERY_RESULT_BACKEND`, each also as `UMBEL_…`, which goes first); then what the program set on `app.conf`, whether
  before or after the configuration was loaded; then the configuration source; then the default.
* **Types.** Strings are read as an environment writes them: `"2"`, `"true"`, `"json,yaml"`, `'{"a": 1}'`. `None` means
  "as if not set", unless the type says `none`. What cannot be read is an error.
* **Seconds** may also be given as a `timedelta`.
* **No effect yet.** A setting without a mark in the last column is accepted and does nothing in this version;
  `umbel report` lists the ones that you set, and the transport options that the driver does not read.
"""

BROKER = """
[Connections](connections.md) says which URLs there are, what a list of them does, how `broker_read_url` differs from
`broker_write_url`, and which transport options do something.
"""

RESULTS = """
Without `result_backend` results are not stored, as in Celery. There is one exception: an app without `broker_url` too
keeps messages and results in the same SQLite file.
"""

NOTES = {"Broker": BROKER, "Results": RESULTS}


def render() -> str:
    """Return the whole page."""
    parts = [INTRODUCTION, "\n## Defaults that are not Celery's\n\n"]
    parts += [f"* `{name}` is `{ROWS[name].default!r}`. {why}\n" for name, why in CHANGED.items()]
    for title, rows in SECTIONS.items():
        parts.append(f"\n## {title}\n\n| setting | type | default | old name | meaning | effect |\n")
        parts.append("|---|---|---|---|---|---|\n")
        parts += [_line(row) for row in rows]
        parts.append(NOTES.get(title, ""))
    return "".join(parts)


def _line(row: Setting) -> str:
    kind = row.type.replace("|", "or").replace("positive", "float above 0").replace("numbers", "list of float")
    kind = kind.replace("strict", '"strict"').replace("symbol", "string or object")
    old = f"`{row.old_name}`" if row.old_name else ""
    return f"| `{row.name}` | {kind} | {_default(row.default)} | {old} | {row.doc} | {'✓' if row.effect else ''} |\n"


def _default(value: Any) -> str:
    if isinstance(value, timedelta):
        return f"{value.days} day" if value.seconds == 0 and value.days == 1 else f"{value.total_seconds()} s"
    return f"`{value!r}`"


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
