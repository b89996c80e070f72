"""The fifty-six papers, one record each, and the records of methods from elsewhere.

A method class names its source once: `paper: ClassVar[Paper] = paper("keyformer")`, or, for a baseline that is
none of the fifty-six, `Paper.other(arxiv="2306.14048", where="section 4", title="H2O ...")`. Reading lists, claim
tables and citations are made from these records.
"""
import re
from dataclasses import asdict, dataclass, replace
from pathlib import Path

FAMILIES: dict[str, str] = {
    "kv_eviction": "which cached tokens to keep",
    "token_dropping": "which picture and prompt tokens to read at all",
    "early_exit": "how many layers a token needs",
    "visual_tokenizers": "how few codes a picture, a sound or an item needs",
    "speculative_decoding": "several tokens from one pass",
    "visual_generation": "fewer steps and fewer tokens a picture",
    "kv_reuse": "computing a shared prompt once",
    "serving": "which request runs next, and where",
    "weight_traffic": "fewer bytes for each weight",
    "parallelism": "one model on many machines",
    "measuring": "what to count, and how to compare",
}
"""Families in reading order, with what each one economizes. A notebook's number is the place in this table."""


@dataclass(frozen=True)
class Paper:
    """One publication.

    arxiv: id without version, None where there is none. where: section, table or algorithm that was followed.
    authors: first author, in BibTeX order ("Last, First"), "" where not recorded. family: "" for a paper that is
    only a baseline's source.
    """

    key: str = ""
    title: str = ""
    arxiv: str | None = None
    year: int | None = None
    family: str = ""
    authors: str = ""
    where: str = ""

    @classmethod
    def other(cls, *, title: str, arxiv: str | None = None, where: str = "", year: int | None = None,
              authors: str = "") -> "Paper":
        """Record of a paper outside the fifty-six; the key is made from the title's first words.

        Raises ValueError for an arXiv id that is none.
        """
        if arxiv is not None and not re.fullmatch(r"\d{4}\.\d{4,5}", arxiv):
            raise ValueError(f"arXiv id {arxiv!r} does not look like 2306.14048")
        if year is None and arxiv is not None:
            year = 2000 + int(arxiv[:2])
        words = re.findall(r"[a-z0-9]+", title.split(":")[0].lower())
        return cls("_".join(words[:3]), title, arxiv, year, "", authors, where)

    @property
    def module(self) -> str:
        """Import path of the paper's file, "" for a paper outside the fifty-six."""
        return f"frugal.{self.family}.{self.key}" if self.family else ""

    @property
    def built(self) -> bool:
        """Whether the library has this paper's file or folder (looked up on disk: an import would load torch)."""
        place = Path(__file__).parents[1] / self.family / self.key
        return bool(self.module) and (place.with_suffix(".py").is_file() or (place / "__init__.py").is_file())

    @property
    def url(self) -> str:
        """Address of the abstract, "" without an arXiv id."""
        return f"https://arxiv.org/abs/{self.arxiv}" if self.arxiv else ""

    def at(self, where: str) -> "Paper":
        """Same paper, pointing at another section or table."""
        return replace(self, where=where)

    def bibtex(self) -> str:
        """A BibTeX @misc entry, the form arXiv itself hands out. Lists the first author and "others"."""
        rows = {"author": f"{self.authors} and others" if self.authors else "", "title": "{" + self.title + "}",
                "year": self.year or "", "eprint": self.arxiv or "", "archivePrefix": "arXiv" if self.arxiv else "",
                "url": self.url}
        body = ",\n".join(f"  {name} = {{{value}}}" for name, value in rows.items() if value)
        return f"@misc{{{self.key},\n{body}\n}}"

    def as_dict(self) -> dict:
        """Plain values, for JSON and tables."""
        return asdict(self) | {"module": self.module, "url": self.url, "built": self.built}


def _records(family: str, rows: str) -> list[Paper]:
    """Rows `key | arXiv | first author | title` of one family."""
    cells = [[cell.strip() for cell in row.split("|")] for row in rows.strip().splitlines()]
    return [Paper(key, title, arxiv, 2000 + int(arxiv[:2]), family, authors) for key, arxiv, authors, title in cells]


