"""The public names: all there, cheap to import, and the same objects everywhere."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import umbel


def test_every_public_name_exists() -> None:
    for name in umbel.__all__:
        assert getattr(umbel, name) is not None, name
    assert set(umbel.__all__) <= set(dir(umbel))


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="nope"):
        _ = umbel.nope  # type: ignore[attr-defined]


def test_celery_is_the_same_class() -> None:
    assert umbel.Celery is umbel.Umbel


def test_the_static_block_names_what_is_loaded() -> None:
    text = Path(umbel.__file__).read_text()
    static = text.partition("if TYPE_CHECKING:")[2].partition("__all__")[0]
    for name in umbel.__all__:
        assert name == "__version__" or name in static, name


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60).stdout


def test_importing_the_package_loads_nothing() -> None:
    code = "import sys; import umbel; print([m for m in sys.modules if m.startswith('umbel.')])"
    assert run(code).strip() == "[]"


def test_making_an_app_loads_no_driver_and_no_event_loop_of_others() -> None:
    heavy = ("redis", "kombu", "celery", "click", "sqlite3", "yaml", "msgpack")
    code = f"import sys; from umbel import Umbel; Umbel('x'); print([m for m in {heavy!r} if m in sys.modules])"
    assert run(code).strip() == "[]"


def test_a_first_app_is_made_when_one_is_needed() -> None:
    code = "from umbel import current_app; print(current_app.main, current_app.conf.task_default_queue)"
    assert run(code).strip() == "default celery"
    code = "from umbel.current import current_app; import umbel.app; print(current_app.main)"
    assert run(code).strip() == "default"
