"""BibTeX of the papers that the losses implement, for ST's model card."""


def _arxiv(key: str, year: int, number: str, field: str, title: str, authors: str) -> str:
    return f"""
@misc{{{key},
    title={{{title}}},
    author={{{authors}}},
    year={{{year}}},
    eprint={{{number}}},
    archivePrefix={{arXiv}},
    primaryClass={{{field}}}
}}
"""


# fmt: off
GTE = _arxiv("li2023generaltextembeddings", 2023, "2308.03281", "cs.CL",
             "Towards General Text Embeddings with Multi-stage Contrastive Learning",
             "Zehan Li and Xin Zhang and Yanzhao Zhang and Dingkun Long and Pengjun Xie and Meishan Zhang")
GRADCACHE = _arxiv("gao2021scaling", 2021, "2101.06983", "cs.LG",
                   "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup",
                   "Luyu Gao and Yunyi Zhang and Jiawei Han and Jamie Callan")
HARDNESS = _arxiv("lan2025llave", 2025, "2503.04812", "cs.CV",
                  "LLaVE: Large Language and Vision Embedding Models with Hardness-Weighted Contrastive Learning",
                  "Zhibin Lan and Liqiang Niu and Fandong Meng and Jie Zhou and Jinsong Su")
KALM = _arxiv("zhao2025kalmembeddingv2", 2025, "2506.20923", "cs.CL",
              "KaLM-Embedding-V2: Superior Training Techniques and Data Inspire A Versatile Embedding Model",
              "Xinping Zhao and Xinshuo Hu and Zifei Shan and others")
SPREAD = _arxiv("zhang2017learningspreadoutlocalfeature", 2017, "1708.06320", "cs.CV",
                "Learning Spread-out Local Feature Descriptors",
                "Xu Zhang and Felix X. Yu and Sanjiv Kumar and Shih-Fu Chang")
PICCOLO2 = _arxiv("huang2024piccolo2", 2024, "2405.06932", "cs.CL",
                  "Piccolo2: General Text Embedding with Multi-task Hybrid Loss Training",
                  "Junqin Huang and Zhongjie Hu and Zihao Jing and Mengya Gao and Yichao Wu")
SINCERE = _arxiv("feeney2023sincere", 2023, "2309.14277", "cs.LG",
                 "SINCERE: Supervised Information Noise-Contrastive Estimation REvisited",
                 "Patrick Feeney and Michael C. Hughes")
GISTEMBED = _arxiv("solatorio2024gistembed", 2024, "2402.16829", "cs.LG",
                   "GISTEmbed: Guided In-sample Selection of Training Negatives for Text Embedding Fine-tuning",
                   "Aivin V. Solatorio")
JASPER = _arxiv("zhang2024jasperstella", 2024, "2412.19048", "cs.IR",
                "Jasper and Stella: distillation of SOTA embedding models",
                "Dun Zhang and Jiacheng Li and Ziyang Zeng and Fulong Wang")
MARGIN_MSE = _arxiv("hofstaetter2021improving", 2021, "2010.02666", "cs.IR",
                    "Improving Efficient Neural Ranking Models with Cross-Architecture Knowledge Distillation",
                    "Sebastian Hofstätter and Sophia Althammer and Michael Schröder and Mete Sertkan and Allan Hanbury")
STRAIGHT_THROUGH = _arxiv("bengio2013estimating", 2013, "1308.3432", "cs.LG",
                          "Estimating or Propagating Gradients Through Stochastic Neurons for Conditional Computation",
                          "Yoshua Bengio and Nicholas Léonard and Aaron Courville")
