"""Commands as a shell gives them, in this process."""

from typer.testing import CliRunner

from secateur.cli.commands import app

NETWORK = """
import torch
from torch import nn
INPUT_SHAPE = (3, 8, 8)
NORMALISATION = {"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}
def build(classes=2):
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1),
                         nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, classes))
def three():
    return build(3)
"""
"""A network file as a user writes one."""


def secateur(*arguments):
    """Run in this process: (exit code, stdout, stderr)."""
    done = CliRunner().invoke(app, list(map(str, arguments)))
    return done.exit_code, done.stdout, done.stderr
