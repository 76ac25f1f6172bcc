"""An invented record of a DINO run: the content of pretraining.json without the hash of the weights."""

import math

MODEL = {"name": "dino_deitsmall16_pretrain.pth", "checkpoint": "dino-vits16"}
KNN = {"k": 20, "accuracy": 0.8125, "train_images": 800, "validation_images": 200}


def make_run(*, knn=None, model=None, **fields):
    curves = [
        {
            "epoch": 1.5 * (step + 1),
            "step": 10 * (step + 1),
            "loss": 5.0 - step,
            "grad_norm": 0.5,
            "learning_rate": 0.001,
            "target_entropy": 2.0 - 0.5 * step,
            "mean_target_entropy": 4.0 - 0.25 * step,
            "center_norm": 0.1 * step,
            "teacher_momentum": 0.996,
        }
        for step in range(3)
    ]
    accuracies = (
        [{"epoch": float(epoch), "step": 10 * epoch, "eval_knn_accuracy": 0.25 * epoch} for epoch in (1, 2, 3)] if knn else []
    )
    run = {
        "task": "DINO self-supervised training",
        "model": model,
        "recipe": {"name": "dino", "source": "facebookresearch/dino, main_dino.py"},
        "epochs": 3,
        "batch_size": 512,
        "arguments": {"num_prototypes": 100, "drop_path_rate": 0.1},
        "precision": "bfloat16",
        "seed": 7,
        "augmentation": {},
        "data": {"source": "a|b", "fingerprint": "00", "train_images": 12345},
        "updates": 1234,
        "knn": knn,
        "curves": sorted(curves + accuracies, key=lambda point: point["epoch"]),
        "resumed_from": None,
        "processes": 1,
        "seconds": 3723.4,
        "teacher": None,
        "comparison": None,
        "versions": {"vitrail": "1.0"},
    }
    return run | fields


def without_numbers(run, name):
    """Return the run with a value in its curves that is not finite at the second point."""
    points = [point for point in run["curves"] if name in point]
    points[1][name] = math.nan
    return run
