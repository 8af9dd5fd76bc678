"""``python -m umbel``: the same as the ``umbel`` command."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line and exit."""
    if sys.argv[1:2] == ["healthcheck"]:
        # A probe runs every few seconds, and must not wait for what the other commands import.
        from umbel.cli.healthcheck import main as healthcheck

        sys.exit(healthcheck(sys.argv[2:]))
    from umbel.cli.main import main as run

    run()


if __name__ == "__main__":
    main()
