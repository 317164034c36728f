"""The papers of the catalogue: title and authors by arXiv id, for references. The year is of the first version.

Where a paper has many authors, the first is named; nobody is named whom arXiv does not list. Titles are those of the latest version
that was known when the entry was written.
"""

import re
import unicodedata
from typing import NamedTuple


class Paper(NamedTuple):
    """A paper on arXiv.

    Attributes:
        arxiv: its id.
        title: in full.
        authors: in BibTeX's form, names joined by `and`; `others` stands for those who are not named.
    """

    arxiv: str
    title: str
    authors: str

    @property
    def year(self) -> int:
        """Of its first version, as the id has it."""
        return 2000 + int(self.arxiv[:2])

    @property
    def key(self) -> str:
        """For BibTeX: `rafailov2023direct`."""
        return cite_key(self.authors, self.year, self.title)


def cite_key(authors: str, year: int, title: str) -> str:
    """Surname of the first author, year, first word of the title that is no article, in ASCII."""
    surname = _plain(authors.partition(" and ")[0].partition(",")[0])
    words = filter(None, map(_plain, re.split(r"[\s:-]+", title)))
    return f"{surname}{year}{next((word for word in words if word not in ('a', 'an', 'the')), '')}"


def _plain(text: str) -> str:
    ascii_only = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    return re.sub(r"[^a-z0-9]", "", ascii_only.lower())


