"""What a release is checked for: ``make audit``.

bandit on the code; the wheel built twice, byte for byte the same; what the wheel brings along as a CycloneDX document;
and known vulnerabilities in that. The last needs a service on the network: where it cannot be reached that is said, and
is no failure. Ends with 1 if something was found, and leaves the wheel and its document in ``dist/``.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import venv
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
TOOLS = Path(sys.executable).parent
DIST = ROOT / "dist"
# What must not be in a document that others read: places on this machine, and where packages were fetched from.
_PLACES = {str(ROOT), str(Path.home()), tempfile.gettempdir(), sys.prefix, sys.base_prefix, "file://", "/simple/"}
PRIVATE = re.compile("|".join(map(re.escape, sorted(_PLACES, key=len, reverse=True))))


def main() -> int:
    failures = 0
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        failures += bandit()
        wheel, same = build_twice(place)
        failures += not same
        home = place / "installed"
        venv.create(home, with_pip=False)
        install(home, str(wheel))
        failures += document(home, wheel)
        install(home, f"{wheel}[all]")
        failures += vulnerabilities(home)
    print("audit: failed" if failures else "audit: passed")
    return min(failures, 1)


def say(what: str, text: str) -> None:
    print(f"{what:<16} {text}", flush=True)


def run(*words: str | Path, env: dict[str, str] | None = None, fine: bool = True) -> subprocess.CompletedProcess[str]:
    """Run a command without a shell; with ``fine`` a failure ends the audit and shows what was printed."""
    done = subprocess.run(
        [str(word) for word in words], cwd=ROOT, env=env, capture_output=True, text=True, timeout=600, check=False
    )
    if fine and done.returncode:
        sys.exit(f"{' '.join(map(str, words))}\n{done.stdout}{done.stderr}")
    return done


def bandit() -> int:
    """Return how many findings of medium or high severity are not explained in the code or in pyproject.toml."""
    done = run(TOOLS / "bandit", "-c", "pyproject.toml", "-ll", "-q", "-f", "json", "-r", "src/umbel", fine=False)
    report = json.loads(done.stdout)
    for found in [*report["results"], *report["errors"]]:
        say("bandit", f"{found.get('filename')}:{found.get('line_number')}: {found.get('issue_text', found)}")
    say("bandit", f"{len(report['results'])} findings in {report['metrics']['_totals']['loc']} lines")
    return len(report["results"]) + len(report["errors"])


def build_twice(place: Path) -> tuple[Path, bool]:
    """Build the wheel from two copies of the source in different folders; return one, and whether they are equal."""
    seconds = run("git", "log", "-1", "--format=%ct").stdout.strip()
    made = []
    for name, mask in (("first", 0o022), ("the-second", 0o077)):
        source = place / name / "source"
        ignored = shutil.ignore_patterns("__pycache__", "*.pyc", ".umbel")
        shutil.copytree(ROOT / "src", source / "src", ignore=ignored, copy_function=shutil.copyfile)
        for file in ("pyproject.toml", "README.md", "LICENSE"):
            shutil.copyfile(ROOT / file, source / file)
        env = {**os.environ, "SOURCE_DATE_EPOCH": seconds, "PYTHONHASHSEED": str(mask)}
        before = os.umask(mask)
        try:
            run(TOOLS / "python", "-m", "build", "--wheel", "--no-isolation", "-o", place / name, source, env=env)
        finally:
            os.umask(before)
        (wheel,) = (place / name).glob("*.whl")
        made.append(wheel)
    digests = [hashlib.sha256(wheel.read_bytes()).hexdigest() for wheel in made]
    same = digests[0] == digests[1]
    say("wheel", f"{made[0].name} sha256:{digests[0]}")
    say("wheel", "built twice, byte for byte the same" if same else f"the second build differs: {digests[1]}")
    DIST.mkdir(exist_ok=True)
    return Path(shutil.copy(made[0], DIST)), same


def install(home: Path, what: str) -> None:
    run(TOOLS / "python", "-m", "pip", "--python", home / "bin" / "python", "install", "--quiet",
        "--disable-pip-version-check", what)  # fmt: skip


def document(home: Path, wheel: Path) -> int:
    """Write the CycloneDX document of the wheel and what it needs; return how many private things are in it."""
    done = run(TOOLS / "cyclonedx-py", "environment", "--output-reproducible", "--of", "JSON", home / "bin" / "python")
    found = scrub(json.loads(done.stdout))
    path = wheel.with_suffix(".cdx.json")
    text = json.dumps(found, indent=2, sort_keys=True) + "\n"
    names = sorted(f"{part['name']} {part['version']}" for part in found["components"])
    say("document", f"{path.name}: CycloneDX {found['specVersion']}, {', '.join(names)}")
    private = sorted(set(PRIVATE.findall(text)))
    if private:
        say("document", f"not written, for it holds {', '.join(private)}")
    else:
        path.write_text(text, encoding="utf-8")
    return len(private)


def scrub(found: Any) -> Any:
    """Return the document without what belongs to the machine that made it: where each package was installed from."""
    if isinstance(found, list):
        return [scrub(each) for each in found if not (isinstance(each, dict) and _is_private(each))]
    if isinstance(found, dict):
        return {name: scrub(value) for name, value in found.items()}
    return found


def _is_private(entry: dict[str, Any]) -> bool:
    texts = (str(entry.get(name, "")) for name in ("url", "value", "location"))
    return entry.get("type") == "distribution" or any(PRIVATE.search(text) for text in texts)


def vulnerabilities(home: Path) -> int:
    """Return how many known vulnerabilities there are in what the wheel needs with all its extras."""
    (packages,) = home.glob("lib/python*/site-packages")
    done = run(TOOLS / "pip-audit", "--path", packages, "--skip-editable", "-f", "json", "--progress-spinner", "off",
               "--timeout", "10", fine=False)  # fmt: skip
    try:
        looked_at = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError):
        last = (done.stderr.strip().splitlines() or ["no answer"])[-1]
        say("pip-audit", f"NOT CHECKED: the advisory service cannot be reached from here ({last[:60]})")
        return 0
    found = [(each["name"], bug["id"]) for each in looked_at for bug in each.get("vulns", ())]
    for name, bug in found:
        say("pip-audit", f"{name}: {bug}")
    # Where the service does not answer for a package pip-audit skips it, and calls that "no known vulnerabilities".
    skipped = [each["name"] for each in looked_at if "skip_reason" in each and each["name"] != "umbel"]
    if skipped:
        say("pip-audit", f"NOT CHECKED, for nothing was to be learned from here: {', '.join(skipped)}")
    else:
        say("pip-audit", f"{len(found)} known vulnerabilities in {len(looked_at)} packages")
    return len(found)


if __name__ == "__main__":
    sys.exit(main())
