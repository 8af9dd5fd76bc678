"""Write ``docs/celery-names.md``, which public names of Celery the alias has: ``python docs/make_compatibility.py``.

The names are those of the celery that is installed; what becomes of each is asked of the alias, in another process.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

PAGE = Path(__file__).with_name("celery-names.md")

INTRODUCTION = """\
# Celery's names under the alias

<!-- Made from the installed celery by docs/make_compatibility.py ("make docs"). Do not change it here. -->

What `import celery…` finds when [the alias](coming-from-celery.md#without-changing-the-import) is installed, for every
module of Celery {version} and every public name in it. A name that is not there raises `ImportError` or
`AttributeError` with the text of the last column.

{there} of {all} public names of {modules} modules are there; {refused} modules are not.

| Module | Names that are there | Not there, and what to do instead |
|---|---|---|
"""

# A module's public names: what it lists, or else what it defines.
_NAMES = """
import importlib, json, pkgutil, sys, warnings
warnings.simplefilter("ignore")
import celery
found = {}
walked = pkgutil.walk_packages(celery.__path__, "celery.", onerror=lambda name: None)
for name in ["celery", *(each.name for each in walked)]:
    try:
        module = importlib.import_module(name)
    except Exception:
        found[name] = []  # it needs a library that is not installed
        continue
    listed = [each for each in getattr(module, "__all__", ()) if not each.startswith("_")]
    defined = [each for each, value in vars(module).items() if getattr(value, "__module__", None) == name]
    found[name] = sorted(set(listed or (each for each in defined if not each.startswith("_"))))
found["celery"] = sorted(set(found["celery"]) - {"local"})
json.dump([celery.__version__, found], sys.stdout)
"""

_ANSWERS = """
import importlib, json, sys, warnings
warnings.simplefilter("ignore")
import umbel.celery
umbel.celery.install()
answers = {}
for name, names in json.load(sys.stdin).items():
    try:
        module = importlib.import_module(name)
    except ImportError as error:
        answers[name] = str(error)
        continue
    answers[name] = {}
    for each in names:
        try:
            getattr(module, each)
            answers[name][each] = None
        except AttributeError as error:
            answers[name][each] = str(error)
json.dump(answers, sys.stdout)
"""


def _ask(code: str, given: Any = None) -> Any:
    done = subprocess.run(
        [sys.executable, "-c", code], input=json.dumps(given), capture_output=True, text=True, check=False, timeout=120
    )
    if done.returncode:
        raise RuntimeError(done.stderr)
    return json.loads(done.stdout)


def survey() -> tuple[str, dict[str, list[str]], dict[str, Any]]:
    """Return Celery's version, its modules with their public names, and what the alias says about each.

    The answer about a module is the error of importing it, or of each name the error of getting it, or None.
    """
    version, names = _ask(_NAMES)
    return version, names, _ask(_ANSWERS, names)


def render() -> str:
    """Return the whole page."""
    version, names, answers = survey()
    lines, there, everything = [], 0, 0
    for module, listed in sorted(names.items()):
        answer = answers[module]
        if isinstance(answer, str):
            lines.append(f"| `{module}` | | {_reason(answer, module)} |\n")
            continue
        everything += len(listed)
        have = [name for name in listed if answer[name] is None]
        there += len(have)
        reasons: dict[str, list[str]] = {}
        for name in listed:
            if answer[name] is not None:
                reasons.setdefault(_reason(answer[name], f"{module}.{name}"), []).append(f"`{name}`")
        missing = "; ".join(f"{', '.join(each)}: {reason}" for reason, each in reasons.items())
        lines.append(f"| `{module}` | {' '.join(f'`{name}`' for name in have)} | {missing} |\n")
    refused = sum(isinstance(answer, str) for answer in answers.values())
    head = INTRODUCTION.format(
        version=version, there=there, all=everything, modules=len(names) - refused, refused=refused
    )
    return head + "".join(lines)


def _reason(error: str, name: str) -> str:
    return error.removeprefix(f"{name}: ")


if __name__ == "__main__":
    PAGE.write_text(render())
