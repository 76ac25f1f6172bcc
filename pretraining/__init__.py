"""Self-supervised training of a ViT on images without labels.

`job` is the whole run: a recipe (`recipes`, `arguments`), the views of images (`crops`, `masks`), and the Trainer of a method (`trainer`,
`*_trainer`, `methods`, `schedules`) for the trained parameters of a model (`architectures`, `trained_parameters`, `frozen_teacher`).
`feature_evaluation` and `stops` watch a run, `report` describes it, and `checkpoints` writes the layouts of the originals.
"""
