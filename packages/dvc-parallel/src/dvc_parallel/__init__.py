"""Run independent stages of dvc.yaml side by side, with the same dvc.lock as dvc repro."""
