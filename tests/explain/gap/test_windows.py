import torch
from torch import nn

from gap_by_hand import close
from secateur.explain.gap.contributions import contributions


class InWindows(nn.Module):
    """A linear layer over places, all at once or in windows of 2 x 2 that it takes as images of their own."""

    def __init__(self, windows):
        super().__init__()
        torch.manual_seed(0)
        self.windows = windows
        self.first, self.inner, self.head = nn.Conv2d(3, 6, 3, padding=1), nn.Linear(6, 5), nn.Linear(5, 4)

    def forward(self, x):
        x = self.first(x).permute(0, 2, 3, 1)
        n, height, width, channels = x.shape
        if self.windows:
            x = x.view(n, height // 2, 2, width // 2, 2, channels).permute(0, 1, 3, 2, 4, 5).reshape(-1, 4, channels)
        x = torch.relu(self.inner(x))
        return self.head(x.reshape(n, -1, 5).square().mean(1))


def test_windows_are_places_of_their_image(network_of, noise_images):
    images = noise_images(7)
    whole, parts = (contributions(network_of(InWindows(windows)), images, batch_size=3) for windows in (False, True))
    for layer in whole.layers:
        for name in ("zero", "gradient", "average"):
            assert close(getattr(parts.layers[layer], name), getattr(whole.layers[layer], name))
        assert parts.layers[layer].places == whole.layers[layer].places