PAPERS: list[Paper] = [
    *_records("kv_eviction", """
keyformer | 2403.09054 | Adnan, Muhammad | Keyformer: KV Cache Reduction through Key Tokens Selection for Efficient Generative Inference
mikv | 2402.18096 | Yang, June Yong | No Token Left Behind: Reliable KV Cache Compression via Importance-Aware Mixed Precision Quantization
shadowkv | 2410.21465 | Sun, Hanshi | ShadowKV: KV Cache in Shadows for High-Throughput Long-Context LLM Inference
timrun | 2507.16784 | Luo, Hongyin | Beyond Context Limits: Subconscious Threads for Long-Horizon Reasoning
based | 2402.18668 | Arora, Simran | Simple linear attention language models balance the recall-throughput tradeoff"""),
    *_records("token_dropping", """
hired | 2408.10945 | Arif, Kazi Hasan Ibn | HiRED: Attention-Guided Token Dropping for Efficient Inference of High-Resolution Vision-Language Models
paint | 2501.12206 | Arif, Kazi Hasan Ibn | Fixing Imbalanced Attention to Mitigate In-Context Hallucination of Large Vision-Language Model
vista | 2502.03628 | Li, Zhuowei | The Hidden Life of Tokens: Reducing Hallucination of Large Vision-Language Models via Visual Information Steering"""),
    *_records("early_exit", """
skipdecode | 2307.02628 | Del Corro, Luciano | SkipDecode: Autoregressive Skip Decoding with Batching and Caching for Efficient LLM Inference
duo_llm | 2410.10846 | Alizadeh, Keivan | Duo-LLM: A Framework for Studying Adaptive Computation in Large Language Models
r2r | 2505.21600 | Fu, Tianyu | R2R: Efficiently Navigating Divergent Reasoning Paths with Small-Large Model Token Routing"""),
    *_records("visual_tokenizers", """
titok | 2406.07550 | Yu, Qihang | An Image is Worth 32 Tokens for Reconstruction and Generation
flextok | 2502.13967 | Bachmann, Roman | FlexTok: Resampling Images into 1D Token Sequences of Flexible Length
hieratok | 2509.23736 | Chen, Cong | HieraTok: Multi-Scale Visual Tokenizer Improves Image Reconstruction and Generation
robustok | 2503.08354 | Qiu, Kai | Robust Latent Matters: Boosting Image Generation with Sampling Error Synthesis
post_training | 2509.12474 | Qiu, Kai | Image Tokenizer Needs Post-Training
resgen | 2412.10208 | Kim, Jaehyeon | Efficient Generative Modeling with Residual Vector Quantization-Based Tokens
gense | 2502.02942 | Yao, Jixun | GenSE: Generative Speech Enhancement via Language Models using Hierarchical Modeling
setrec | 2502.10833 | Lin, Xinyu | Order-agnostic Identifier for Large Language Model-based Generative Recommendation"""),
    *_records("speculative_decoding", """
dyspec | 2410.11744 | Xiong, Yunfan | DySpec: Faster Speculative Decoding with Dynamic Token Tree Structure
ppd | 2405.18628 | Chen, Hao Mark | Hardware-Aware Parallel Prompt Decoding for Memory-Efficient Acceleration of LLM Inference
s2d | 2407.01955 | Kavehzadeh, Parsa | S2D: Sorted Speculative Decoding For More Efficient Deployment of Nested Large Language Models
llmcad | 2309.04255 | Xu, Daliang | LLMCad: Fast and Scalable On-device Large Language Model Inference
tidar | 2511.08923 | Liu, Jingyu | TiDAR: Think in Diffusion, Talk in Autoregression
survey | 2508.08712 | Zhang, Lingzhe | A Survey on Parallel Text Generation: From Parallel Decoding to Diffusion Language Models"""),
    *_records("visual_generation", """
nar | 2503.10696 | He, Yefei | Neighboring Autoregressive Modeling for Efficient Visual Generation
distilled_decoding | 2412.17153 | Liu, Enshu | Distilled Decoding 1: One-step Sampling of Image Auto-regressive Models with Flow Matching
flexdit | 2412.06028 | Chang, Shuning | FlexDiT: Dynamic Token Density Control for Diffusion Transformer
dydit | 2504.06803 | Zhao, Wangbo | DyDiT++: Dynamic Diffusion Transformers for Efficient Visual Generation
svg2 | 2505.18875 | Yang, Shuo | Sparse VideoGen2: Accelerate Video Generation with Sparse Attention via Semantic-Aware Permutation
streamdiffusion2 | 2511.07399 | Feng, Tianrui | StreamDiffusionV2: A Streaming System for Dynamic and Interactive Video Generation"""),
    *_records("kv_reuse", """
hydragen | 2402.05099 | Juravsky, Jordan | Hydragen: High-Throughput LLM Inference with Shared Prefixes
cacheblend | 2405.16444 | Yao, Jiayi | CacheBlend: Fast Large Language Model Serving for RAG with Cached Knowledge Fusion
batchllm | 2412.03594 | Zheng, Zhen | BatchLLM: Optimizing Large Batched LLM Inference with Global Prefix Sharing and Throughput-oriented Token Batching
prepacking | 2404.09529 | Zhao, Siyan | Prepacking: A Simple Method for Fast Prefilling and Increased Throughput in Large Language Models
flover | 2305.13484 | Yao, Jinghan | Flover: A Temporal Fusion Framework for Efficient Autoregressive Model Parallel Inference"""),
    *_records("serving", """
sarathi | 2403.02310 | Agrawal, Amey | Taming Throughput-Latency Tradeoff in LLM Inference with Sarathi-Serve
fastgen | 2401.08671 | Holmes, Connor | DeepSpeed-FastGen: High-throughput Text Generation for LLMs via MII and DeepSpeed-Inference
splitwise | 2311.18677 | Patel, Pratyush | Splitwise: Efficient generative LLM inference using phase splitting
nanoflow | 2408.12757 | Zhu, Kan | NanoFlow: Towards Optimal Large Language Model Serving Throughput
cloudmatrix | 2506.12708 | Zuo, Pengfei | Serving Large Language Models on Huawei CloudMatrix384
lamina | 2405.01814 | Chen, Shaoyuan | Efficient and Economic Large Language Model Inference with Attention Offloading
hyperparameters | 2408.01050 | Martinez, Matias | The Impact of Hyperparameters on Large Language Model Inference Performance: An Evaluation of vLLM and HuggingFace Pipelines"""),
    *_records("weight_traffic", """
tmac | 2407.00088 | Wei, Jianyu | T-MAC: CPU Renaissance via Table Lookup for Low-Bit LLM Deployment on Edge
dfloat11 | 2504.11651 | Zhang, Tianyi | 70% Size, 100% Accuracy: Lossless LLM Compression for Efficient GPU Inference via Dynamic-Length Float
pim_gpt | 2310.09385 | Wu, Yuting | PIM-GPT: A Hybrid Process-in-Memory Accelerator for Autoregressive Transformers"""),
    *_records("parallelism", """
token_ring | 2412.20501 | Wang, Zongwu | TokenRing: An Efficient Parallelism Framework for Infinite-Context LLMs via Bidirectional Communication
tokenweave | 2505.11329 | Gond, Raja | TokenWeave: Efficient Compute-Communication Overlap for Distributed LLM Inference
megatron | 2104.04473 | Narayanan, Deepak | Efficient Large-Scale Language Model Training on GPU Clusters Using Megatron-LM
frontier | 2312.12705 | Dash, Sajal | Optimizing Distributed Training on Frontier for Large Language Models
ssdtrain | 2408.10013 | Wu, Kun | SSDTrain: An Activation Offloading Framework to SSDs for Faster Large Language Model Training
elaswave | 2510.00606 | Kang, Xueze | ElasWave: An Elastic-Native System for Scalable Hybrid-Parallel Training
data_efficient | 2412.04747 | Wu, Kun | Code generation and runtime techniques for enabling data-efficient deep learning training on GPUs"""),
    *_records("measuring", """
languini | 2309.11197 | Stanić, Aleksandar | The Languini Kitchen: Enabling Language Modelling Research at Different Scales of Compute
overtraining | 2403.08540 | Gadre, Samir Yitzhak | Language models scale reliably with over-training and on downstream tasks
information_capacity | 2511.08066 | Yuan, Cheng | Information Capacity: Evaluating the Efficiency of Large Language Models via Text Compression"""),
]


def paper(key: str, where: str = "") -> Paper:
    """The record with this key, pointing at `where` if given.

    Raises ValueError with the nearest known keys.
    """
    from difflib import get_close_matches

    for record in PAPERS:
        if record.key == key:
            return record.at(where) if where else record
    known = [record.key for record in PAPERS]
    raise ValueError(f"no paper {key!r}; known: {', '.join(get_close_matches(key, known, 5, 0.3) or known)}")


def papers(family: str | None = None) -> list[Paper]:
    """All records, or one family's, in reading order.

    Raises ValueError for an unknown family, naming the known ones.
    """
    if family is None:
        return list(PAPERS)
    if family not in FAMILIES:
        raise ValueError(f"no family {family!r}; known: {', '.join(FAMILIES)}")
    return [record for record in PAPERS if record.family == family]
