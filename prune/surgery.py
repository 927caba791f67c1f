"""Applying a plan: a network and a plan in, a smaller network out."""

from dataclasses import replace
from pathlib import Path

from ..common.errors import SecateurError
from ..common.files import sha256_file
from ..network.channels.cut import apply_cut, rest_of_cut
from ..network.network import Network
from ..network.saved import PLAN_FILE, save_network
from .cost import measure_cost
from .plan import PruningPlan


def cut(network: Network, plan: PruningPlan, start: Network | None = None) -> Network:
    """Remove what the plan removes, from a copy of the network.

    Args:
        start: the network after an earlier round, from which a part of the plan was already removed; only the rest is cut.

    Raises:
        InputError: the plan is for another network.
        SecateurError: the cost of the result differs from the plan's (a defect).

    Examples:
        >>> import secateur
        >>> network = secateur.load_model("digits")
        >>> images = secateur.load_images("digits", network.preprocessing)
        >>> scores = secateur.rank_kernels(secateur.RankingTask(network, images.train), "magnitude")
        >>> groups, costs = secateur.find_groups(network.module, network.example()), secateur.measure_cost(network)
        >>> units = secateur.score_units(groups, scores)
        >>> plan = secateur.plan_pruning(groups, units, costs, secateur.BudgetSettings(macs=0.5))
        >>> small = secateur.cut(network, plan)
        >>> network.module.block1.conv1.out_channels, small.module.block1.conv1.out_channels
        (32, 16)
    """
    started = start is not None and len(start.cuts) > len(network.cuts)
    if start is None or not started:
        module = apply_cut(network.module, plan.cut, network.example(1))
    else:
        module = apply_cut(start.module, rest_of_cut(plan.cut, start.cuts[-1]), network.example(1))
    result = replace(network, module=module.eval(), cuts=(*network.cuts, plan.cut))
    costs = measure_cost(result)
    found, expected = costs.of({}), measure_cost(network).as_run(costs).of_cut(plan.cut)
    if (
        not found.macs == expected.macs <= plan.after.macs
        or (not started and found.parameters != plan.after.parameters)  # repairs of earlier rounds may add biases
        or (not started and found.bytes != plan.after.bytes)
    ):
        raise SecateurError(
            f"The cut network has {found}, but the plan says {plan.after}. This is a defect; please report it."
        )
    return result


def save(network: Network, plan: PruningPlan, folder: Path) -> Path:
    """Write ``plan.json`` and ``model.safetensors``, from which ``load_model(folder)`` restores the network.

    Returns:
        The path of ``model.safetensors``.

    Examples:
        >>> import secateur
        >>> network = secateur.load_model("digits")
        >>> images = secateur.load_images("digits", network.preprocessing)
        >>> scores = secateur.rank_kernels(secateur.RankingTask(network, images.train), "magnitude")
        >>> groups, costs = secateur.find_groups(network.module, network.example()), secateur.measure_cost(network)
        >>> units = secateur.score_units(groups, scores)
        >>> plan = secateur.plan_pruning(groups, units, costs, secateur.BudgetSettings(macs=0.5))
        >>> from pathlib import Path
        >>> secateur.save(secateur.cut(network, plan), plan, Path("slim")).as_posix()
        'slim/model.safetensors'
        >>> again = secateur.load_model("slim")
    """
    plan.save(folder / PLAN_FILE)
    return save_network(network, folder, sha256_file(folder / PLAN_FILE))
