"""The artefact and the proof."""
