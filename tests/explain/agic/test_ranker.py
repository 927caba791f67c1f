from dataclasses import replace

import pytest
import torch

from secateur import prune_and_export
from secateur.common.errors import ExitCode, InputError
from secateur.explain.agic.ranker import LEAST_A_CLASS, score_agic
from secateur.explain.registry import get_ranker
from secateur.explain.scores import RankingTask
from secateur.explain.settings import AgicSettings
from secateur.pipeline.recipe.recipe import Recipe

BRIEF = AgicSettings(images=80, encoder_steps=6, scoring_steps=40, background=8)


@pytest.fixture(scope="module")
def task(tiny, network_of, noise_images):
    return RankingTask(network_of(tiny("Plain")), noise_images(120), agic=BRIEF)


def test_every_kernel_but_the_classes_gets_a_score(task):
    found = get_ranker("agic").score(task)
    convolutions = {
        name: child.out_channels
        for name, child in task.network.module.named_modules()
        if hasattr(child, "out_channels")
    }
    assert {name: len(found.layers[name]) for name in convolutions} == convolutions
    assert found.details["images"] == 80
    assert found.details["encoder_steps"] == 6
    for name, scores in found.layers.items():
        assert bool(((scores > 0) & (scores < 1)).all())
        assert found.per_class[name].shape == (4, len(scores))


def test_the_seed_decides(task):
    first, again, other = (score_agic(replace(task, seed=seed)).layers for seed in (0, 0, 1))
    for name in first:
        assert torch.equal(first[name], again[name])
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_too_few_images_of_a_class_are_refused_by_its_name(task):
    few = (task.images.labels == 2).nonzero().flatten()[: LEAST_A_CLASS - 1]
    others = (task.images.labels != 2).nonzero().flatten()
    with pytest.raises(InputError, match=r"are of class 'class 2'.*--calibration"):
        score_agic(replace(task, images=task.images.subset(torch.cat([few, others])), agic=replace(BRIEF, images=500)))


def test_the_work_is_told_from_beginning_to_end(task):
    told = []
    score_agic(replace(task, progress=lambda done, total: told.append(done / total)))
    assert told == sorted(told)
    assert told[-1] == 1.0


def test_graphs_that_were_built_before_a_stop_are_taken_up(task, tmp_path):
    class StoppedError(Exception):
        pass

    def stop(done, total):
        if done / total > 0.5:
            raise StoppedError

    with pytest.raises(StoppedError):
        score_agic(replace(task, progress=stop, scratch=tmp_path))
    files = sorted((tmp_path / "graphs").iterdir())
    times = [file.stat().st_mtime_ns for file in files]
    resumed = score_agic(replace(task, scratch=tmp_path)).layers
    assert [file.stat().st_mtime_ns for file in files] == times
    for name, scores in score_agic(task).layers.items():
        assert torch.equal(resumed[name], scores)


@pytest.mark.slow
def test_the_main_job_ranks_by_agic_within_the_recipes_budget(tmp_path):
    recipe = replace(
        Recipe().override(
            page=False, rank_by="agic", calibration=150, epochs=0, macs=0.6, repair="bn", allocation="uniform"
        ),
        agic=replace(BRIEF, images=150),
    )
    result = prune_and_export(recipe, tmp_path / "run")
    assert result.exit_code == ExitCode.OK
    assert result.report["ratios"]["macs"] >= 1 / 0.6
    assert any("reconstruction from the abstract" in note for note in result.report["notes"])
    assert "scoring_steps = 40" in (tmp_path / "run" / "recipe.toml").read_text()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_is_used_throughout(task):
    found = score_agic(replace(task, device="cuda"))
    on_cpu = score_agic(task)
    for name, scores in found.layers.items():
        assert scores.device.type == "cpu"
        assert scores.shape == on_cpu.layers[name].shape


def test_classes_that_nothing_exact_leads_to_are_found_out_before_the_work(task, network_of):
    module = torch.nn.Sequential(
        *(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.Conv2d(4, 5, 3), torch.nn.GroupNorm(1, 5)),
        *(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(5, 4)),
    )
    told = []
    with pytest.raises(InputError, match=r"GroupNorm.*permutations = 4"):
        score_agic(replace(task, network=network_of(module), progress=lambda *step: told.append(step)))
    assert not told


def test_an_encoder_that_was_trained_before_a_stop_is_taken_up(task, tmp_path):
    first = score_agic(replace(task, scratch=tmp_path)).layers
    time = (tmp_path / "encoder.safetensors").stat().st_mtime_ns
    again = score_agic(replace(task, scratch=tmp_path)).layers
    assert (tmp_path / "encoder.safetensors").stat().st_mtime_ns == time
    assert all(torch.equal(first[name], again[name]) for name in first)
