"""Every family of checkpoints. A new family is a file in this folder and a name in FAMILIES."""

from .deit import DEIT
from .dino import DINO
from .dinov2 import DINOV2
from .dinov3 import DINOV3
from .family import Family
from .google import GOOGLE
from .ijepa import IJEPA
from .mae import MAE
from .timm import TIMM
from .transformers import TRANSFORMERS
from .vitrail import VITRAIL

# In the order in which they are tried: timm's layout is that of the four before it, with additions
FAMILIES: tuple[Family, ...] = (VITRAIL, TRANSFORMERS, GOOGLE, DINOV3, DINOV2, DINO, MAE, DEIT, IJEPA, TIMM)
PUBLISHED_FAMILIES = tuple(family.name for family in FAMILIES if family.catalog_format is not None)
EXPORT_FORMATS = {family.name: family.export for family in FAMILIES if family.export is not None}


def family_called(name: str) -> Family:
    """Return the family with a name."""
    return next(family for family in FAMILIES if family.name == name)


def family_of_rows(catalog_format: str) -> Family:
    """Return the family of a `format` in catalog.json."""
    return next(family for family in FAMILIES if family.catalog_format == catalog_format)
