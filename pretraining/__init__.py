"""Self-supervised training of a ViT on images without labels.

`job` is the whole run; it uses a recipe (`recipes`), the crops of images (`crops`) and a Trainer (`trainer`, `arguments`, `schedules`).
The methods are in `methods`. `record` and `report` describe a run, `checkpoints` writes the original's layout.
"""