_TABLE = """
1706.03741 | Christiano, Paul and Leike, Jan and Brown, Tom B. and Martic, Miljan and Legg, Shane and Amodei, Dario | Deep reinforcement learning from human preferences
1707.06347 | Schulman, John and Wolski, Filip and Dhariwal, Prafulla and Radford, Alec and Klimov, Oleg | Proximal Policy Optimization Algorithms
2203.02155 | Ouyang, Long and others | Training language models to follow instructions with human feedback
2205.09123 | Huang, Shengyi and others | A2C is a special case of PPO
2301.11270 | Zhu, Banghua and Jiao, Jiantao and Jordan, Michael I. | Principled Reinforcement Learning with Human Feedback from Pairwise or K-wise Comparisons
2304.05302 | Yuan, Zheng and others | RRHF: Rank Responses to Align Language Models with Human Feedback without tears
2305.10425 | Zhao, Yao and others | SLiC-HF: Sequence Likelihood Calibration with Human Feedback
2305.18290 | Rafailov, Rafael and Sharma, Archit and Mitchell, Eric and Ermon, Stefano and Manning, Christopher D. and Finn, Chelsea | Direct Preference Optimization: Your Language Model is Secretly a Reward Model
2305.20050 | Lightman, Hunter and others | Let's Verify Step by Step
2306.17492 | Song, Feifan and others | Preference Ranking Optimization for Human Alignment
2307.09288 | Touvron, Hugo and others | Llama 2: Open Foundation and Fine-Tuned Chat Models
2309.00267 | Lee, Harrison and others | RLAIF vs. RLHF: Scaling Reinforcement Learning from Human Feedback with AI Feedback
2309.06657 | Liu, Tianqi and others | Statistical Rejection Sampling Improves Preference Optimization
2309.16240 | Wang, Chaoqi and others | Beyond Reverse KL: Generalizing Direct Preference Optimization with Diverse Divergence Constraints
2310.10505 | Li, Ziniu and others | ReMax: A Simple, Effective, and Efficient Reinforcement Learning Method for Aligning Large Language Models
2310.12036 | Azar, Mohammad Gheshlaghi and others | A General Theoretical Paradigm to Understand Learning from Human Preferences
2310.12773 | Dai, Josef and others | Safe RLHF: Safe Reinforcement Learning from Human Feedback
2312.00886 | Munos, Rémi and others | Nash Learning from Human Feedback
2401.01335 | Chen, Zixiang and Deng, Yihe and Yuan, Huizhuo and Ji, Kaixuan and Gu, Quanquan | Self-Play Fine-Tuning Converts Weak Language Models to Strong Language Models
2401.08417 | Xu, Haoran and others | Contrastive Preference Optimization: Pushing the Boundaries of LLM Performance in Machine Translation
2402.00856 | Ji, Haozhe and others | Towards Efficient Exact Optimization of Language Model Alignment
2402.01306 | Ethayarajh, Kawin and Xu, Winnie and Muennighoff, Niklas and Jurafsky, Dan and Kiela, Douwe | KTO: Model Alignment as Prospect Theoretic Optimization
2402.01878 | Liu, Tianqi and others | LiPO: Listwise Preference Optimization through Learning-to-Rank
2402.03300 | Shao, Zhihong and others | DeepSeekMath: Pushing the Limits of Mathematical Reasoning in Open Language Models
2402.05369 | Chen, Huayu and others | Noise Contrastive Alignment of Language Models with Explicit Rewards
2402.10958 | Yin, Yueqin and others | Relative Preference Optimization: Enhancing LLM Alignment through Contrasting Responses across Identical and Diverse Prompts
2402.13228 | Pal, Arka and others | Smaug: Fixing Failure Modes of Preference Optimisation with DPO-Positive
2402.14740 | Ahmadian, Arash and others | Back to Basics: Revisiting REINFORCE Style Optimization for Learning from Human Feedback in LLMs
2403.00409 | Chowdhury, Sayak Ray and Kini, Anush and Natarajan, Nagarajan | Provably Robust DPO: Aligning Language Models with Noisy Feedback
2403.07691 | Hong, Jiwoo and Lee, Noah and Thorne, James | ORPO: Monolithic Preference Optimization without Reference Model
2403.19159 | Park, Ryan and Rafailov, Rafael and Ermon, Stefano and Finn, Chelsea | Disentangling Length from Quality in Direct Preference Optimization
2404.04656 | Jung, Seungjae and others | Binary Classifier Optimization for Large Language Model Alignment
2404.11999 | Zeng, Yongcheng and others | Token-level Direct Preference Optimization
2404.19733 | Pang, Richard Yuanzhe and others | Iterative Reasoning Preference Optimization
2405.00675 | Wu, Yue and others | Self-Play Preference Optimization for Language Model Alignment
2405.14734 | Meng, Yu and Xia, Mengzhou and Chen, Danqi | SimPO: Simple Preference Optimization with a Reference-Free Reward
2405.21046 | Xie, Tengyang and others | Exploratory Preference Optimization: Harnessing Implicit Q*-Approximation for Sample-Efficient RLHF
2406.05882 | Melnyk, Igor and others | Distributional Preference Alignment of LLMs via Optimal Transport
2406.08414 | Lu, Chris and others | Discovering Preference Optimization Algorithms with and for Large Language Models
2406.08673 | Wang, Zhilin and others | HelpSteer2: Open-source dataset for training top-performing reward models
2406.11827 | Zhou, Wenxuan and others | WPO: Enhancing RLHF with Weighted Preference Optimization
2406.14868 | Shi, Wentao and Yuan, Mengqi and Wu, Junkang and Wang, Qifan and Feng, Fuli | Direct Multi-Turn Preference Optimization for Language Agents
2407.08639 | Wu, Junkang and others | β-DPO: Direct Preference Optimization with Dynamic β
2407.13399 | Huang, Audrey and others | Correcting the Mythos of KL-Regularization: Direct Alignment without Overoptimization via Chi-Squared Preference Optimization
2408.06266 | D'Oosterlinck, Karel and others | Anchored Preference Optimization and Contrastive Revisions: Addressing Underspecification in Alignment
2409.06411 | Liu, Wei and others | Length Desensitization in Direct Preference Optimization
2411.15124 | Lambert, Nathan and others | Tulu 3: Pushing Frontiers in Open Language Model Post-Training
2412.14516 | Xiao, Teng and others | Cal-DPO: Calibrated Direct Preference Optimization for Language Model Alignment
2501.03262 | Hu, Jian and others | REINFORCE++: A Simple and Efficient Approach for Aligning Large Language Models
2501.03884 | Gupta, Aman and others | AlphaPO: Reward Shape Matters for LLM Alignment
2502.00203 | Sun, Shengyang and others | Reward-aware Preference Optimization: A Unified Mathematical Framework for Model Alignment
2503.14476 | Yu, Qiying and others | DAPO: An Open-Source LLM Reinforcement Learning System at Scale
2503.20783 | Liu, Zichen and others | Understanding R1-Zero-Like Training: A Critical Perspective
2506.13585 | {MiniMax} | MiniMax-M1: Scaling Test-Time Compute Efficiently with Lightning Attention
2507.18071 | Zheng, Chujie and others | Group Sequence Policy Optimization
2601.05242 | Liu, Shih-Yang and others | GDPO: Group reward-Decoupled Normalization Policy Optimization for Multi-reward RL Optimization
"""  # noqa: E501 (a line for each paper)

PAPERS = {
    arxiv: Paper(arxiv, title, authors)
    for arxiv, authors, title in (line.split(" | ") for line in _TABLE.strip().splitlines())
}
