"""``secateur bench``: compare any two ONNX classifiers."""

from pathlib import Path
from typing import Annotated

import typer

from .app import command, observed, print_json
from .options import (
    Batches,
    CudaGraphs,
    Data,
    InputShape,
    Json,
    Mean,
    Provider,
    Quiet,
    Seed,
    Std,
    Threads,
    value_of,
)


@command("bench")
def bench_command(
    baseline: Annotated[Path, typer.Argument(help="An ONNX classifier.")],
    pruned: Annotated[Path, typer.Argument(help="The ONNX file to compare with it.")],
    data: Data = None,
    input_shape: InputShape = None,
    mean: Mean = None,
    std: Std = None,
    batches: Batches = None,
    provider: Provider = None,
    threads: Threads = None,
    cuda_graphs: CudaGraphs = None,
    json: Json = False,
    seed: Seed = None,
    quiet: Quiet = False,
) -> None:
    """Compare latency, throughput and memory of two ONNX classifiers and, with --data, their accuracy."""
    from .terminal import show_table
    from .tools.bench import BenchSettings, bench

    lists = {"batches": batches, "input_shape": input_shape, "mean": mean, "std": std}
    settings = BenchSettings(
        **{name: value_of(name, value) for name, value in lists.items()},
        data=data,
        provider=provider or "auto",
        seed=seed or 0,
        threads=threads or 0,
        cuda_graphs=bool(cuda_graphs),
    )
    console, observer = observed(quiet, json)
    found = bench(baseline, pruned, settings, observer)
    if json:
        print_json(found.to_json())
    else:
        show_table(console, ("", "first", "second", "change (95% CI)"), found.rows())
