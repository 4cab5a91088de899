"""`python -m dynammo.federated`: a round on Flower's simulation, in an environment with Flower."""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path

from dynammo.config import load_config
from dynammo.errors import DynammoError


def main() -> None:
    """Hold a round and write it to a folder."""
    parser = argparse.ArgumentParser(prog="python -m dynammo.federated", description=__doc__)
    parser.add_argument("config", type=Path, help="the learner's configuration, JSON")
    parser.add_argument("out", type=Path, help="folder for the round")
    parser.add_argument("sites", nargs="+", help="a batch for each site")
    parser.add_argument("--min-patients", type=int, default=5)
    parser.add_argument("--timeout", type=float, default=3600, help="seconds a message")
    parser.add_argument("--learner", type=Path, help="folder of the learner, if there is one")
    parser.add_argument("--epsilon", type=float, default=math.inf, help="of noise on statistics")
    parser.add_argument("--rounds", type=int, default=1, help="of training")
    given = parser.parse_args()
    try:
        from dynammo.extras import needs
        from dynammo.federated.app import Asked, client_app, server_app

        with needs("federated"):
            from flwr.simulation import run_simulation

        config = load_config(None, json.loads(given.config.read_text()))
        count = len(given.sites)
        out, learner = given.out.absolute(), given.learner
        asked = Asked(
            *(config, given.min_patients, count, given.timeout, out, learner),
            *(given.epsilon, given.rounds),
        )
        run_simulation(server_app(asked), client_app(given.sites), count)
    except DynammoError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
