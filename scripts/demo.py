"""The story of a learner, on handwritten digits: `make demo`.

Batches arrive, are learnt and deleted; then one is forgotten again. Everything is in `demo/`.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

HERE = Path("demo")
BATCHES = {"first": "0123", "second": "456", "third": "789"}


def main() -> int:
    """Tell it."""
    os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "WARNING")
    os.environ["DYNAMMO_LEARNERS"] = str(HERE / "learners")
    import flows  # noqa: F401  (its settings must be there before Prefect is imported)
    from dynammo.data.sources.loading import load_source
    from flows.cli.learner import forget, history, learn

    shutil.rmtree(HERE, ignore_errors=True)
    digits = HERE / "digits"
    load_source("digits", digits, {})

    def say(text: str) -> None:
        print(f"\n=== {text}", flush=True)

    say("A classifier knows four digits.")
    for name, classes in BATCHES.items():
        batch = HERE / "arrived" / name
        for split in ("train", "test"):
            for digit in classes:
                shutil.copytree(digits / split / digit, batch / split / digit)
        if name != "first":
            say(f"{', '.join(classes)} arrive; the images of before are gone.")
        learn("demo", batch, None, None)
        shutil.rmtree(batch)
    say("The second batch is to be forgotten again.")
    forget("demo", "2", None, None)
    say("What there is:")
    history("demo")
    print(f"\nThe learner is in {HERE}/learners/demo; docs/how-to/learner.md says what it can do.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
