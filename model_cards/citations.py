"""The papers and software behind official checkpoints, as BibTeX.

Authors and titles come from the papers' pages on arXiv and from the BibTeX in the authors' repositories:
github.com/facebookresearch/dino, facebookresearch/dinov2, facebookresearch/dinov3, facebookresearch/EUPE, Robbyant/lingbot-vision and
google-research/vision_transformer (README.md), huggingface.co/timm (model cards).
"""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Paper:
    """A paper or program.

    authors: the first author and the year, for the text of a link; `bibtex`: the complete entry.
    """

    title: str
    authors: str
    url: str
    bibtex: str


def _arxiv(number: str, key: str, year: int, title: str, *authors: str) -> Paper:
    fields = {"title": title, "author": " and ".join(authors), "journal": f"arXiv preprint arXiv:{number}", "year": year}
    lines = [f"  {field}={{{value}}}" for field, value in fields.items()]
    surname = authors[0].split(",")[0]
    return Paper(
        title, f"{surname} et al. {year}", f"https://arxiv.org/abs/{number}", "@article{" + ",\n".join([key, *lines]) + "\n}"
    )


# By arXiv number or DOI
PAPERS: Mapping[str, Paper] = {
    "2010.11929": _arxiv(
        "2010.11929",
        "dosovitskiy2020vit",
        2020,
        "An Image is Worth 16x16 Words: Transformers for Image Recognition at Scale",
        *("Dosovitskiy, Alexey", "Beyer, Lucas", "Kolesnikov, Alexander", "Weissenborn, Dirk", "Zhai, Xiaohua"),
        *("Unterthiner, Thomas", "Dehghani, Mostafa", "Minderer, Matthias", "Heigold, Georg", "Gelly, Sylvain"),
        *("Uszkoreit, Jakob", "Houlsby, Neil"),
    ),
    "2104.14294": _arxiv(
        "2104.14294",
        "caron2021emerging",
        2021,
        "Emerging Properties in Self-Supervised Vision Transformers",
        *("Caron, Mathilde", "Touvron, Hugo", "Misra, Ishan", "J{\\'e}gou, Herv{\\'e}", "Mairal, Julien"),
        *("Bojanowski, Piotr", "Joulin, Armand"),
    ),
    "2106.10270": _arxiv(
        "2106.10270",
        "steiner2021augreg",
        2021,
        "How to train your ViT? Data, Augmentation, and Regularization in Vision Transformers",
        *("Steiner, Andreas", "Kolesnikov, Alexander", "Zhai, Xiaohua", "Wightman, Ross", "Uszkoreit, Jakob", "Beyer, Lucas"),
    ),
    "2111.09883": _arxiv(
        "2111.09883",
        "liu2021swinv2",
        2021,
        "Swin Transformer V2: Scaling Up Capacity and Resolution",
        *("Liu, Ze", "Hu, Han", "Lin, Yutong", "Yao, Zhuliang", "Xie, Zhenda", "Wei, Yixuan", "Ning, Jia", "Cao, Yue"),
        *("Zhang, Zheng", "Dong, Li", "Wei, Furu", "Guo, Baining"),
    ),
    "2304.07193": _arxiv(
        "2304.07193",
        "oquab2023dinov2",
        2023,
        "DINOv2: Learning Robust Visual Features without Supervision",
        *("Oquab, Maxime", "Darcet, Timoth{\\'e}e", "Moutakanni, Th{\\'e}o", "Vo, Huy V.", "Szafraniec, Marc", "Khalidov, Vasil"),
        *("Fernandez, Pierre", "Haziza, Daniel", "Massa, Francisco", "El-Nouby, Alaaeldin", "Howes, Russell", "Huang, Po-Yao"),
        *("Xu, Hu", "Sharma, Vasu", "Li, Shang-Wen", "Galuba, Wojciech", "Rabbat, Mike", "Assran, Mido", "Ballas, Nicolas"),
        *("Synnaeve, Gabriel", "Misra, Ishan", "J{\\'e}gou, Herv{\\'e}", "Mairal, Julien", "Labatut, Patrick", "Joulin, Armand"),
        "Bojanowski, Piotr",
    ),
    "2309.16588": _arxiv(
        "2309.16588",
        "darcet2023registers",
        2023,
        "Vision Transformers Need Registers",
        *("Darcet, Timoth{\\'e}e", "Oquab, Maxime", "Mairal, Julien", "Bojanowski, Piotr"),
    ),
    "2508.10104": _arxiv(
        "2508.10104",
        "simeoni2025dinov3",
        2025,
        "DINOv3",
        *("Sim{\\'e}oni, Oriane", "Vo, Huy V.", "Seitzer, Maximilian", "Baldassarre, Federico", "Oquab, Maxime", "Jose, Cijo"),
        *(
            "Khalidov, Vasil",
            "Szafraniec, Marc",
            "Yi, Seungeun",
            'Ramamonjisoa, Micha{\\"e}l',
            "Massa, Francisco",
            "Haziza, Daniel",
        ),
        *(
            "Wehrstedt, Luca",
            "Wang, Jianyuan",
            "Darcet, Timoth{\\'e}e",
            "Moutakanni, Th{\\'e}o",
            "Sentana, Leonel",
            "Roberts, Claire",
        ),
        *("Vedaldi, Andrea", "Tolan, Jamie", "Brandt, John", "Couprie, Camille", "Mairal, Julien", "J{\\'e}gou, Herv{\\'e}"),
        *("Labatut, Patrick", "Bojanowski, Piotr"),
    ),
    "2603.22387": _arxiv(
        "2603.22387",
        "zhu2026eupe",
        2026,
        "Efficient Universal Perception Encoder",
        *("Zhu, Chenchen", "Suri, Saksham", "Jose, Cijo", "Oquab, Maxime", "Szafraniec, Marc", "Wen, Wei", "Xiong, Yunyang"),
        *("Labatut, Patrick", "Bojanowski, Piotr", "Krishnamoorthi, Raghuraman", "Chandra, Vikas"),
    ),
    "2607.05247": _arxiv(
        "2607.05247",
        "fu2026lingbotvision",
        2026,
        "Vision Pretraining for Dense Spatial Perception",
        *("Fu, Zelin", "Tan, Bin", "Sun, Changjiang", "Liu, Shaohui", "Zheng, Kecheng", "Xu, Yinghao", "Zhu, Xing", "Shen, Yujun"),
        "Xue, Nan",
    ),
    "10.5281/zenodo.4414861": Paper(
        "PyTorch Image Models",
        "Wightman 2019",
        "https://doi.org/10.5281/zenodo.4414861",
        """@misc{rw2019timm,
  title={PyTorch Image Models},
  author={Wightman, Ross},
  year={2019},
  publisher={GitHub},
  doi={10.5281/zenodo.4414861},
  howpublished={\\url{https://github.com/huggingface/pytorch-image-models}}
}""",
    ),
}
