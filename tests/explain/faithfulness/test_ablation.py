import pytest
import torch
from torch import nn
from torch.nn import functional as F

from secateur.common.errors import InputError
from secateur.explain.faithfulness import ablation
from secateur.explain.faithfulness.ablation import ablation_drops, ablation_truth
from secateur.explain.gap.contributions import contributions
from secateur.explain.ranking import rank_kernels
from secateur.explain.scores import RankingTask
from secateur.network.graph.execution import output_node
from secateur.network.graph.trace import reading_points, trace
from secateur.network.load import load_model

NAMES = ("chain", "padded", "gated", "grouped", "inverted", "dense")


@pytest.fixture
def case(tiny, network_of, noise_images, spread):
    def build(name, count=7, seed=0):
        return spread(network_of(tiny(name, seed)), noise_images(count, seed=seed))

    return build


class Overwriting:
    """Hooks on the modules that end a layer: one channel of what they give is overwritten, every time."""

    def __init__(self, view, layer):
        self.view, self.points = view, reading_points(view)[layer]
        self.dim = -1 if isinstance(view.get_submodule(layer), nn.Linear) else 1

    def run(self, x, channel=None, value=0.0):
        seen = []

        def hook(_module, _inputs, output):
            seen.append(output.movedim(self.dim, 1).flatten(2) if output.dim() > 2 else output.unsqueeze(2))
            if channel is None:
                return None
            output = output.clone()
            output.select(self.dim, channel).fill_(value)
            return output

        handles = [self.view.get_submodule(point).register_forward_hook(hook) for point in self.points]
        with torch.no_grad():
            logits = self.view(x)
        for handle in handles:
            handle.remove()
        return logits, torch.cat(seen, 2)

    def averages(self, x):
        return self.run(x)[1].double().mean((0, 2)).float()


def brute_force(network, images, fill):
    """One full forward pass for every kernel; (logits, whole logits) and what each kernel was set to."""
    view, x = trace(network.module, network.example()), images.preprocessing.normalise(images.pixels())
    for layer in reading_points(view):
        layer_of = Overwriting(view, layer)
        values = layer_of.averages(x) if fill == "mean" else torch.zeros_like(layer_of.averages(x))
        whole, _ = layer_of.run(x)
        logits = [layer_of.run(x, channel, value)[0] for channel, value in enumerate(values.tolist())]
        yield layer, torch.stack(logits, 1), whole, values


def agrees(network, images, fill, **options):
    found = ablation_truth(network, images, fill=fill, **options)
    own = images.labels
    compared = 0
    for layer, logits, whole, values in brute_force(network, images, fill):
        part, decision = found.layers[layer], whole.gather(1, own.unsqueeze(1))
        left = logits[torch.arange(len(own)), :, own]
        scale = float(whole.abs().max())
        assert torch.allclose(part.fill, values, rtol=1e-4, atol=1e-6 * max(scale, 1))
        assert part.drops.shape == part.right.shape == left.shape
        assert part.drops.dtype == torch.float32
        assert torch.allclose(part.drops, decision - left, atol=1e-5 * scale)
        probability = whole.softmax(1).gather(1, own.unsqueeze(1)) - logits.softmax(2)[torch.arange(len(own)), :, own]
        assert torch.allclose(part.probability_drops, probability, atol=1e-5 * max(scale, 1))
        assert torch.equal(part.right, logits.argmax(2) == own.unsqueeze(1))
        assert torch.equal(found.right, whole.argmax(1) == own)
        compared += part.drops.numel()
    assert set(found.layers) == set(reading_points(trace(network.module, network.example())))
    assert compared > 0


@pytest.mark.parametrize("fill", ["mean", "zero"])
@pytest.mark.parametrize("name", NAMES)
def test_one_full_pass_a_kernel_gives_the_same(case, name, fill):
    agrees(*case(name), fill, batch_size=4)


