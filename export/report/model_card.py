"""The model card of model.onnx: README.md in Hugging Face's format, with YAML front matter and figures with their intervals."""

import re
from collections.abc import Mapping
from typing import Any

from ..measure.accuracy import MEASURES
from .wording import markdown_cell

Report = Mapping[str, Any]


def front_matter(report: Report) -> dict[str, Any]:
    """The card's metadata, by Hugging Face's model card specification; ``model-index`` holds the measurements.

    The licence is left to the publisher: it is that of the original network, which secateur does not know.
    """
    recipe, pruned = report["recipe"], report["pruned"]
    data = data_name(report)
    kind = re.sub(r"[^a-z0-9._-]+", "-", data.lower()).strip("-") or "images"
    about = MEASURES[report["accuracy_against"]]
    return {
        "library_name": "onnx",
        "pipeline_tag": "image-classification",
        "tags": ["onnx", "onnxruntime", "image-classification", "pruning", "secateur"],
        "metrics": ["accuracy"],
        "model-index": [
            {
                "name": model_name(report),
                "results": [
                    {
                        "task": {"type": "image-classification", "name": "Image classification"},
                        "dataset": {"type": kind, "name": data, "split": "test"},
                        "metrics": [
                            {
                                "type": "accuracy",
                                "name": f"{about}, pruned by {recipe['ranking']['rank_by']}",
                                "value": pruned["accuracy"],
                                "verified": False,
                            }
                        ],
                    }
                ],
            }
        ],
    }


def model_name(report: Report) -> str:
    """The network's name on the card."""
    return f"{report['model'].rpartition(':')[2] or report['model']}, pruned"


def data_name(report: Report) -> str:
    """The name of the data set: the value of --data, without folders."""
    given = report["recipe"].get("data", {}).get("data") or report["model"]
    name = str(given).replace("\\", "/").rstrip("/").rpartition("/")[2]
    reader = str(given).partition(":")[0]
    return reader if reader in ("cifar10", "cifar100", "fashion-mnist") else name or "images"


def yaml_of(value: Any, indent: int = 0) -> str:
    """Plain nested values as YAML in block form; strings are quoted as in JSON, which is valid YAML."""
    import json

    pad, lines = "  " * indent, []
    if isinstance(value, Mapping):
        for key, item in value.items():
            if isinstance(item, Mapping | list):
                lines += [f"{pad}{key}:", yaml_of(item, indent + 1)]
            else:
                lines.append(f"{pad}{key}: {json.dumps(item)}")
    else:
        for item in value:
            if isinstance(item, Mapping):
                first, *rest = yaml_of(item, indent + 1).split("\n")
                lines += [f"{pad}- {first.strip()}", *rest]
            else:
                lines.append(f"{pad}- {json.dumps(item)}")
    return "\n".join(lines)


def card_view(report: Report) -> dict[str, Any]:
    """The variables of the card's template besides the report."""
    gone = [layer for layer in report["layers"] if layer["after"] < layer["before"]]
    return {
        "report": report,
        "front": yaml_of(front_matter(report)),
        "name": markdown_cell(model_name(report)),
        "data": markdown_cell(data_name(report)),
        "cut": len(gone),
        "removed": sum(layer["before"] - layer["after"] for layer in gone),
        "classes": sum(value is not None for value in report["pruned"]["accuracy_per_class"].values()),
    }
