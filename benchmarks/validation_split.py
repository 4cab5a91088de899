r"""Cut a validation split from the training images of a data set, to choose settings by.

Writes a CSV manifest whose `test` rows are a fifth of the training images, by class and never
splitting a group; the real test images are not in it. Settings are chosen on it, and only the
chosen ones are then measured on the test images.

    python benchmarks/validation_split.py data/skin8/manifest.csv
    dynammo run --params benchmarks/medical.yaml --set data.name=skin8-val --set data.source=csv \
        --set data.path=data/skin8/validation.csv
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd
from sklearn.model_selection import StratifiedGroupKFold


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "manifest", type=Path, help="CSV with the columns file, split, class, group"
    )
    parser.add_argument("--output", type=Path, help="default: validation.csv beside the manifest")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    rows = pd.read_csv(arguments.manifest, dtype=str, keep_default_na=False)
    rows = rows[rows["split"] == "train"].reset_index(drop=True)
    groups = rows["group"].where(rows["group"] != "", rows["file"])
    folds = StratifiedGroupKFold(5, shuffle=True, random_state=arguments.seed)
    _, validation = next(folds.split(rows, rows["class"], groups))
    rows.loc[validation, "split"] = "test"
    output = arguments.output or arguments.manifest.with_name("validation.csv")
    rows.to_csv(output, index=False)
    print(f"{output}: {len(rows) - len(validation)} training, {len(validation)} validation images")


if __name__ == "__main__":
    main()