def test_a_few_rows_at_a_time_give_the_same(case, monkeypatch):
    monkeypatch.setattr(ablation, "PASS_BYTES", 20_000)
    monkeypatch.setattr(ablation, "KEPT_BYTES", 60_000)
    agrees(*case("padded"), "mean")


def test_the_trained_digits():
    network = load_model("digits")
    from secateur.network.images.load import load_images

    images = load_images("digits", network.preprocessing).train.sample(12, 0)
    agrees(network, images, "mean")


class Twice(nn.Module):
    """A layer that reads its own output, with a BatchNorm that both calls share."""

    def __init__(self):
        super().__init__()
        self.first, self.again, self.head = nn.Conv2d(3, 5, 3), nn.Conv2d(5, 5, 3, padding=1), nn.Linear(5, 4)
        self.norm = nn.BatchNorm2d(5)

    def forward(self, x):
        x = F.relu(self.norm(self.again(F.relu(self.first(x)))))
        return self.head(F.relu(self.norm(self.again(F.max_pool2d(x, 2)))).mean((2, 3)))


class Pair(nn.Module):
    """A layer called side by side: neither call sees the other."""

    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 6, 3), nn.Linear(6, 4)

    def forward(self, x):
        return self.head(F.relu(self.conv(x)).mean((2, 3)) - F.relu(self.conv(x.flip(3) * 2)).amax((2, 3)))


class Tokens(nn.Module):
    """A linear layer over places: channels come last."""

    def __init__(self):
        super().__init__()
        self.conv, self.wide, self.head = nn.Conv2d(3, 6, 3), nn.Linear(6, 10), nn.Linear(10, 4)

    def forward(self, x):
        return self.head(F.relu(self.wide(self.conv(x).flatten(2).transpose(1, 2))).amax(1))


@pytest.mark.parametrize("kind", [Twice, Pair, Tokens])
def test_layers_called_several_times_and_linear_layers_over_places(shake, network_of, noise_images, kind):
    agrees(network_of(shake(kind())), noise_images(5), "mean")


class Unread(nn.Module):
    """A convolution whose output reaches no class score."""

    def __init__(self):
        super().__init__()
        self.conv, self.aside, self.head = nn.Conv2d(3, 6, 3), nn.Conv2d(3, 5, 3), nn.Linear(6, 4)

    def forward(self, x):
        self.aside(x)
        return self.head(F.relu(self.conv(x)).mean((2, 3)))


def test_what_reaches_no_decision_loses_nothing(shake, network_of, noise_images):
    network, images = network_of(shake(Unread())), noise_images(6)
    found = ablation_truth(network, images)
    assert not found.layers["aside"].drops.any()
    assert torch.equal(found.layers["aside"].right, found.right.unsqueeze(1).expand(6, 5))
    assert found.layers["conv"].drops.any()


