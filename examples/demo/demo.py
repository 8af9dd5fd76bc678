"""Start a worker, send it tasks, watch one of them, print the results, stop the worker.

python examples/demo/demo.py
"""

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent


LOAVES = 40


def bar(meta: dict) -> None:
    """Draw the progress that the task reported; a finished task reports its result instead."""
    if meta["status"] in ("PROGRESS", "SUCCESS"):
        done = meta["result"]["done"] if meta["status"] == "PROGRESS" else LOAVES
        total = LOAVES
        filled = 30 * done // total
        sys.stdout.write(f"\rbake  [{'#' * filled}{'.' * (30 - filled)}] {done}/{total}")
        sys.stdout.flush()


def main() -> int:
    """Run the demo; return the worker's exit status."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["UMBEL_HOME"] = folder
        sys.path.insert(0, str(HERE))
        import tasks

        print("worker: umbel -A tasks worker -c 2 -l warning")
        command = [sys.executable, "-m", "umbel", "-A", "tasks", "worker", "-c", "2", "-l", "warning"]
        worker = subprocess.Popen(command, cwd=HERE, stdout=subprocess.DEVNULL)
        try:
            print("add(2, 3)     =", tasks.add.delay(2, 3).get(timeout=30))
            print("greet('you')  =", tasks.greet.delay("you").get(timeout=30))
            sums = [tasks.add.delay(n, n) for n in range(100)]
            print("100 additions =", sum(result.get(timeout=30) for result in sums))
            baked = tasks.bake.delay(LOAVES).get(timeout=60, on_message=bar)
            print("\nbake(40)      =", baked)
        finally:
            worker.send_signal(signal.SIGTERM)
            status = worker.wait(timeout=60)
        print("worker stopped with exit status", status)
        tasks.app.close()
    return status


if __name__ == "__main__":
    sys.exit(main())
