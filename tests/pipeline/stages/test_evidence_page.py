"""The evidence page as a stage of a run: written, taken up again, left out."""

from secateur import prune_and_export
from secateur.pipeline.recipe.recipe import Recipe


def test_the_page_is_a_stage_that_resumes_and_may_be_left_out(tmp_path, recorder):
    recipe = Recipe().override(
        rank_by="magnitude", allocation="uniform", repair="none", epochs=0, calibration=40, evidence_images=1
    )
    out, observer = tmp_path / "run", recorder()
    prune_and_export(recipe, out, observer=observer)
    page = (out / "evidence.html").read_bytes()
    prune_and_export(recipe, out, resume=True, observer=observer)
    assert "evidence" in observer.skips
    assert (out / "evidence.html").read_bytes() == page
    assert b"evidence_images = 1" in (out / "recipe.toml").read_bytes()
    prune_and_export(recipe.override(page=False), out, resume=True)
    assert not (out / "evidence.html").exists()
