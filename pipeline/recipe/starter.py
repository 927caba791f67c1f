"""A starter ``recipe.toml``: chosen settings are set, all others are comments with their defaults."""

from dataclasses import fields
from typing import Any

import tomli_w

from .recipe import Recipe

TITLES = {
    "model": "The network and its input",
    "data": "The images",
    "ranking": "Which kernels matter",
    "budget": "The budget: give one of speedup, latency, macs, params, size, max_drop",
    "repair": "Repair without labels",
    "recovery": "Fine-tuning",
    "measurement": "Measurement, and the precisions to export",
    "gates": "Gates: thresholds for exit code 0",
    "agic": "Settings of --rank-by agic",
    "picnn": "PICNN's pathway",
    "evidence": "The evidence page",
    "release": "Comparison with the last release, to fail on regressions",
}
EXAMPLES = {
    "weights": "weights.safetensors", "input_shape": [3, 224, 224], "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225],
    "output": "logits",
    "data": "images", "keep_classes": ["cat", "dog"], "drop_classes": ["cat"],
    "speedup": 1.5, "latency": 0.7, "macs": 0.5, "max_drop": 1.0, "params": 0.5, "size": 0.5,
    "flip": True, "require_drop_below": 1.0, "require_speedup": 1.2, "require_size_below": 10.0,
    "require_provider": "cpu", "evidence_kernels": 16,
    "torch_times": True, "target": "layer4", "filters": 64, "filters_per_class": 12.8, "baseline": "release/report.json",
}  # fmt: skip
"""Example values of settings without a default."""


def starter(recipe: Recipe) -> str:
    """The text of a recipe file that is read back as ``recipe``, with a comment for every setting."""
    usual = Recipe()
    lines = [
        "# A recipe for `secateur prune-and-export --recipe FILE`. Lines that start with # are defaults or examples.",
        "# Options on the command line take precedence.",
        "",
        "# The device of torch (auto, cpu or cuda), and the seed of all random choices.",
        *_pair("device", recipe.device, usual.device),
        *_pair("seed", recipe.seed, usual.seed),
    ]
    for name, title in TITLES.items():
        section, default = getattr(recipe, name), getattr(usual, name)
        lines += ["", f"[{name}]  # {title}"]
        for entry in fields(section):
            lines.append(f"# {entry.metadata['help']}")
            lines += _pair(entry.name, getattr(section, entry.name), getattr(default, entry.name))
    return "\n".join(lines) + "\n"


def _pair(name: str, value: Any, usual: Any) -> list[str]:
    """One line of TOML; a comment if the value is the default, with an example value if there is no default."""
    shown = EXAMPLES[name] if value is None else value
    text = tomli_w.dumps({name: list(shown) if isinstance(shown, tuple) else shown}).strip()
    lines = text.replace("\n    ", " ").replace(",\n]", " ]").splitlines()
    return [f"# {line}" for line in lines] if value == usual else lines
