import torch

from gap_by_hand import overlap
from secateur.explain.gap.near_duplicates import Selection, strongest


def test_suppression_against_the_plain_algorithm():
    generator = torch.Generator().manual_seed(5)
    rows, channels = 12, 40
    maps = (torch.rand(rows, channels, 3, 3, generator=generator) > 0.45).float() + 0.01
    alpha = torch.randn(rows, channels, generator=generator)
    for top, limit in ((1, 0.9), (3, 0.6), (8, 0.4)):
        kernels, merged = strongest(alpha, maps, Selection(top, limit, 0.5))
        for row in range(rows):
            kept, groups = [], {}
            for kernel in alpha[row].argsort(descending=True).tolist():
                if alpha[row, kernel] <= 0:
                    break
                same = [other for other in kept if overlap(maps[row, other], maps[row, kernel], 0.5) > limit]
                if same:
                    groups.setdefault(same[0], []).append(kernel)
                else:
                    kept.append(kernel)
            wanted = kept[:top]
            assert [kernel for kernel in kernels[row].tolist() if kernel >= 0] == wanted
            for kernel, found in zip(wanted, merged[row], strict=False):
                assert set(found) <= set(groups.get(kernel, []))


def test_what_a_row_merges_does_not_depend_on_the_other_rows():
    generator = torch.Generator().manual_seed(5)
    maps = (torch.rand(6, 64, 3, 3, generator=generator) > 0.3).float() + 0.01
    maps[0] = maps[0, :1]  # all alike: the first row has to look at every kernel
    alpha = torch.rand(6, 64, generator=generator)
    together = strongest(alpha, maps, Selection(3, 0.6))
    for row in range(6):
        kernels, merged = strongest(alpha[row : row + 1], maps[row : row + 1], Selection(3, 0.6))
        assert torch.equal(kernels[0], together[0][row])
        assert merged[0] == together[1][row]
    assert len(together[1][0][0]) == 63
