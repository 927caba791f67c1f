"""Tables of drops by measured speed, and of ResNet-50's shape."""

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.pages.blocks import interval, table, where

Row = Mapping[str, Any]


def drops(results: Any) -> list[str]:
    """The drop of every plan at every speed, by network, batch size, precision and repair."""
    lines = [f"{where(results)}; {results['data']}; speed against the clean file of the whole network:", ""]
    rows = results["rows"]
    for case in dict.fromkeys((row["network"], row["batch"], row["precision"], row["repair"]) for row in rows):
        mine = [row for row in rows if (row["network"], row["batch"], row["precision"], row["repair"]) == case]
        network, batch, precision, repair = case
        shown = [_shown(row) for row in sorted(mine, key=lambda row: (row["speed"], row["drop_points"]))]
        header = ("asked", "plan", "seed", "measured (95% CI)", "MACs left", "blocks gone", "drop, points (95% CI)")
        lines += [f"{network}, batch {batch}, {precision}, {repair}:", "", *table(header, shown, left=2), ""]
    return lines[:-1]


def clean(results: Any) -> list[str]:
    """Clean files of whole networks against the files as torch exports them."""
    rows = []
    for row in results["clean"]:
        ratio = row["clean_over_exported"]
        rows.append(
            (row["network"], str(row["batch"]), row["precision"], interval(ratio["ratio"], ratio["low"], ratio["high"]))
        )
    return table(("whole network", "batch", "precision", "clean over exported, speedup (95% CI)"), rows)


def shapes(results: Any) -> list[str]:
    """ResNet-50's shape on a GPU: plans by time, and torch-pruning."""
    lines: list[str] = []
    for machine, found in results.items():
        rows = []
        for row in found["latency"]:
            how = f"batch {row['batch']}{', CUDA graphs' * row['cuda_graphs']}{', biases fused' * bool(row['fused_biases'])}"
            for name, file in row["files"].items():
                ratios = [
                    interval(one["ratio"], one["low"], one["high"])
                    for one in (file["device_speedup"], file["speedup"])
                    if one
                ]
                rows.append(
                    (
                        how,
                        name,
                        f"{100 * found['macs_left'].get(name, 1):.1f}%",
                        f"{file['device_median_ms']:.2f}",
                        *ratios,
                    )
                )
        sessions = min(row["sessions"] for row in found["latency"])
        header = ("how", "file", "MACs left", "ms on the device", "speedup on the device (95% CI)", "end to end")
        lines += [
            f"{machine}, {found['precision']}, {sessions} sessions of each file; a table of "
            f"{found['table']['points']} points took {found['table']['seconds']:.0f} s:",
            "",
            *table(header, rows, left=2),
            *(["", found["stopped"]] if found.get("stopped") else []),
            "",
        ]
    return lines[:-1]


def blocks_gone(results: Any) -> list[str]:
    """The blocks of ResNet-50 that plans by time remove."""
    return [
        f"- {name}: {', '.join(layer.rpartition('.')[0] for layer in layers)}"
        for found in results.values()
        for name, layers in found["blocks_gone"].items()
    ]


def _shown(row: Row) -> Sequence[str]:
    measured, drop = row["speedup"], row["drop_interval"]
    name = f"{row['kind']} ({row['criterion']})" if "criterion" in row else row["kind"]
    return (
        f"{row['speed']:g}",
        name,
        str(row["seed"]),
        interval(measured["ratio"], measured["low"], measured["high"]),
        f"{100 * row['macs_left']:.1f}%",
        str(len(row["branches_gone"])),
        interval(row["drop_points"], drop["low"], drop["high"]),
    )
