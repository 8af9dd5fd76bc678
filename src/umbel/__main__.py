"""``python -m umbel``: the same as the ``umbel`` command."""

from __future__ import annotations

from umbel.cli.main import main

main()
