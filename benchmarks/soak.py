"""The soak: everything is killed again and again while people work, then the studio is put under load.

    make soak                                     10 minutes, both parts
    python -m benchmarks.soak --only kills        10 minutes of kills (--minutes, --seed, --kills)
    python -m benchmarks.soak --page              write the figures measured last into docs/reliability.md

Real processes in a home of their own: web server, dispatcher, workers that train on the bundled base. The two parts run
one after the other: latencies beside killed processes would say nothing. Figures go to docs/measurements/soak.json;
the exit code is 1 when a promise is broken.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks import soak_chat, soak_page, soak_phase
from benchmarks.soak_phase import STEPS
from core.home import PROJECT, write_text

MEASURED = PROJECT / "docs" / "measurements" / "soak.json"
MINUTES, SEED, KILLS = 10.0, 7, 72
PARTS = {"kills": 0.62, "load": 0.38}  # of the time, when both run
LOOKING = 0.7  # of the time of the load part; in the rest its home is filled and the worker trains alone
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TESSERA_INFERENCE_IDLE": str(soak_chat.IDLE),
    "TESSERA_CPU_JOBS": str(max(1, (os.cpu_count() or 1) // 2)),  # a core is left for web server and dispatcher
}


def main() -> int:
    told = _parsed()
    if told.page and not told.out:
        print(soak_page.write(MEASURED))
        return 0
    os.environ.update(ENVIRONMENT)
    os.environ.pop("TESSERA_DATABASE_URL", None)
    parts = [told.only] if told.only else list(PARTS)
    report = {"machine": _machine(), "minutes": told.minutes}
    with tempfile.TemporaryDirectory(prefix="tessera-soak-", ignore_cleanup_errors=True) as folder:
        for part in parts:
            seconds = 60 * told.minutes * (1.0 if told.only else PARTS[part])
            report[part] = _part(part, told.home or Path(folder), seconds, told)
    report["broken"] = broken(report)
    print("\n" + soak_page.table(report))
    if told.out:
        write_text(told.out, json.dumps(report, indent=1) + "\n")
        print(f"\n{told.out}")
        if told.page:
            print(soak_page.write(told.out))
    return 1 if report["broken"] else 0


def _parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=MINUTES)
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--kills", type=int, default=KILLS)
    parser.add_argument("--steps", type=int, default=STEPS, help="of each run that is killed")
    parser.add_argument("--only", choices=list(PARTS))
    parser.add_argument("--home", type=Path, help="an empty folder that is kept, to look at afterwards")
    parser.add_argument("--out", type=Path, help="where the figures go as JSON, such as docs/measurements/soak.json")
    parser.add_argument("--page", action="store_true", help="write docs/reliability.md, with --out after measuring")
    return parser.parse_args()


def _part(part: str, folder: Path, seconds: float, told: argparse.Namespace) -> dict[str, Any]:
    began = time.monotonic()
    print(f"{part}: {seconds:.0f} s, seed {told.seed}", flush=True)
    root = folder / part
    root.mkdir(parents=True, exist_ok=True)
    if part == "kills":
        wishes = {"seed": told.seed, "kills": told.kills, "steps": told.steps, "say": _say}
        found = soak_phase.soak(root / "home", seconds=seconds, **wishes)
    else:
        from benchmarks import load

        found = load.soak(root / "home", LOOKING * seconds)
    return {**found, "took": round(time.monotonic() - began)}


def broken(report: dict[str, Any]) -> list[str]:
    """What did not hold, over both parts."""
    kills, load = report.get("kills", {}), report.get("load", {})
    found = [f"{one['promise']}: {'; '.join(one['wrong'])}" for one in kills.get("checks", []) if one["wrong"]]
    return found + [str(one) for one in load.get("broken", [])]


def _machine() -> dict[str, Any]:
    return {
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "system": platform.system(),
        "load": round(os.getloadavg()[0], 2),
        "day": datetime.now(UTC).strftime("%Y-%m-%d"),
    }


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
