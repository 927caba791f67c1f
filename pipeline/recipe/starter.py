"""A first ``recipe.toml``: what was chosen as it is, everything else with its default as a comment."""

from dataclasses import fields
from typing import Any

import tomli_w

from .recipe import Recipe

TITLES = {
    "model": "The network, and what its images look like",
    "data": "The images",
    "ranking": "Which kernels matter",
    "budget": "How much may be left: give one of macs, latency, params, size, max_drop",
    "repair": "The repair without labels",
    "recovery": "The fine-tuning",
    "measurement": "How the files are measured, and in which precisions they are shipped",
    "gates": "What must hold for exit code 0",
    "agic": "The work that --rank-by agic may do",
    "picnn": "PICNN's pathway",
    "evidence": "The page on kernels and decisions",
    "release": "The last release, to fail on regressions",
}
EXAMPLES = {
    "weights": "weights.safetensors", "input_shape": [3, 224, 224], "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225],
    "data": "images", "keep_classes": ["cat", "dog"], "drop_classes": ["cat"], "macs": 0.5, "latency": 0.7, "max_drop": 1.0,
    "params": 0.5, "size": 0.5, "flip": True, "require_drop_below": 1.0, "require_speedup": 1.2, "require_size_below": 10.0,
    "require_provider": "cpu", "evidence_kernels": 16,
    "target": "layer4", "filters": 64, "filters_per_class": 12.8, "baseline": "release/report.json",
}  # fmt: skip
"""What a setting without a default may look like."""


def starter(recipe: Recipe) -> str:
    """The text of a recipe file that reads back as ``recipe``, with a comment for every setting."""
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
    """One line of TOML; a comment where the value is the default, with an example where there is no default."""
    shown = EXAMPLES[name] if value is None else value
    text = tomli_w.dumps({name: list(shown) if isinstance(shown, tuple) else shown}).strip()
    lines = text.replace("\n    ", " ").replace(",\n]", " ]").splitlines()
    return [f"# {line}" for line in lines] if value == usual else lines
