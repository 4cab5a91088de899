"""Run as a script by a Python that has Evidently (`tasks.report_evidently`): it imports nothing
else of DynaMMo.

`python -I evidently_page.py PAGE` reads {"reference": columns, "new": columns} as JSON, columns of
texts or numbers by name, and writes an HTML page that loads nothing from elsewhere.
"""

from __future__ import annotations

import json
import sys


def main(page: str) -> None:
    """Which columns have drifted, by Evidently's own choice of tests."""
    import pandas as pd
    from evidently import DataDefinition, Dataset, Report
    from evidently.presets import DataDriftPreset

    frames = {name: pd.DataFrame(columns) for name, columns in json.load(sys.stdin).items()}
    numbers = [name for name, kind in frames["new"].dtypes.items() if kind.kind == "f"]
    texts = [name for name in frames["new"] if name not in numbers]
    kinds = DataDefinition(numerical_columns=numbers, categorical_columns=texts)
    data = {
        name: Dataset.from_pandas(frame, data_definition=kinds) for name, frame in frames.items()
    }
    Report([DataDriftPreset()]).run(data["new"], data["reference"]).save_html(page)


if __name__ == "__main__":
    main(sys.argv[1])
