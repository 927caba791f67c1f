"""Blocks of figures from logs of earlier runs, each with its command and machine."""

from typing import Any

from benchmarks.pages.blocks import interval, table

RESULTS = "recorded.json"


def single_runs(results: Any) -> list[str]:
    """Runs of ResNet-20 that no benchmark repeats."""
    rows = []
    for name in ("one epoch", "distilled"):
        row = results["resnet20"][name]
        drop = interval(row["drop_points"], row["low"], row["high"])
        rows.append((f"`{row['command']}`", f"{100 * row['macs_left']:.1f}%", f"{100 * row['accuracy']:.2f}%", drop))
    header = ("ResNet-20", "MACs left", "accuracy", "drop, points (95% CI)")
    return [f"{results['machine']}:", "", *table(header, rows)]


def rounds(results: Any) -> list[str]:
    """Several rounds, ResNet-20."""
    rows = [
        (
            f"{row['budget']:g}",
            str(row["rounds"]),
            interval(row["drop_points"], row["low"], row["high"]) if "low" in row else f"{row['drop_points']:.2f}",
        )
        for row in results["resnet20"]["rounds"]["rows"]
    ]
    return [f"{results['machine']}:", "", *table(("MACs left", "rounds", "drop, points"), rows)]


def other_statistic(results: Any) -> list[str]:
    """A ranking by another statistic of the contributions."""
    rows = results["resnet20"]["mean absolute contribution, zero"]["rows"]
    said = " and ".join(f"{row['drop_points']:.2f} points at {row['budget']:g}" for row in rows)
    return [f"Ranking by the mean absolute contribution against zero lost {said} of the MACs."]


def uniform_speed(results: Any) -> list[str]:
    """A cut that saves MACs but no time."""
    row = results["resnet20"]["uniform two thirds, batch 32"]
    return [
        "ResNet-20 at two thirds of its MACs by uniform shares ran no faster on ONNX Runtime's CPU "
        f"({row['speedup_low']:.2f} to {row['speedup_high']:.2f} at batch 32)."
    ]


def latency(results: Any) -> list[str]:
    """The measured result of a latency budget of 0.7."""
    found = results["latency budget"]
    rows = [(row["network"], interval(row["measured"], row["low"], row["high"], 3)) for row in found["rows"]]
    return [f"`{found['command']}`:", "", *table(("network", "measured fraction (95% CI)"), rows)]


def speedups(results: Any) -> list[str]:
    """Runs of the whole line to a budget of measured time."""
    found = results["speedup budgets"]
    rows = [
        (
            row["network"],
            f"`{row['command']}`",
            interval(row["measured"], row["low"], row["high"]),
            str(row["tries"]),
            interval(**_plain(row["exported"])) if row["exported"] else "the same file",
            f"{100 * row['macs_left']:.1f}%",
            ", ".join(name.rpartition(".")[0] for name in row["blocks"]) or "none",
            interval(row["drop_points"], row["drop_low"], row["drop_high"])
            if row["against"] == "labels"
            else "no labels",
        )
        for row in found["rows"]
    ]
    header = (
        *("network", "options", "measured speedup (95% CI)", "tries", "against the file as torch exports it"),
        *("MACs left", "blocks gone", "drop, points (95% CI)"),
    )
    return [f"{found['command']}:", "", *table(header, rows, left=2)]


def _plain(ratio: Any) -> dict[str, float]:
    return {"value": ratio["ratio"], "low": ratio["low"], "high": ratio["high"]}


def precisions(results: Any) -> list[str]:
    """Accuracy and speedup by precision."""
    found = results["precisions"]
    rows = [(row["network"], *(f"{row[name]:.2f}%" for name in ("fp32", "fp16", "int8"))) for row in found["rows"]]
    speedups = found["speedup of the cut network at batch 1, CPU"]
    rows.append(
        ("speedup of the pruned network, batch 1, CPU", *(f"{speedups[name]:.2f}" for name in ("fp32", "fp16", "int8")))
    )
    return [f"`{found['command']}`:", "", *table(("ResNet-20", "fp32", "fp16", "int8"), rows)]


def agic_designs(results: Any) -> list[str]:
    """Alternative designs of AGIC's scores."""
    found = results["agic designs"]
    rows = [
        (
            row["scores"],
            *(f"{row[f'{share} bn']:.1f} / {row[f'{share} reconstructed']:.1f}" for share in ("30%", "50%")),
        )
        for row in found["rows"]
    ]
    return table(("scores", "30%", "50%"), rows)


def gpu_time(results: Any) -> list[str]:
    """The breakdown of ResNet-50's time on a GPU."""
    found = results["resnet50 on an H200"]
    return [
        f"`{found['command']}`: channels last takes the whole network from {found['whole channels first ms']:.2f} to "
        f"{found['whole ms']:.2f} ms. Of these, {found['biases ms']:.1f} ms add biases and "
        f"{found['relu and sums ms']:.1f} ms are ReLU and residual sums. Half of the MACs, "
        f"by equal shares, leave {found['activations left']:.1f} of every activation.",
    ]


def picnn_tries(results: Any) -> list[str]:
    """Other attempts to lower ACC3."""
    found = results["picnn, one seed"]
    rows = [(row["what"], f"{row['acc3']:.1f}") for row in found["rows"]]
    caption = f"`{found['command']}` (the ceiling of MIS is {found['mis ceiling']:.3f} nats):"
    return [caption, "", *table(("with", "ACC3, %"), rows)]
