"""Generate the tables and pictures of the documentation from `benchmarks/results/*.json`.

Usage: python -m benchmarks.pages [--check]
"""

import argparse
import sys

from benchmarks.pages.blocks import ROOT, drift, filled, walk
from benchmarks.pages.pictures import differing, drawn


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--check", action="store_true", help="change nothing; exit with 1 if a block differs from its results"
    )
    check = parser.parse_args().check
    wrong = 0
    for path, text in walk(ROOT):
        names = drift(text)
        for name in names:
            print(f"{path.relative_to(ROOT)}: {name} {'differs from its results' if check else 'written'}")
        wrong += len(names)
        if names and not check:
            path.write_text(filled(text), encoding="utf-8")
    for picture in differing():
        print(f"{picture} {'differs from its results' if check else 'drawn'}")
        wrong += 1
        if not check:
            (ROOT / picture).write_text(drawn(picture), encoding="utf-8")
    if check and wrong:
        print("Run `make figures`.")
        sys.exit(1)


if __name__ == "__main__":
    main()
