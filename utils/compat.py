"""Names that differ between the supported releases of transformers."""

from transformers import PreTrainedModel

# transformers 5.23 renamed gradient checkpointing to activation checkpointing, in arguments, methods and attributes alike
CHECKPOINTING = (
    "activation_checkpointing" if hasattr(PreTrainedModel, "activation_checkpointing_enable") else "gradient_checkpointing"
)
