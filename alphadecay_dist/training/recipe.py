"""What a recipe holds: its sections, their defaults, and which values are allowed."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from alphadecay_dist.decay.choices import CHOICES as DECAY_CHOICES
from alphadecay_dist.decay.settings import Settings
from alphadecay_dist.engines.registry import ENGINES
from alphadecay_dist.params.choices import FOLLOWERS, UNTUNED_DECAYS
from alphadecay_dist.training.bad_updates import POLICIES, STOP
from alphadecay_dist.training.tasks.registry import DEFAULT, NoOptions

AUTO, NONE, NFKC = "auto", "none", "nmt_nfkc"  # of the text that a tokenizer is trained on


@dataclass(frozen=True)
class ModelConfig:
    """What is trained.

    Attributes:
        name: one of recipes/models, or the path of a JSON with the sizes of a LLaMA, or of a config.json of
            any causal language model of transformers, or of the directory that holds it; of ``vision``,
            timm's name of a vision transformer.
        task: what the model learns: ``language``, of text, or ``vision``, the labels of images.
    """

    name: str = "llama_demo"
    task: str = DEFAULT


@dataclass(frozen=True)
class DataConfig:
    """Where documents come from and how sequences are made of them.

    Attributes:
        source: ``demo`` (the text shipped with the package), ``c4`` (streamed from the hub), or a local
            file, directory or glob of .txt, .json, .jsonl (.gz, .bz2, .xz, .zst too) or .parquet files. Of
            ``vision``: ``digits``, a directory of idx files or of train/CLASS/ and val/CLASS/, or a name on
            the hub, such as ``imagenet-1k``.
        validation: held-out files, given like ``source``; without them every ``holdout``-th document of a
            local source is held out, counted in each file, or over all where no file has as many. ``demo``
            and ``c4`` have a validation set of their own.
        holdout: see ``validation``.
        text_field: the column or key that holds the text.
        pack: cut the joined documents into full sequences, instead of a sequence a document, cut or padded.
        lanes: independent streams that the documents are dealt to; a divisor of the global batch. A rank
            reads only the lanes of its own sequences; the order of sequences does not depend on the ranks.
        shuffle: documents that are shuffled together.
        prepared: a directory that ``alphadecay data prepare`` made; then ``source``, ``validation``,
            ``holdout``, ``text_field`` and ``shuffle`` have no effect.
        revision: of ``c4``, or images, on the hub, a commit; null is the newest at the beginning of a run,
            which then stays with it.
    """

    source: str = "demo"
    validation: str | None = None
    holdout: int = 100
    text_field: str = "text"
    pack: bool = False
    lanes: int = 1
    shuffle: int = 10000
    prepared: str | None = None
    revision: str | None = None


@dataclass(frozen=True)
class TokenizerConfig:
    """Text to token ids.

    Attributes:
        model: a sentencepiece model or a Hugging Face tokenizer.json, by the path of the file or of its
            directory, or by the name of a hub repository with one; or ``train``: the tokenizer of
            ``--init_from`` where there is one, else a sentencepiece model that is trained on the corpus.
        normalization: of the text, where a model is trained: ``none`` (text comes back as it was, white space
            included), ``nmt_nfkc`` (sentencepiece's own: one space for all white space, compatible
            characters joined), or ``auto``: nmt_nfkc for the demo's text, none for others.
    """

    model: str = "train"
    normalization: str = AUTO


@dataclass(frozen=True)
class TrainConfig:
    """The length and the size of a run.

    Attributes:
        steps: optimizer updates; schedules span them.
        stop_after: save and stop after this update; null is off.
        micro_batch: most sequences, or images, that a rank takes at once; the largest divisor that fits is
            used.
        global_batch: sequences, or images, an update, over all ranks.
        seq_len: tokens a sequence.
        dtype: ``bfloat16`` (compute in bf16 over fp32 masters), ``float32``, or ``auto``: bfloat16 on a GPU,
            float32 on a CPU.
        seed: of the initial weights and the order of documents.
        clip: largest global gradient norm; 0 is off.
        activation_checkpointing: compute each block's activations again in the backward, to save memory.
        compile: compile each block with torch.compile; needs a C++ compiler, or Triton on a GPU.
        on_nonfinite: what a loss or gradient norm that is not finite does; such an update is never applied.
            ``stop`` fails the run, ``skip`` goes on to the next update, ``rollback`` goes back to the last
            checkpoint, and on from there with the data after the bad update's.
        max_skips: bad updates in a row that are skipped; for ``rollback``, rolled back without a new
            checkpoint between them. One more fails the run.
    """

    steps: int = 100
    stop_after: int | None = None
    micro_batch: int = 8
    global_batch: int = 24
    seq_len: int = 256
    dtype: str = "auto"
    seed: int = 0
    clip: float = 0.0
    activation_checkpointing: bool = False
    compile: bool = False
    on_nonfinite: str = STOP
    max_skips: int = 10


@dataclass(frozen=True)
class OptimizerConfig:
    """The optimizer and its learning rate.

    Attributes:
        name: ``adam`` (L2: the decay is added to the gradient), ``adamw`` (decoupled), or ``muon`` for the
            tuned matrices with adamw for the rest.
        lr: peak learning rate; with muon, adamw's.
        muon_lr: muon's peak learning rate; null is ``lr``. Both follow the schedule.
        momentum: of muon.
        nesterov: whether muon mixes the gradient with its momentum once more.
        ns_steps: of muon, iterations of Newton-Schulz.
        adjust_lr: of muon, how a matrix's rate follows its shape (m, n): ``original``,
            sqrt(max(1, m / n)), or ``match_rms_adamw``, 0.2 sqrt(max(m, n)), with which adamw's rates serve.
        muon_heads: any of ``q``, ``k``, ``v`` and ``o``, as [q, k, v] or q,k,v: what muon orthogonalises head
            by head; none takes each matrix whole.
        muon_modules: tuned matrices that get muon, by glob patterns such as ``*.mlp.*``; adamw has the
            others. null is all.
        betas: decay rates of the two moments.
        eps: added to the denominator.
        warmup: updates of linear warm-up; below 1, the fraction of train.steps.
        schedule: ``cosine``, ``linear`` or ``constant`` after the warm-up.
        min_lr_ratio: the last learning rate, in peaks.
        zero_first: each update has the rate of the one before it, and so the first one 0, as in the released
            code of AlphaDecay.
    """

    name: str = "adamw"
    lr: float = 1e-3
    muon_lr: float | None = None
    momentum: float = 0.95
    nesterov: bool = True
    ns_steps: int = 5
    adjust_lr: str = "original"
    muon_heads: tuple[str, ...] = ()
    muon_modules: tuple[str, ...] | None = None
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    warmup: float = 0.1
    schedule: str = "cosine"
    min_lr_ratio: float = 0.1
    zero_first: bool = False


@dataclass(frozen=True)
class DecayConfig(Settings):
    """Weight decay: the library's settings, and what they leave alone.

    Attributes:
        untuned: what embeddings, norms, biases and head get: ``base``, ``zero``, or ``zero_1d``: norms and
            biases 0, the rest the base decay.
        follow: what shares the group, and so the decay, of the tuned matrix that it belongs to:
            ``[bias]``, ``[batchnorm]``, ``[layernorm]`` or several, see :func:`alphadecay_dist.param_groups`.
            The released code lets biases and batch norms follow.
    """

    untuned: str = "base"
    follow: tuple[str, ...] = ()


@dataclass(frozen=True)
class EngineConfig:
    """What shards the model.

    Attributes:
        name: ``fsdp2``, ``ddp`` or ``deepspeed``; ``auto`` is deepspeed with --deepspeed and else fsdp2.
        replicate: for fsdp2, replicas of the sharded model (HSDP); 1 shards over all ranks.
    """

    name: str = "auto"
    replicate: int = 1


@dataclass(frozen=True)
class CheckpointConfig:
    """When checkpoints are saved, and how many are kept.

    Attributes:
        every: updates between them; 0 saves at the end alone.
        keep: whole checkpoints that are kept, the newest ones; 0 keeps all.
        deadline: stop as at a signal (save, exit code 75) this long after the process began: seconds, or
            such as ``11h50m``; null is off. An update and a save still have to fit behind it.
        background: copy what is saved to host memory and write it in the background; each rank needs the
            memory of its file for that.
        trust: whether --init_from may open pickles (``pytorch_model.bin``); tensors alone are read from them.
    """

    every: int = 0
    keep: int = 2
    deadline: str | None = None
    background: bool = False
    trust: bool = False


@dataclass(frozen=True)
class EvalConfig:
    """When the validation loss is taken, and of how much.

    Attributes:
        every: updates between evaluations; 0 evaluates before the first update and after the last alone.
        tokens: of each evaluation; images are evaluated all.
    """

    every: int = 0
    tokens: int = 100_000


@dataclass(frozen=True)
class LoggingConfig:
    """What is written beside metrics.jsonl, which gets every update.

    Attributes:
        to: trackers: any of ``wandb``, ``tensorboard``, ``csv``, as [wandb, csv] or wandb,csv; or ``none``.
        wandb: its mode: ``auto`` (online when logged in, else offline), ``online``, ``offline`` or ``off``.
        every: updates between the metrics that trackers get.
        sequences: write a digest of each sequence that an update consumed to sequences.jsonl.
        spectra: keep histograms of the spectra of every so many refreshes in spectra.jsonl; 0 keeps none.
    """

    to: tuple[str, ...] = ("wandb",)
    wandb: str = "auto"
    every: int = 1
    sequences: bool = False
    spectra: int = 0


@dataclass(frozen=True)
class TelemetryConfig:
    """What is measured beside training, which stays bit for bit what it is.

    Attributes:
        spectral_condition: updates between samples of the nuclear rank of gradients against the stable rank
            of activations, see docs/spectral_condition.md; 0 is off, at no cost.
        which: regular expression that finds something in the names of the matrices; null takes the tuned
            ones, the head and the embeddings.
        heads: number of heads, for the nuclear rank of each head's gradient too; 0 is off.
        tokens: most tokens over all ranks whose activations are taken; null takes a micro-batch of each rank.
        memory_budget: bytes that activations may take on a rank during a sampled update, and the gathering of
            gradients after it; null is 1 GiB for the first, and as decay.memory_budget for the second.
    """

    spectral_condition: int = 0
    which: str | None = None
    heads: int = 0
    tokens: int | None = None
    memory_budget: int | None = None


@dataclass(frozen=True)
class Config:
    """A whole recipe, resolved.

    ``data``, ``tokenizer``, ``train.seq_len`` and ``eval.tokens`` are the language task's; other tasks read
    of ``data`` what they need. ``task`` is the section of a task's own fields: a dataclass that the registry
    has for ``model.task``.
    """

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    decay: DecayConfig = field(default_factory=DecayConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)
    telemetry: TelemetryConfig = field(default_factory=TelemetryConfig)
    task: Any = field(default_factory=NoOptions)


CHOICES: dict[str, Collection[str]] = {
    "train.dtype": ("auto", "bfloat16", "float32"),
    "train.on_nonfinite": POLICIES,
    "optimizer.name": ("adam", "adamw", "muon"),
    "optimizer.adjust_lr": ("original", "match_rms_adamw"),
    "optimizer.schedule": ("cosine", "linear", "constant"),
    "decay.untuned": UNTUNED_DECAYS,
    "engine.name": ("auto", *ENGINES),
    "tokenizer.normalization": (AUTO, NONE, NFKC),
    "logging.wandb": ("auto", "online", "offline", "off"),
}
# All fields that take one of several words; those of the settings of decay check themselves.
WORDS = {**CHOICES, **{f"decay.{name}": known for name, known in DECAY_CHOICES.items()}}
# Fields that take any of these words.
SEVERAL: dict[str, Collection[str]] = {
    "decay.follow": FOLLOWERS,
    "optimizer.muon_heads": ("q", "k", "v", "o"),
    "logging.to": ("wandb", "tensorboard", "csv"),
}
PATTERNS = ("optimizer.muon_modules",)  # names or glob patterns, several
SIZES = ("decay.memory_budget", "telemetry.memory_budget")  # bytes, which may be written with a unit
AT_MOST = {"train.global_batch": 2**32, "train.seq_len": 2**32}  # others: what 63 bits hold
AT_LEAST = {
    "data.holdout": 2,
    "data.lanes": 1,
    "data.shuffle": 1,
    "train.steps": 1,
    "train.stop_after": 1,
    "train.micro_batch": 1,
    "train.global_batch": 1,
    "train.seq_len": 2,
    "train.clip": 0,
    "train.max_skips": 1,
    "train.seed": 0,
    "optimizer.lr": 0,
    "optimizer.momentum": 0,
    "optimizer.ns_steps": 1,
    "optimizer.eps": 0,
    "optimizer.warmup": 0,
    "optimizer.min_lr_ratio": 0,
    "engine.replicate": 1,
    "checkpoint.every": 0,
    "checkpoint.keep": 0,
    "eval.every": 0,
    "eval.tokens": 1,
    "logging.every": 1,
    "telemetry.spectral_condition": 0,
    "telemetry.heads": 0,
    "telemetry.tokens": 1,
    "telemetry.memory_budget": 1,
    "logging.spectra": 0,
}
