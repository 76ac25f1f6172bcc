"""Models with random weights, by the name of their architecture."""

import re
from pathlib import Path

from transformers import set_seed

from ..configuration.configuration_vit import ViTConfig
from ..configuration.sizes import SIZES
from ..convert.families.family import make_config
from ..errors import VitrailError
from ..modeling.modeling_vit import ViTModel
from ..processing.image_processing_vit import VitrailImageProcessor
from ..processing.presets import image_processor_for
from ..utils.atomic import read_json

PLAIN_SIZES = ("tiny", "small", "base", "large", "huge")  # the sizes in `vitrail.SIZES` with blocks like DINO's
NAME = re.compile(rf"vit_(?P<size>{'|'.join(PLAIN_SIZES)})_patch(?P<patch>[1-9]\d*)")

# facebookresearch/dinov2, configs/ssl_default_config.yaml: student.layerscale; models/vision_transformer.py
DINOV2_FIELDS = {"layer_scale_init_value": 1e-5, "use_mask_token": True}


def new_model(name: str, *, image_size: int, seed: int, method: str = "dino") -> tuple[ViTModel, VitrailImageProcessor]:
    """Return a model with random weights, and the image processor of the method's family.

    Args:
        name: vit_SIZE_patchP with a size of PLAIN_SIZES, such as "vit_small_patch16"; or a config.json with the fields of ViTConfig.
        image_size: in pixels, rounded up to a multiple of the patch. A config.json has its own size.
        seed: of the weights.
        method: of the training. An architecture of a name has LayerScale and a mask token for "dinov2", as there.

    Raises:
        VitrailError: there is no such architecture, or the config.json has other fields.
    """
    match = NAME.fullmatch(name)
    if match:
        patch = int(match["patch"])
        config = ViTConfig(
            **SIZES[match["size"]],
            patch_size=patch,
            image_size=-(-image_size // patch) * patch,
            layer_norm_eps=1e-6,
            position_interpolation_offset=0.1,
            **(DINOV2_FIELDS if method == "dinov2" else {}),
        )
    elif Path(name).suffix == ".json" and Path(name).is_file():
        config = _read_config(Path(name))
    else:
        raise VitrailError(
            f'There is no architecture "{name}": give vit_SIZE_patchP, where SIZE is one of {", ".join(PLAIN_SIZES)}, '
            "or a config.json with the fields of ViTConfig."
        )
    set_seed(seed)
    preset = "dinov2" if method == "dinov2" else "dino"
    return ViTModel(config), image_processor_for(config, preset, image_size=config.image_shape)


def _read_config(path: Path) -> ViTConfig:
    """Read a config that has only fields of ViTConfig. The default would silently replace the value of a misspelt field."""
    content = read_json(path, remedy="correct it")
    known = {**ViTConfig().to_dict(), "auto_map": None, "num_labels": None}
    unknown = [field for field in content if field not in known]
    if unknown or content.get("model_type", ViTConfig.model_type) != ViTConfig.model_type:
        found = f"unknown fields {', '.join(unknown)}" if unknown else f'model_type "{content["model_type"]}"'
        raise VitrailError(f"{path} has {found}; expected the fields of ViTConfig, such as hidden_size and patch_size.")
    return make_config(content)
