"""Licenses without an identifier on the Hub: their pages, and their terms for those who pass weights on."""

from collections.abc import Mapping
from dataclasses import dataclass

from ..convert.sources.catalog import Checkpoint


@dataclass(frozen=True)
class License:
    """A license by its name.

    link: its page.
    terms: a statement about use, and about weights that are passed on.
    """

    name: str
    link: str
    terms: str


# By the `license` of a row of the catalog. Paraphrased from facebookresearch/dinov3, LICENSE.md (19 August 2025), and from the FAIR
# Noncommercial Research License, which facebookresearch/EUPE calls FAIR Research License: the text counts, not these sentences
OTHER_LICENSES: Mapping[str, License] = {
    "dinov3-license": License(
        "DINOv3 License",
        "https://ai.meta.com/resources/models-and-libraries/dinov3-license/",
        "Whoever passes on the weights, or weights derived from them, does so under this license and adds a copy of it; publications "
        "acknowledge DINOv3; military, nuclear and espionage uses are excluded",
    ),
    "fair-noncommercial-research-license": License(
        "FAIR Noncommercial Research License",
        "https://github.com/facebookresearch/EUPE/blob/main/LICENSE.md",
        "Use is limited to noncommercial research; whoever passes on the weights, or weights derived from them, does so under this "
        "license and adds a copy of it; publications acknowledge EUPE",
    ),
}


def license_of(checkpoint: Checkpoint | None) -> License | None:
    """Return the license of a checkpoint, where the Hub has no identifier for it."""
    return OTHER_LICENSES.get(checkpoint.license or "") if checkpoint else None


def license_text(checkpoint: Checkpoint) -> str:
    """Return the name of the license of a checkpoint, with its page and its terms where the Hub has no identifier for it."""
    license = license_of(checkpoint)
    return f"[{license.name}]({license.link}) (`{checkpoint.license}`). {license.terms}" if license else f"`{checkpoint.license}`"
