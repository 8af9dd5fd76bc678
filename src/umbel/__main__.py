"""``python -m umbel``: the same as the ``umbel`` command."""

from __future__ import annotations

import os
import sys


def main() -> None:
    """Run the command line and exit."""
    open_missing_streams()
    if sys.argv[1:2] == ["healthcheck"]:
        # A probe runs every few seconds, and must not wait for what the other commands import.
        from umbel.cli.healthcheck import main as healthcheck

        sys.exit(healthcheck(sys.argv[2:]))
    from umbel.cli.main import main as run

    run()


def open_missing_streams() -> None:
    """Have all three standard streams, on the null device where whoever started this process closed one.

    Call it before anything else opens a file: that would get the number of the stream, and whoever then writes to the
    stream, or lets go of the terminal, would do it to the file.
    """
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)
            # Also where the lowest free number was the right one: a child is to inherit it.
            os.dup2(opened, number) if opened != number else os.set_inheritable(number, True)
            if opened != number:
                os.close(opened)
        if getattr(sys, name) is None:
            # It is the process's until its end, so nobody closes it.
            stream = open(number, mode, encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
            setattr(sys, name, stream)
            setattr(sys, f"__{name}__", stream)


if __name__ == "__main__":
    main()
