"""Try every case, or those of some groups, and print how each group ended."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from tests.hostile.corpus.all import all_cases
from tests.hostile.corpus.judging import HANDLED, REFUSED, Fault, judge


def main() -> int:
    """Exit status 1 where anything was not as it should be."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("groups", nargs="*", help="default: all")
    given = parser.parse_args()
    ends: dict[str, Counter[str]] = {}
    longest, started = (0.0, ""), time.perf_counter()
    for case in all_cases():
        if given.groups and case.group not in given.groups:
            continue
        begun = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            try:
                end = judge(case, Path(folder))
            except Fault as fault:
                end = "fault"
                print(f"{case.group}: {case.name}: {fault}", file=sys.stderr, flush=True)
        longest = max(longest, (time.perf_counter() - begun, f"{case.group}: {case.name}"))
        ends.setdefault(case.group, Counter())[end] += 1
    total = sum(ends.values(), Counter())
    print(f"| input | tried | {REFUSED} | {HANDLED} | otherwise |\n|---|---:|---:|---:|---:|")
    for group, own in {**ends, "all": total}.items():
        print(f"| {group} | {own.total()} | {own[REFUSED]} | {own[HANDLED]} | {own['fault']} |")
    print(f"{time.perf_counter() - started:.0f} s; the longest {longest[0]:.1f} s: {longest[1]}")
    return 1 if total["fault"] else 0


if __name__ == "__main__":
    sys.exit(main())
