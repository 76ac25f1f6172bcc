"""The papers and software behind official checkpoints, as BibTeX.

Authors and titles come from the papers' pages on arXiv and from the BibTeX in the authors' repositories:
github.com/facebookresearch/dino, dinov2, dinov3, EUPE, deit, mae and ijepa, github.com/Robbyant/lingbot-vision and
github.com/google-research/vision_transformer (README.md), huggingface.co/timm (model cards).
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
    "1412.6550": _arxiv(
        "1412.6550",
        "romero2014fitnets",
        2014,
        "FitNets: Hints for Thin Deep Nets",
        *("Romero, Adriana", "Ballas, Nicolas", "Kahou, Samira Ebrahimi", "Chassang, Antoine", "Gatta, Carlo", "Bengio, Yoshua"),
    ),
    "2010.11929": _arxiv(
        "2010.11929",
        "dosovitskiy2020vit",
        2020,
        "An Image is Worth 16x16 Words: Transformers for Image Recognition at Scale",
        *("Dosovitskiy, Alexey", "Beyer, Lucas", "Kolesnikov, Alexander", "Weissenborn, Dirk", "Zhai, Xiaohua"),
        *("Unterthiner, Thomas", "Dehghani, Mostafa", "Minderer, Matthias", "Heigold, Georg", "Gelly, Sylvain"),
        *("Uszkoreit, Jakob", "Houlsby, Neil"),
    ),
    "2012.12877": _arxiv(
        "2012.12877",
        "touvron2020deit",
        2020,
        "Training data-efficient image transformers \\& distillation through attention",
        *(
            "Touvron, Hugo",
            "Cord, Matthieu",
            "Douze, Matthijs",
            "Massa, Francisco",
            "Sablayrolles, Alexandre",
            "J{\\'e}gou, Herv{\\'e}",
        ),
    ),
    "2104.10972": _arxiv(
        "2104.10972",
        "ridnik2021imagenet21k",
        2021,
        "ImageNet-21K Pretraining for the Masses",
        *("Ridnik, Tal", "Ben-Baruch, Emanuel", "Noy, Asaf", "Zelnik-Manor, Lihi"),
    ),
    "2104.14294": _arxiv(
        "2104.14294",
        "caron2021emerging",
        2021,
        "Emerging Properties in Self-Supervised Vision Transformers",
        *("Caron, Mathilde", "Touvron, Hugo", "Misra, Ishan", "J{\\'e}gou, Herv{\\'e}", "Mairal, Julien"),
        *("Bojanowski, Piotr", "Joulin, Armand"),
    ),
    "2106.01548": _arxiv(
        "2106.01548",
        "chen2021sam",
        2021,
        "When Vision Transformers Outperform ResNets without Pre-training or Strong Data Augmentations",
        *("Chen, Xiangning", "Hsieh, Cho-Jui", "Gong, Boqing"),
    ),
    "2106.10270": _arxiv(
        "2106.10270",
        "steiner2021augreg",
        2021,
        "How to train your ViT? Data, Augmentation, and Regularization in Vision Transformers",
        *("Steiner, Andreas", "Kolesnikov, Alexander", "Zhai, Xiaohua", "Wightman, Ross", "Uszkoreit, Jakob", "Beyer, Lucas"),
    ),
    "2111.06377": _arxiv(
        "2111.06377",
        "he2021mae",
        2021,
        "Masked Autoencoders Are Scalable Vision Learners",
        *("He, Kaiming", "Chen, Xinlei", "Xie, Saining", "Li, Yanghao", "Doll{\\'a}r, Piotr", "Girshick, Ross"),
    ),
    "2111.09883": _arxiv(
        "2111.09883",
        "liu2021swinv2",
        2021,
        "Swin Transformer V2: Scaling Up Capacity and Resolution",
        *("Liu, Ze", "Hu, Han", "Lin, Yutong", "Yao, Zhuliang", "Xie, Zhenda", "Wei, Yixuan", "Ning, Jia", "Cao, Yue"),
        *("Zhang, Zheng", "Dong, Li", "Wei, Furu", "Guo, Baining"),
    ),
    "2203.07845": _arxiv(
        "2203.07845",
        "zhang2022bamboo",
        2022,
        "Bamboo: Building Mega-Scale Vision Dataset Continually with Human-Machine Synergy",
        *(
            "Zhang, Yuanhan",
            "Sun, Qinghong",
            "Zhou, Yichun",
            "He, Zexin",
            "Yin, Zhenfei",
            "Wang, Kun",
            "Sheng, Lu",
            "Qiao, Yu",
            "Shao, Jing",
            "Liu, Ziwei",
        ),
    ),
    "2204.07118": _arxiv(
        "2204.07118",
        "touvron2022deit3",
        2022,
        "DeiT III: Revenge of the ViT",
        *("Touvron, Hugo", "Cord, Matthieu", "J{\\'e}gou, Herv{\\'e}"),
    ),
    "2211.07636": _arxiv(
        "2211.07636",
        "fang2022eva",
        2022,
        "EVA: Exploring the Limits of Masked Visual Representation Learning at Scale",
        *(
            "Fang, Yuxin",
            "Wang, Wen",
            "Xie, Binhui",
            "Sun, Quan",
            "Wu, Ledell",
            "Wang, Xinggang",
            "Huang, Tiejun",
            "Wang, Xinlong",
            "Cao, Yue",
        ),
    ),
    "2212.08013": _arxiv(
        "2212.08013",
        "beyer2022flexivit",
        2022,
        "FlexiViT: One Model for All Patch Sizes",
        *(
            "Beyer, Lucas",
            "Izmailov, Pavel",
            "Kolesnikov, Alexander",
            "Caron, Mathilde",
            "Kornblith, Simon",
            "Zhai, Xiaohua",
            "Minderer, Matthias",
            "Tschannen, Michael",
            "Alabdulmohsin, Ibrahim",
            "Pavetic, Filip",
        ),
    ),
    "2301.08243": _arxiv(
        "2301.08243",
        "assran2023ijepa",
        2023,
        "Self-Supervised Learning from Images with a Joint-Embedding Predictive Architecture",
        *(
            "Assran, Mahmoud",
            "Duval, Quentin",
            "Misra, Ishan",
            "Bojanowski, Piotr",
            "Vincent, Pascal",
            "Rabbat, Michael",
            "LeCun, Yann",
            "Ballas, Nicolas",
        ),
    ),
    "2303.15343": _arxiv(
        "2303.15343",
        "zhai2023siglip",
        2023,
        "Sigmoid Loss for Language Image Pre-Training",
        *("Zhai, Xiaohua", "Mustafa, Basil", "Kolesnikov, Alexander", "Beyer, Lucas"),
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
    "2407.07726": _arxiv(
        "2407.07726",
        "beyer2024paligemma",
        2024,
        "PaliGemma: A versatile 3B VLM for transfer",
        *("Beyer, Lucas", "Steiner, Andreas", "Pinto, Andr{\\'e} Susano", "Kolesnikov, Alexander", "Wang, Xiao", "Salz, Daniel"),
        *("Neumann, Maxim", "Alabdulmohsin, Ibrahim", "Tschannen, Michael", "Bugliarello, Emanuele", "Unterthiner, Thomas"),
        *("Keysers, Daniel", "Koppula, Skanda", "Liu, Fangyu", "Grycner, Adam", "Gritsenko, Alexey", "Houlsby, Neil"),
        *("Kumar, Manoj", "Rong, Keran", "Eisenschlos, Julian", "Kabra, Rishabh", "Bauer, Matthias", "Bo{\\v{s}}njak, Matko"),
        *("Chen, Xi", "Minderer, Matthias", "Voigtlaender, Paul", "Bica, Ioana", "Balazevic, Ivana", "Puigcerver, Joan"),
        *("Papalampidi, Pinelopi", "Henaff, Olivier", "Xiong, Xi", "Soricut, Radu", "Harmsen, Jeremiah", "Zhai, Xiaohua"),
    ),
    "2412.03555": _arxiv(
        "2412.03555",
        "steiner2024paligemma2",
        2024,
        "PaliGemma 2: A Family of Versatile VLMs for Transfer",
        *("Steiner, Andreas", "Pinto, Andr{\\'e} Susano", "Tschannen, Michael", "Keysers, Daniel", "Wang, Xiao", "Bitton, Yonatan"),
        *("Gritsenko, Alexey", "Minderer, Matthias", "Sherbondy, Anthony", "Long, Shangbang", "Qin, Siyang", "Ingle, Reeve"),
        *("Bugliarello, Emanuele", "Kazemzadeh, Sahar", "Mesnard, Thomas", "Alabdulmohsin, Ibrahim", "Beyer, Lucas"),
        "Zhai, Xiaohua",
    ),
    "2502.14786": _arxiv(
        "2502.14786",
        "tschannen2025siglip2",
        2025,
        "SigLIP 2: Multilingual Vision-Language Encoders with Improved Semantic Understanding, Localization, and Dense Features",
        *(
            "Tschannen, Michael",
            "Gritsenko, Alexey",
            "Wang, Xiao",
            "Naeem, Muhammad Ferjad",
            "Alabdulmohsin, Ibrahim",
            "Parthasarathy, Nikhil",
            "Evans, Talfan",
            "Beyer, Lucas",
            "Xia, Ye",
            "Mustafa, Basil",
            "H{\\'e}naff, Olivier",
            "Harmsen, Jeremiah",
            "Steiner, Andreas",
            "Zhai, Xiaohua",
        ),
    ),
    "2604.12012": _arxiv(
        "2604.12012",
        "cao2026tipsv2",
        2026,
        "TIPSv2: Advancing Vision-Language Pretraining with Enhanced Patch-Text Alignment",
        *(
            "Cao, Bingyi",
            "Chen, Koert",
            "Maninis, Kevis-Kokitsi",
            "Chen, Kaifeng",
            "Karpur, Arjun",
            "Xia, Ye",
            "Dua, Sahil",
            "Dabral, Tanmaya",
            "Han, Guangxing",
            "Han, Bohyung",
            "Ainslie, Joshua",
            "Bewley, Alex",
            "Jacob, Mithun",
            "Wagner, Ren{\\'e}",
            "Ramos, Washington",
            "Choromanski, Krzysztof",
            "Seyedhosseini, Mojtaba",
            "Zhou, Howard",
            "Araujo, Andr{\\'e}",
        ),
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