def test_a_linear_network_loses_its_contributions(networks, shake, network_of, noise_images):
    """Linear in every map: the first-order effect, summed over places, is the truth."""
    network, images = network_of(shake(networks.Plain())), noise_images(12)
    estimated, truth = contributions(network, images), ablation_truth(network, images)
    for layer in ("conv1", "conv2"):
        alpha, drops = estimated.layers[layer].alpha("mean", summed=True), truth.layers[layer].drops
        assert torch.allclose(alpha, drops, atol=1e-5 * float(drops.abs().max()))
        for name in ("mean", "mean_absolute", "root_mean_square"):
            estimate = estimated.statistic(name, "mean", summed=True)[layer]
            assert torch.allclose(estimate, truth.statistic(name)[layer], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", ["padded", "gated"])
def test_captum_agrees(case, name):
    """Its ablation of a layer, every channel a feature of its own, and the channel's average as the baseline."""
    from captum.attr import LayerFeatureAblation

    network, images = case(name)
    view, x = trace(network.module, network.example()), images.pixels()
    found = ablation_truth(network, images)
    for layer, (point,) in reading_points(view).items():
        _, shown = Overwriting(view, layer).run(x[:1])
        channels, places = shown.shape[1:]
        shape = (1, channels) if isinstance(view.get_submodule(layer), nn.Linear) else None
        shape = shape or (1, channels, int(places**0.5), int(places**0.5))
        value = found.layers[layer].fill.view(1, channels, *[1] * (len(shape) - 2)).expand(len(x), *shape[1:])
        mask = torch.arange(channels).view(1, channels, *[1] * (len(shape) - 2)).expand(shape)
        peer = LayerFeatureAblation(view, view.get_submodule(point))
        wanted = peer.attribute(x, layer_baselines=value, target=images.labels, layer_mask=mask)
        wanted = wanted.flatten(2)[:, :, 0] if wanted.dim() == 4 else wanted
        assert torch.allclose(found.layers[layer].drops, wanted, atol=1e-5 * float(wanted.abs().max()) + 1e-6)


def test_only_the_layers_asked_for(case):
    network, images = case("padded")
    found, whole = ablation_truth(network, images, layers=["layer2.0.conv1"]), ablation_truth(network, images)
    assert list(found.layers) == ["layer2.0.conv1"]
    assert torch.allclose(found.layers["layer2.0.conv1"].drops, whole.layers["layer2.0.conv1"].drops, atol=1e-6)


def test_an_unknown_layer_and_an_unknown_fill_are_refused(case):
    with pytest.raises(InputError, match=r"no convolution or linear layer 'conv9' to ablate. It has: conv1, conv2"):
        ablation_truth(*case("chain"), layers=["conv9"])
    with pytest.raises(ValueError, match="mean or zero"):
        ablation_truth(*case("chain"), fill="median")


class Merged(nn.Module):
    """Its linear layer sees four rows an image."""

    def __init__(self):
        super().__init__()
        self.conv, self.mix, self.head = nn.Conv2d(3, 6, 3, 5), nn.Linear(6, 6), nn.Linear(6, 4)

    def forward(self, x):
        places = self.conv(x).flatten(2).transpose(1, 2)
        return self.head(self.mix(places.reshape(-1, 6)).view(x.shape[0], -1, 6).mean(1))


def test_a_layer_with_other_rows_than_images_is_refused_by_name(network_of, noise_images):
    with pytest.raises(InputError, match="mix gives 12 rows for 3 images"):
        ablation_truth(network_of(Merged()), noise_images(3))
    assert ablation_truth(network_of(Merged()), noise_images(3), layers=["conv"]).layers["conv"].drops.any()


def test_the_network_stays_as_it_was_and_progress_is_told(case):
    network, images = case("inverted")
    network.module.train()
    state = {key: value.clone() for key, value in network.module.state_dict().items()}
    told = []
    found = ablation_truth(network, images, batch_size=3, progress=lambda done, total: told.append((done, total)))
    assert all(torch.equal(state[key], value) for key, value in network.module.state_dict().items())
    assert network.module.training
    kernels = sum(part.drops.shape[1] for part in found.layers.values())
    assert told[-1] == (7 * kernels, 7 * kernels)
    assert [done for done, _ in told] == sorted(done for done, _ in told)


@pytest.mark.parametrize(("first", "second"), [("conv1", "layer2.0.conv1"), ("layer1.0.conv2", "layer3.0.conv1")])
def test_drops_of_a_kernel_at_a_place(case, first, second):
    """Decisions in the middle of the network, some of them on one image, against one full pass a kernel."""
    network, images = case("padded", 4)
    view, x = trace(network.module, network.example()), images.pixels()
    source, target = (next(node for node in view.graph.nodes if node.target == name) for name in (first, second))
    decisions = torch.tensor([[3, 2, 0, 1], [0, 5, 2, 2], [3, 2, 1, 1], [3, 7, 2, 0], [1, 0, 1, 2]])
    with torch.no_grad():
        maps = {}
        for name in (first, second):
            keep = view.get_submodule(name).register_forward_hook(
                lambda _m, _i, out, name=name: maps.__setitem__(name, out)
            )
            view(x)
            keep.remove()
        fill, whole = maps[first].mean((0, 2, 3)), maps[second]
        wanted = torch.empty(len(decisions), len(fill))
        for channel, value in enumerate(fill.tolist()):

            def overwrite(_module, _inputs, output, channel=channel, value=value):
                output = output.clone()
                output[:, channel] = value
                return output

            handles = [
                view.get_submodule(first).register_forward_hook(overwrite),
                view.get_submodule(second).register_forward_hook(lambda _m, _i, out: maps.__setitem__("without", out)),
            ]
            view(x)
            for handle in handles:
                handle.remove()
            for row, (image, kernel, y, place) in enumerate(decisions.tolist()):
                wanted[row, channel] = whole[image, kernel, y, place] - maps["without"][image, kernel, y, place]
    got = ablation_drops(view, source, target, x, decisions, fill)
    assert wanted.abs().max() > 0
    assert torch.allclose(got, wanted, atol=1e-5 * float(wanted.abs().max()))


def test_drops_of_class_scores_are_the_truth(case):
    network, images = case("gated")
    view = trace(network.module, network.example())
    truth = ablation_truth(network, images)
    source = next(node for node in view.graph.nodes if node.target == reading_points(view)["last"][0])
    decisions = torch.stack([torch.arange(7), images.labels], 1).flip(0)
    got = ablation_drops(view, source, output_node(view), images.pixels(), decisions, truth.layers["last"].fill)
    assert torch.allclose(got.flip(0), truth.layers["last"].drops, atol=1e-6)
    with pytest.raises(ValueError, match="does not depend"):
        ablation_drops(view, output_node(view), source, images.pixels(), decisions, truth.layers["last"].fill)


def test_accuracy_reduction_is_counted_image_by_image(case):
    network, images = case("chain", 20)
    found = ablation_truth(network, images, fill="zero")
    per_class = found.accuracy_reduction_per_class()
    for layer, logits, whole, _ in brute_force(network, images, "zero"):
        right = (whole.argmax(1) == images.labels).tolist()
        for channel in range(logits.shape[1]):
            still = (logits[:, channel].argmax(1) == images.labels).tolist()
            lost = [100 * (before - after) for before, after in zip(right, still, strict=True)]
            assert found.accuracy_reduction()[layer][channel] == pytest.approx(sum(lost) / 20, abs=1e-4)
            for label in range(4):
                members = [row for row, own in zip(lost, images.labels.tolist(), strict=True) if own == label]
                wanted = sum(members) / len(members) if members else 0
                assert per_class[layer][label, channel] == pytest.approx(wanted, abs=1e-4)


def test_car_orders_by_accuracy_then_by_probability(case):
    network, images = case("chain", 20)
    scores = rank_kernels(RankingTask(network, images), "car")
    found = ablation_truth(network, images, fill="zero")
    ties = 0
    assert any(points.any() for points in found.accuracy_reduction().values())
    for layer, points in found.accuracy_reduction().items():
        lost = (points / 5).round().int().tolist()  # in images
        drops = found.layers[layer].probability_drops.double().mean(0).tolist()
        order = scores.layers[layer].argsort().tolist()
        assert order == sorted(range(len(lost)), key=lambda kernel: (lost[kernel], drops[kernel]))
        ties += len(lost) - len(set(lost))
        assert (scores.layers[layer] - points).abs().max() < 2.5
    assert ties > 0
    assert all(torch.equal(scores.per_class[k], v) for k, v in found.accuracy_reduction_per_class().items())


def test_car_looks_at_a_seeded_sample(case, monkeypatch):
    monkeypatch.setattr(ablation, "CAR_IMAGES", 8)
    network, images = case("chain", 20)
    first, again, other = (rank_kernels(RankingTask(network, images, seed), "car") for seed in (1, 1, 2))
    assert first.details["images"] == 8
    assert all(torch.equal(first.layers[layer], again.layers[layer]) for layer in first.layers)
    assert not all(torch.equal(first.layers[layer], other.layers[layer]) for layer in first.layers)
