import math

import pytest

from secateur.export.measure.point_times import Grid
from secateur.export.measure.roofline import Roofline, _points, fit_times, work_of
from secateur.export.measure.timed_calls import Case

CONV = Case("conv", (8, 8), (3, 3), (2, 2), (1, 1, 1, 1), (1, 1))


def test_the_work_of_single_operations_by_hand():
    """A strided 3x3 convolution of 6 into 10 channels, 64 places into 16, on a batch of 2."""
    work = work_of(CONV, 10, 6, 2)
    assert work.macs == 2 * 16 * 9 * 10 * 6
    assert work.bytes == 4 * (2 * (6 * 64 + 10 * 16) + 9 * 60)
    assert work_of(CONV, 10, 6, 2, tile_out=8, tile_in=4).macs == 2 * 16 * 9 * 16 * 8
    depthwise = Case("conv", (8, 8), (3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 0)
    assert work_of(depthwise, 10, 0, 2, "fp16").macs == 2 * 64 * 9 * 10
    assert work_of(Case("linear", ()), 10, 6, 2).macs == 120
    assert work_of(Case("add", (8, 8)), 10, 0, 2, "int8").bytes == 3 * 2 * 10 * 64
    assert work_of(Case("globalpool", (8, 8)), 10, 0, 2).bytes == 4 * 2 * 10 * 65
    assert work_of(Case("pad", (8, 8), stride=(2, 2), groups=2), 10, 0, 2).bytes == 4 * 2 * 10 * (64 + 2 * 16)


@pytest.mark.parametrize(
    "truth", [Roofline(2e7, 1e7, 2e-3, 8, 4), Roofline(5e9, 2e8, 1e-2, 32, 16), Roofline(1e8, 5e5, 1e-4, 1, 1)]
)
def test_a_machine_with_five_numbers_is_found_again(truth):
    points = _points()
    found = fit_times(points, [truth.ms(*point, batch=8) for point in points], 8)
    for case, out, into in [*points, (CONV, 48, 24), (CONV, 512, 512), (Case("add", (14, 14)), 100, 0)]:
        assert found.ms(case, out, into, 8) == pytest.approx(truth.ms(case, out, into, 8), rel=0.02)


def test_what_was_not_timed_follows_the_model_between_the_sides():
    """Where the machine is a roofline, the points in between are exact; elsewhere they are the sides' product."""
    truth, grid = Roofline(2e7, 1e9, 0.0, 8, 4), Grid((8, 12, 16, 32), (4, 8, 24, 32))
    assert len(grid.timed) == 7 < len(grid.points)
    points = {point: truth.ms(CONV, *point, batch=1) for point in grid.timed}
    grid.fill(points, lambda out, into: truth.ms(CONV, out, into, batch=1))
    assert points == pytest.approx({point: truth.ms(CONV, *point, batch=1) for point in grid.points})
    plain = {(out, into): math.sqrt(out) * into for out, into in grid.timed}
    grid.fill(plain, lambda out, into: 1.0)
    assert plain == pytest.approx({(out, into): math.sqrt(out) * into for out, into in grid.points})
