"""A small made-up report, with names that would break a page which does not escape them."""

import copy

import pytest

from secateur.export.report.content import schema

HOSTILE = "<script>alert('x')</script>|`a`"


@pytest.fixture(scope="session")
def schema_of_reports():
    return schema()


def layers_and_gates():
    return {
        "layers": [
            {
                "name": "conv1",
                "group": "conv1",
                "before": 8,
                "after": 4,
                "aligned": True,
                "decided_by": "gap",
                "locked": "",
            }
        ],
        "gates": [
            {"name": "budget", "value": 0.5, "limit": 0.5, "verdict": "pass", "meaning": "left"},
            {"name": "drop", "value": 3.0, "limit": 2.5, "verdict": "fail", "meaning": "upper end"},
            {"name": "speedup", "value": None, "limit": 1.2, "verdict": "not measured", "meaning": "lower end"},
        ],
    }


def repair_and_training():
    return {
        "repair": {
            "kind": "bn",
            "images": 10,
            "steps": [{"name": "bn", "divergence_before": 1.0, "divergence_after": 0.5, "kept": True}],
            "compensated": [],
            "reestimated": [],
            "fits": [],
            "reconstruction_images": 0,
        },
        "history": {
            "best": 1,
            "epochs": [
                {"epoch": 0, "train_loss": None, "validation_loss": 1.0, "validation_accuracy": 0.5},
                {"epoch": 1, "train_loss": 0.5, "validation_loss": 0.5, "validation_accuracy": 0.9},
            ],
        },
    }


def environment():
    return {
        "environment": {
            "python": "3",
            "system": "s",
            "processor": "p",
            "cores": 2,
            "memory_gib": 1.0,
            "gpu": None,
            "cuda": None,
            "packages": {},
        },
    }


@pytest.fixture(scope="session")
def report():
    side = {
        "accuracy": 0.9,
        "accuracy_interval": {"low": 0.88, "high": 0.92},
        "accuracy_per_class": {HOSTILE: 0.8, "dog": 1.0, "empty": None},
        "macs": 4_000_000,
        "parameters": 1000,
        "onnx_bytes": 4096,
        "onnx_sha256": "0" * 64,
        "opset": 20,
        "latency": {"1": {"median_ms": 1.0, "p95_ms": 1.5, "samples": 30}},
    }
    pruned = {**copy.deepcopy(side), "accuracy": 0.88, "macs": 2_000_000}
    ratio = {"ratio": 1.4, "low": 1.3, "high": 1.5}
    return {
        "schema_version": 1,
        "secateur_version": "0",
        "model": HOSTILE,
        "exit_code": 1,
        "accuracy_against": "labels",
        "baseline": side,
        "pruned": pruned,
        "drop": {"points": 2.0, "low": 1.0, "high": 3.0, "images": 500},
        "ratios": {"macs": 2.0, "parameters": 1.0, "onnx_bytes": 1.0, "latency": {"1": ratio}},
        "noise_floor": {"1": {"ratio": 1.0, "low": 0.99, "high": 1.01}},
        "parity": {"max_relative_difference": 1e-7, "batch_sizes": [1, 3, 8]},
        "provider": "cpu",
        **layers_and_gates(),
        "search": None,
        "latency_budget": None,
        "rounds": [{"steps": []}],
        **repair_and_training(),
        "timings_s": {"load": 1.0},
        **environment(),
        "recipe": {"ranking": {"rank_by": "gap"}, "budget": {"macs": 0.5}, "recovery": {"epochs": 1}, "seed": 0},
        "inputs": {
            "weights_sha256": "0" * 64,
            "data_listing_sha256": "0" * 64,
            "images": {"test": 500},
            "unlabelled": [],
        },
        "notes": [HOSTILE],
    }
