import pytest
import torch

from secateur.common.errors import InputError, UsageError
from secateur.explain.agic.encoder import EncoderSettings, GraphEncoder, Standardiser, embed, pretrain
from secateur.explain.faithfulness.graph_classifier import ClassifierSettings, Readout, train_classifier
from secateur.explain.faithfulness.graph_controls import ControlledGraphs

ENCODER = EncoderSettings(steps=60)
COUNT, CHANCE = 150, 1 / 3


@pytest.fixture(scope="module")
def embedded(planted):
    """Embeddings of training and of test graphs, by where the class is planted and by control; each pair is made once."""
    made = {}

    def build(where, control="full"):
        if (where, control) not in made:
            training, held_out = (
                ControlledGraphs(planted(COUNT, where, seed), control, planted.layout, seed=seed) for seed in (1, 2)
            )
            standardiser = Standardiser.fit(training)
            encoder = GraphEncoder(planted.layout, standardiser.features, ENCODER)
            pretrain(encoder, standardiser, training)
            made[where, control] = tuple(embed(encoder, standardiser, graphs) for graphs in (training, held_out))
        return made[where, control]

    return build


def accuracy(pair, settings, targets=None):
    training, held_out = pair
    classifier = train_classifier(training, training.labels if targets is None else targets, settings)
    return (classifier.predict(held_out).argmax(1) == held_out.labels).float().mean().item()


@pytest.mark.parametrize("readout", ["mean", "kernels"])
@pytest.mark.parametrize(
    ("where", "control", "found"),
    [
        ("features", "full", True),
        ("features", "nodes_only", True),
        ("features", "edges_only", False),
        ("edges", "full", True),
        ("edges", "nodes_only", False),
        (
            "edges",
            "edges_only",
            False,
        ),  # the structure is one and the same; the class is only in which kernel stands where
        ("edges", "shuffled", False),
        ("nowhere", "full", False),
    ],
)
def test_the_class_is_found_where_it_was_planted(embedded, where, control, found, readout):
    right = accuracy(embedded(where, control), ClassifierSettings(readout=readout, epochs=40))
    if found:
        assert right > 0.9
    else:
        assert abs(right - CHANCE) < 4 * (CHANCE * (1 - CHANCE) / COUNT) ** 0.5


def test_permuted_labels_are_at_chance(embedded):
    """On average over permutations: where classes lie apart, one permutation gives a whole class the same wrong label."""
    training = embedded("features")[0]
    found = []
    for seed in range(12):
        order = torch.randperm(COUNT, generator=torch.Generator().manual_seed(seed))
        found.append(accuracy(embedded("features"), ClassifierSettings(epochs=20), training.labels[order]))
    assert abs(sum(found) / len(found) - CHANCE) < 0.2


def test_readouts_by_hand(embedded):
    training, held_out = embedded("features")
    values, typical = held_out.values[:5], training.values.mean(0)
    keep = torch.rand(5, values.shape[1], generator=torch.Generator().manual_seed(0))
    gains = torch.randn(typical.shape, generator=torch.Generator().manual_seed(1))
    plain, knowing = Readout(training, "mean"), Readout(training, "kernels")
    knowing.gains.data.copy_(gains)
    mixed = keep.unsqueeze(2) * values + (1 - keep.unsqueeze(2)) * typical
    start = 0
    for number, count in enumerate(training.nodes.values()):
        part, columns = slice(start, start + count), slice(number * 24, (number + 1) * 24)
        factor = 1 / training.values[:, part].mean(1).std(0, correction=0)
        for readout, gain in ((plain, torch.ones_like(gains)), (knowing, gains)):
            wanted = ((mixed - typical) * gain)[:, part].mean(1) * factor
            assert torch.allclose(readout(values, keep)[:, columns], wanted, rtol=1e-3, atol=1e-4)
        start += count
    assert torch.equal(plain(values), plain(values, torch.ones_like(keep)))


def test_a_readout_of_some_kinds_sees_no_others(embedded):
    training, _ = embedded("features")
    readout = Readout(training, "mean", ("kernel",))
    assert readout.names == ("conv1", "layer1.0.conv1")
    taken = readout.take(training, torch.tensor([4, 2]))
    assert torch.equal(taken, training.values[[4, 2], :15])
    with pytest.raises(InputError, match="attention"):
        Readout(training, "mean", ("attention",))


def test_what_never_varies_is_read_as_zero(embedded):
    """These graphs differ only in how their nodes are numbered: a layer's mean differs by rounding, which is not blown up."""
    training, _ = embedded("edges", "edges_only")
    readout = Readout(training, "mean")
    assert float((training.values - readout.typical).abs().max()) > 0
    assert not readout(readout.take(training, torch.arange(COUNT))).any()


def test_the_same_seed_gives_the_same_classifier(embedded):
    training, held_out = embedded("features")
    found = [
        train_classifier(training, training.labels, ClassifierSettings(epochs=2, seed=seed)).predict(held_out)
        for seed in (0, 0, 1)
    ]
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_targets_must_be_one_for_each_graph(embedded):
    with pytest.raises(InputError, match="3 targets for 150 graphs"):
        train_classifier(embedded("features")[0], torch.zeros(3, dtype=torch.long))


def test_settings_out_of_range_are_refused():
    for setting in (
        {"readout": "sum"},
        {"hidden": 0},
        {"dropout": 1.0},
        {"learning_rate": -1.0},
        {"weight_decay": -1.0},
    ):
        with pytest.raises(UsageError, match=next(iter(setting))):
            ClassifierSettings(**setting)
