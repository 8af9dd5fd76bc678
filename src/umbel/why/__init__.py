"""Why a task is not running: :func:`why` says where it is, and what would help."""

from __future__ import annotations

from umbel.why.inquiry import VERDICTS, Answer, why

__all__ = ["VERDICTS", "Answer", "why"]
