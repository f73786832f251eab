"""Many readers at once, from a process of its own: `python -m benchmarks.load URL CONNECTIONS SECONDS [BODIES]`.

Each connection asks again as soon as it is answered. BODIES is a file with a JSON body a line, taken in turn; without
it the request is a GET. Prints as JSON how many were answered `per_second`, their times `p50` and `p95` in ms,
how many `answers` there were, and how many of them were `errors`.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import aiohttp

LONGEST_SECONDS = 60.0


async def load(url: str, connections: int, seconds: float, bodies: list[str]) -> dict[str, float]:
    """Ask for so many ``seconds`` on so many ``connections``; return what is printed, see above."""
    times: list[float] = []
    errors = 0
    turn: Iterator[str | None] = itertools.cycle(bodies or [None])
    options = {
        "connector": aiohttp.TCPConnector(limit=connections),
        "timeout": aiohttp.ClientTimeout(LONGEST_SECONDS),
        "headers": {"Content-Type": "application/json"} if bodies else {},
    }
    async with aiohttp.ClientSession(**options) as session:
        began = time.perf_counter()

        async def ask_on() -> None:
            nonlocal errors
            while time.perf_counter() - began < seconds:
                asked = time.perf_counter()
                try:
                    async with session.request("POST" if bodies else "GET", url, data=next(turn)) as answer:
                        await answer.read()
                        failed = answer.status >= 400
                except (aiohttp.ClientError, TimeoutError):
                    failed = True
                errors += failed
                times.append((time.perf_counter() - asked) * 1000)

        await asyncio.gather(*(ask_on() for _ in range(connections)))
        took = time.perf_counter() - began
    cuts = statistics.quantiles(times, n=20) if len(times) > 1 else times * 19
    return {
        "per_second": len(times) / took, "p50": cuts[9], "p95": cuts[18], "errors": errors, "answers": len(times)
    }  # fmt: skip


def run(url: str, connections: int, seconds: float, bodies: Path | None = None) -> dict[str, float]:
    """Have another process ask, so that it takes no time of this one's; return what `load` does."""
    command = [sys.executable, "-m", "benchmarks.load", url, str(connections), str(seconds)]
    done = subprocess.run(
        [*command, *([bodies] if bodies else [])],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=False,
        timeout=seconds + 2 * LONGEST_SECONDS,
    )
    if done.returncode:
        raise RuntimeError(done.stderr)
    return json.loads(done.stdout)


if __name__ == "__main__":
    given = Path(sys.argv[4]).read_text().splitlines() if len(sys.argv) > 4 else []
    print(json.dumps(asyncio.run(load(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), given))))
