"""Makes ``network/digits.safetensors``, the weights of the embedded default. Run again: python scripts/train_digits.py"""

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

from secateur.common.environment import seed_everything
from secateur.network import digits
from secateur.network.digits import DigitsNetwork
from secateur.network.evaluation import evaluate
from secateur.network.images.digits_images import load_digits_splits
from secateur.network.images.pictures import Preprocessing
from secateur.network.training import TrainingSettings, train

SEED = 0
OUT = Path(__file__).resolve().parent.parent / "network" / "digits.safetensors"


def main() -> None:
    seed_everything(SEED)
    torch.use_deterministic_algorithms(True)
    splits = load_digits_splits(Preprocessing(digits.INPUT_SHAPE, digits.MEAN, digits.STD))
    module = DigitsNetwork()

    def validate(current: nn.Module) -> tuple[float, float]:
        result = evaluate(current, splits.validation)
        return result.loss, result.accuracy

    settings = TrainingSettings(epochs=60, batch_size=64, learning_rate=0.05, weight_decay=5e-4, flip=False, seed=SEED)
    history = train(
        module,
        splits.train,
        lambda logits, _images, labels: F.cross_entropy(logits, labels, label_smoothing=0.05),
        validate,
        settings,
    )
    save_file({name: tensor.contiguous() for name, tensor in module.state_dict().items()}, OUT)
    test = evaluate(module, splits.test)
    print(
        f"best epoch {history.best}, test accuracy {test.accuracy:.4f} on {test.images} images, {OUT.stat().st_size} bytes"
    )


if __name__ == "__main__":
    main()
