"""Deal the training images of a data set out to sites, to try federated learning with.

Writes a CSV a site beside the manifest, `by_class_a.csv` or `by_patient_a.csv` and so on, in the
form that `dynammo federate` takes. By class, a class is at one site; by patient, a patient (column
`group`) is at one site, and about as many images of each class are at each. No test image is used.

    python benchmarks/federated_sites.py data/skin8/manifest.csv class
"""

from __future__ import annotations

import argparse
from pathlib import Path
from string import ascii_lowercase

import numpy as np
import pandas as pd
from sklearn.model_selection import StratifiedGroupKFold


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "manifest", type=Path, help="CSV with the columns file, split, class, group"
    )
    parser.add_argument("by", choices=["class", "patient"])
    parser.add_argument("--sites", type=int, default=3, help="default: 3")
    parser.add_argument("--seed", type=int, default=1, help="of the patients' order; default: 1")
    given = parser.parse_args()
    rows = pd.read_csv(given.manifest, dtype=str, keep_default_na=False)
    rows = rows[rows["split"] == "train"].reset_index(drop=True)
    if given.by == "class":
        names = np.array_split(sorted(set(rows["class"])), given.sites)
        sites = [rows.index[rows["class"].isin(own)] for own in names]
    else:
        groups = rows["group"].where(rows["group"] != "", rows["file"])
        folds = StratifiedGroupKFold(given.sites, shuffle=True, random_state=given.seed)
        sites = [own for _, own in folds.split(rows, rows["class"], groups)]
    for letter, own in zip(ascii_lowercase, sites, strict=False):
        output = given.manifest.with_name(f"by_{given.by}_{letter}.csv")
        rows.loc[own].to_csv(output, index=False)
        counts = rows.loc[own, "class"].value_counts().sort_index()
        print(f"{output}: {', '.join(f'{name} {count}' for name, count in counts.items())}")


if __name__ == "__main__":
    main()
