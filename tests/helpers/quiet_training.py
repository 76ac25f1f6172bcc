"""Arguments of a short training on the CPU: rows in their order, every update logged, nothing saved or printed."""

QUIET = {
    "train_sampling_strategy": "sequential",
    "logging_steps": 1,
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
    "dataloader_pin_memory": False,
    "use_cpu": True,
}
