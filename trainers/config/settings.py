"""Every configuration key: its type, its check and its meaning.

The defaults are in `configs/*.yaml`, in the same order. A new key is one field here and one line there; what follows
from the values is a method. `python -m trainers.config.tables` writes the tables of CONFIG.md from both.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypedDict, get_args

from trainers.config.choose import ChooseSettings
from trainers.config.keys import FileName, key

Protocol = Literal["zero_shot", "few_shot", "base2novel", "fully_supervised"]
PROTOCOLS: tuple[Protocol, ...] = get_args(Protocol)
Part = Literal["train", "val", "test"]
OrderChange = Literal["reverse", "shuffle", "static", "freeze", "drop"]
PixelChange = Literal["blur", "noise", "low_resolution", "jpeg", "dark", "bright", "swap_background"]
Use = Literal["train", "val", "test", "held_out"]  # a part, or what choices hold out of the training list


class ListSection(TypedDict):
    """One list of videos: its data set, its file, the file of its class names (None if there is none)."""

    dataset: str
    list: str
    class_names: str | None


class TestSection(ListSection):
    """A test list: its name in tables and files; lists of one group are averaged."""

    name: FileName
    group: str


class DatasetFacts(TypedDict, total=False):
    """Facts of a data set: all but `title`, if a list of it is used. A file can hold others, which lists refer to."""

    root: str
    lists: str
    class_names: str | None
    flip: bool
    split_camel_case: bool
    title: FileName


@dataclass(frozen=True, kw_only=True)
class ViewCounts:
    """Views of a video in one kind of evaluation."""

    num_clip: int = key("Temporal views of a video in validation or test.", at_least=1)
    num_crop: Literal[1, 3] = key("Spatial views of a video in validation or test.")


@dataclass(frozen=True, kw_only=True)
class ViewSettings:
    """Views of a video in evaluation."""

    val: ViewCounts
    test: ViewCounts
    random: bool = key(
        "Draw several temporal views at random, seeded by video, as the published code does; `false`: evenly spaced."
    )


@dataclass(frozen=True, kw_only=True)
class FinalTestSettings:
    """The test after training."""

    enabled: bool = key("Test `best.pth` after training.")
    wise_ft: float = key("What `wise_ft=auto` means.", at_least=0, at_most=1)


@dataclass(frozen=True, kw_only=True)
class RobustnessSettings:
    """Evaluation of changed videos."""

    changes: list[OrderChange | PixelChange] | None = key(
        "With `eval`: the accuracy on the same frames under each of these changes, next to the plain one. See "
        "[TRAIN_EVAL.md](TRAIN_EVAL.md#robustness). `null`: none."
    )
    masks: str | None = key("`swap_background`: folder of masks, `a/b.png` or `a/b/*.png` for the video `a/b.mp4`.")
    backgrounds: str | None = key("`swap_background`: folder of pictures, one of which is drawn for each video.")


@dataclass(frozen=True, kw_only=True)
class TrainerSettings:
    """The model, its start weights and what is trained."""

    checkpointing: bool = key(
        "Compute the vision blocks again in the backward pass: about a third more time, far less memory."
    )
    compile: bool | Literal["auto"] = key(
        "`torch.compile` of each kind of block of the encoders, once for all batch sizes and class names. `auto`: on "
        "a GPU of NVIDIA, if Triton and a C compiler are there; the plan says why not."
    )
    pixels: Literal["recipe", "weights"] = key(
        "Mean and deviation that normalise the pixels. `recipe`: ImageNet's in place of CLIP's, as TC-CLIP and "
        "ViFi-CLIP were published; weights with other statistics, for which no recipe is published, keep theirs. "
        "`weights`: those that the weights were trained with."
    )
    name: str = key("The model, as `tc_clip.create_model` accepts it.")
    clip_weights: str | None = key(
        "A known name (downloaded once, see [INSTALL.md](INSTALL.md#clips-weights)), a file, or `null`: random "
        "weights, sizes among the options."
    )
    prompt_lr_factor: float = key(
        "Learning rate of the prompt vectors and prompt layers, times `lr`. 1 in `vifi_clip` and `vanilla_clip`, 0.1 "
        "in the tiny trainers.",
        above=0,
    )
    text_lr_factor: float = key("Learning rate of the text encoder, times `lr`. 0.1 in the tiny trainers.", above=0)
    options: dict[str, Any] = key("Options of the model, see below.")


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """The lists of videos, and how videos are read."""

    decoder: Literal["auto", "pyav", "decord", "torchcodec"] = key(
        "`auto`: the frames that decoding in order gives, with only what they need decoded where that is proven to be "
        "exact. `pyav`: always all frames in order. `decord` (as published) and `torchcodec` get some files wrong."
    )
    max_bad_share: float = key(
        "Share of a list's videos, over all processes, that can be unreadable. Above it, training or evaluation "
        "stops. An evaluation always tolerates one unreadable video.",
        at_least=0,
        at_most=1,
    )
    bad_videos: str | None = key(
        "File of training videos to leave out, one path per line as the list spells it. `scripts/data/verify.py` "
        "writes one."
    )
    cache: str | None = key(
        "Folder on a local disk for frames: later epochs decode no video. See "
        "[DATASETS.md](DATASETS.md#the-cache-of-frames)."
    )
    cache_format: Literal["jpeg", "raw"] = key(
        "`jpeg`: `cache_frames` frames of a video, 1 to 2 MB; training and testing choose among these. `raw`: all "
        "frames, 75 MB and more; the pixels stay those of the video."
    )
    cache_frames: int | Literal["all"] = key("Evenly spaced frames of a video with `cache_format=jpeg`.", at_least=1)
    cache_gb: float = key(
        "Size limit of this folder in GB. It also leaves 10 GB, or 5 % of its disk, free. Videos that do not fit are "
        "decoded in every epoch.",
        above=0,
    )
    decode_on_device: bool = key(
        "Decode the JPEG frames of a store on the training device (nvJPEG on NVIDIA GPUs), and resize, crop, flip and "
        "colour them there: training videos, with the same draws, equal up to rounding."
    )
    timeout_s: float = key("Seconds without a video until a worker counts as hanging.", above=0)
    allow_outside: bool = key("Paths of a list can lead out of the data set's root (absolute paths, and `..`).")
    isolate: bool | Literal["auto"] = key(
        "Decode in separate processes: a crash or a hang costs one video. `auto`: one process if there are no workers, "
        "which are such processes themselves; true: one for each worker, with the limits below, for untrusted files. "
        "See [docs/fault_tolerance.md](docs/fault_tolerance.md)."
    )
    isolate_memory_mb: int = key("Memory limit for decoding one video with `isolate=true`, in MB.", at_least=256)
    isolate_timeout_s: float = key("Time limit for decoding one video with `isolate=true`, in seconds.", above=0)
    name: FileName = key("Name of the choice, shown in results.")
    protocol: Protocol = key("The protocol that it belongs to.")
    train: ListSection = key("Training list: `dataset`, `list` and `class_names`.")
    val: ListSection = key("Validation list: the same.")
    test: list[TestSection] = key("Test lists: the same, and `name` and `group`.")


@dataclass(frozen=True, kw_only=True)
class AugmentationSettings:
    """Augmentation of training videos."""

    mixup: float = key("Alpha of MixUp. 0: neither MixUp nor CutMix, label smoothing only.", at_least=0)
    cutmix: float = key("Alpha of CutMix. 0: MixUp only.", at_least=0)
    switch_prob: float = key("Probability of CutMix instead of MixUp, for each micro-batch.", at_least=0, at_most=1)
    label_smoothing: float = key("With `aug.mixup=0` and 0 here: plain cross entropy.", at_least=0, below=1)
    color_jitter: float = key("Probability of colour jitter, for each video.", at_least=0, at_most=1)
    gray: float = key(
        "Probability of greyscale, for each video. The shapes data sets set 0: their classes name colours.",
        at_least=0,
        at_most=1,
    )
    jitter_per_frame: bool = key("New jitter values for every frame, as published; `false`: one draw for a video.")
    crop_scales: list[float] = key("Sides of the training crop, as shares of the short side.", above=0, at_most=1)
    colors_on_device: bool = key(
        "Apply jitter and greyscale on the training device, one batch at a time, with the same draws (equal up to "
        "rounding). Saves a tenth of the work of the loader's processes; most of it if frames come from `data.cache`."
    )


@dataclass(frozen=True, kw_only=True)
class OptimizerSettings:
    """The optimizer."""

    name: Literal["adamw"] = key("The only choice.")
    betas: list[float] = key("Decay of the running means.", at_least=0, below=1, length=2)
    eps: float = key("Added to the denominator.", above=0)
    weight_decay: float = key("Weight decay.", at_least=0)
    lr_factors: dict[str, Any] = key(
        "Learning rates of parts of the model, times `lr`, by name: `adapters`, or `prompt` and `text` instead of the "
        "trainer's factors, as in `{adapters: 100}`. A part that the model does not train is refused."
    )
    clip_grad_norm: float | None = key(
        "Largest norm of an update's gradient; `null`: no clipping, as published.", above=0
    )


@dataclass(frozen=True, kw_only=True)
class AveragingSettings:
    """An average of the weights over the run."""

    name: Literal["none", "swa", "gaussian", "ema"] = key(
        "The average: `swa` and `gaussian` of the weights at the ends of epochs, `ema` of those after every update. "
        "It is in `last.pth`; after training it is tested besides `best.pth`, and written as `averaged.pth`."
    )
    first_epoch: int = key("`swa`, `gaussian`: first epoch that counts.", at_least=1)
    last_epoch: int | None = key("`swa`, `gaussian`: last epoch that counts; `null`: the last of the run.", at_least=1)
    mean: float | None = key("`gaussian`: the epoch that counts most; `null`: three quarters of `epochs`.", above=0)
    deviation: float | None = key("`gaussian`: standard deviation in epochs; `null`: a tenth of `epochs`.", above=0)
    decay: float = key("`ema`: share of the average that an update keeps.", at_least=0, below=1)


@dataclass(frozen=True, kw_only=True)
class ObjectiveSettings:
    """Weights of further losses, added to the cross entropy."""

    residual_features: float = key(
        "Distance of features to those of a frozen, frame-wise CLIP of the start weights, through residual projectors "
        "that only training has (FROSTER: 2). 0: off.",
        at_least=0,
    )
    features: float = key("The same without projectors.", at_least=0)
    logits: float = key("Divergence of the scores from those of the frozen CLIP.", at_least=0)
    diversity: float = key("Loss that is small if the frames of a video have different features (T2L: 1).", at_least=0)
    sides: Literal["both", "video", "text"] = key(
        "Whose features the first two losses compare. With `text`, the frozen CLIP encodes no video."
    )
    temperature: float = key("Of the scores that `logits` compares.", above=0)
    lr_factor: float = key("Learning rate of the projectors, times `lr`.", above=0)

    @property
    def is_on(self) -> bool:
        """Whether there is a further loss."""
        return any((self.residual_features, self.features, self.logits, self.diversity))


@dataclass(frozen=True, kw_only=True)
class StepSettings:
    """The passes of an update."""

    name: Literal["plain", "interpolated"] = key(
        "`interpolated`: a second pass with weights between those of the start and the present ones (Open-VCLIP); "
        "its gradient is added. Takes twice the time."
    )
    largest_share: float = key(
        "Largest share of the start weights, drawn evenly from 0 for each update.", above=0, at_most=1
    )
    weight: float = key("Weight of the second pass.", above=0)


@dataclass(frozen=True, kw_only=True)
class TextSettings:
    """Which texts of a class training uses, if the model has several (templates, descriptions)."""

    train: Literal["all", "draw"] = key(
        "`all`: as in evaluation. `draw`: one text of each class, drawn for every micro-batch; evaluation uses all."
    )


@dataclass(frozen=True, kw_only=True)
class LoggingSettings:
    """What is logged and written."""

    print_every: int = key("Updates between lines of the log and of `metrics.jsonl`.", at_least=1)
    progress: Literal["auto", "bar", "lines"] = key("`auto`: a progress bar on a terminal, lines otherwise.")
    loggers: list[str] = key(
        "Where a run logs: modules of `trainers/logging`, or dotted names of your own modules (see "
        "`trainers/logging/logger.py`)."
    )
    project: str = key(
        "Project, or experiment, of the run in a tracker (`logging=wandb`, `trackio` or `mlflow`); the run is named "
        "after the output folder."
    )
    tensorboard: bool = key(
        "Curves in `tensorboard/` of the output folder, accuracy by class, and some validation videos with their "
        "predictions."
    )
    sample_frames: bool = key("A grid of training frames in TensorBoard, once per epoch.")
    predictions: bool = key(
        "Write predictions and accuracy by class as CSV: of the best validation, with `eval` and in the final test."
    )
    pictures: bool = key("Draw the confusion matrix of each of them.")
    report: bool = key(
        "Write `report.html` with `eval` and in the final test: numbers next to the published ones, classes, "
        "confusions, hardest and surest videos, curves."
    )
    ledger: str | None = key(
        "Folder of a ledger: every finished run adds one JSON file with its results, hashes, versions, hardware and "
        "time ([docs/ledger.md](docs/ledger.md)). `null`: none."
    )


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The checked configuration of a run."""

    protocol: Protocol = key("Set by `-cn`; not for the command line.")
    output: str = key("Folder of checkpoints, logs and results. Must be given.")
    eval: Literal["val", "test"] | None = key(
        "`null` trains (and tests afterwards, if the protocol does). `val` or `test` evaluates `resume`, or the "
        "start weights, on these lists."
    )
    resume: str | None = key(
        "Checkpoint to start from: only the model's weights, at epoch 0. With `eval`, the weights to evaluate. "
        "Written by this project, a published `.pth`, or `hf://owner/name[@revision][/file]` on the Hugging Face hub."
    )
    auto_resume: bool = key("Continue from `last.pth` in `output` if it exists. It takes precedence over `resume`.")
    dry_run: bool = key("Check everything, print the plan, stop.")
    shot: int | None = key(
        "`few_shot`: training videos per class; chooses the list. Published: 2, 4, 8, 16.", at_least=1
    )
    base: Literal[1, 2, 3] | None = key("`base2novel`: number of the training list.")
    wise_ft: float | Literal["auto"] | None = key(
        "Weight of the fine-tuned model in the weight-space ensemble (1 is the fine-tuned model alone). `null`: off "
        "(0 is refused: it means off in the published code, and the start weights alone here). "
        "`auto`: the value of `final_test.wise_ft`, or off if the start weights are random.",
        at_least=0,
        at_most=1,
    )
    data_root: str = key("Folder of the data sets' videos.")
    lists_root: str = key("Folder of the annotation lists.")
    num_frames: int = key("Frames of a view.", at_least=1)
    input_size: int = key(
        "Side of the square input of the model, in pixels. If the weights have another size, their positions are "
        "interpolated, and the log reports it.",
        at_least=1,
    )
    framing: Literal["crop", "letterbox", "stretch"] = key(
        "How frames become squares, in training and evaluation; the checkpoint keeps it for `tc-clip predict`. `crop`: "
        "`aug.crop_scales` in training, the middle in evaluation. `letterbox`: the whole frame, with bars; `stretch`: "
        "the whole frame, squeezed. For people who must stay in the picture."
    )
    num_clip: int | None = key("Temporal views of a video in evaluation; `null`: those of `views`.", at_least=1)
    num_crop: Literal[1, 3] | None = key("Spatial views of a video in validation and test; `null`: those of `views`.")
    views: ViewSettings
    context_length: int = key(
        "Tokens of a prompt, at most 77 with CLIP's weights; 77 for LLM-rephrased names. A name that does not fit is "
        "an error that names it.",
        at_least=3,
    )
    batch_size: int = key("Videos of a micro-batch, within which MixUp and CutMix mix; a step of `lr`.", at_least=1)
    total_batch_size: int = key("Videos of one update, over all processes. A multiple of `batch_size`.", at_least=1)
    partial_update: Literal["drop", "keep"] = key(
        "The videos left after an epoch's last full update: `drop` leaves them out, as published; `keep` makes a "
        "smaller update of them. A list smaller than `total_batch_size` makes one update of all its videos."
    )
    sampling: Literal["shuffled", "balanced"] = key(
        "Training videos of an epoch. `shuffled`: every video once. `balanced`: as many videos in all, equally many of "
        "each class, so that those of small classes come several times (with other frames and crops)."
    )
    test_batch_size: int = key("Evaluation: videos in a batch. Changes memory and speed, not results.", at_least=1)
    videos_at_once: int | Literal["auto"] = key(
        "Videos (in evaluation, views) of one pass through the model, of any number of micro-batches of an update, or "
        "a part of one. Changes memory and speed, not results. `auto`: on a GPU as many as fit, at most 64; on a CPU "
        "`batch_size` and `test_batch_size`. Halved if the memory does not suffice.",
        at_least=1,
    )
    num_workers: int | Literal["auto"] = key(
        "Worker processes that read videos, for each process of the run. `auto`: with a GPU all cores of the process "
        "but one, without a third of them, at most 16, and fewer if memory is short; the plan shows the number. 0: in "
        "the process itself, where a hang cannot be noticed.",
        at_least=0,
    )
    class_weights: str = key(
        "Weights of the classes in the loss: `none`; `balanced`: in inverse proportion to their training videos, "
        "with a mean of 1 over the videos; or a CSV file of lines `name,weight`."
    )
    epochs: int = key("Passes over the training list.", at_least=1)
    warmup_epochs: int = key("Epochs of linear warm-up from 0.", at_least=0)
    lr: float = key("Peak learning rate.", above=0)
    lr_min: float = key("Learning rate at the end, the same for all groups.", at_least=0)
    seed: int = key("Of start weights, order, frames and augmentation.", at_least=0)
    save_freq: int = key(
        "Epochs between validations: with 10, as published, after epochs 1, 11, 21, ... and the last. `last.pth` is "
        "written after every epoch, validated or not.",
        at_least=1,
    )
    save_minutes: float | None = key(
        "Minutes after which `last.pth` is written within an epoch too; `null`: off.", above=0
    )
    save_updates: int | None = key(
        "Also write `last.pth` after this many updates within an epoch; `null`: off.", at_least=1
    )
    metrics: list[str] = key(
        "Metrics of every evaluation, in the order of the tables: `top1` (needed), `top5` or any other k, "
        "`mean_class` (mean of the classes' top-1), `map` (mean average precision), `macro_f1`, `ece` (calibration "
        "error in 15 bins, the lower the better)."
    )
    best_metric: str = key("The one of `metrics` whose best value in a validation `best.pth` belongs to.")
    patience: int | None = key(
        "Validations in a row that are not better in `best_metric` than the best, after which training ends early; "
        "`null`: never. The learning rate follows `epochs` in any case.",
        at_least=1,
    )
    calibrate: bool = key(
        "After training, fit a temperature to the best weights' scores of the validation list. It is kept in "
        "`best.pth`, `tc-clip predict` applies it, and `results.json` has the calibration error before and after. The "
        "metrics of a run are those of the scores without it."
    )
    save: Literal["whole", "trained"] = key(
        "Weights in checkpoints. `trained`: without CLIP's frozen ones, which loading takes from the CLIP weights, and "
        "compares; `tc-clip convert` adds them."
    )
    keep: int = key(
        "How many of the last checkpoints to keep: `last.pth`, and before it `last_1.pth`, `last_2.pth`, ... A "
        "damaged one is skipped for the one before.",
        at_least=1,
    )
    keep_every: int | None = key(
        "Epochs between copies of `last.pth` that are never deleted (`epoch_010.pth`, ...); `null`: none.", at_least=1
    )
    max_skipped: int = key(
        "Consecutive updates without a finite loss and gradient after which the run stops. Each of them is skipped "
        "and counted, and its videos are named.",
        at_least=1,
    )
    final_test: FinalTestSettings
    robustness: RobustnessSettings
    choose: ChooseSettings
    device: Literal["auto", "cuda", "mps", "cpu"] = key(
        "`auto`: a GPU that CUDA can use if there is one, else the CPU. `mps`: the GPU of an Apple machine."
    )
    precision: Literal["auto", "fp32", "bf16", "fp16", "fp64"] = key(
        "`auto`: bf16, or else fp16, on GPUs and fp32 on CPUs. `fp16`, with loss scaling, is the published choice; "
        "`fp64` is for tests. With bf16 and fp16, weights and the comparison of features stay in float32."
    )
    tf32: bool = key("Let float32 products on GPUs use TF32.")
    cuda_graphs: bool = key(
        "Evaluation on a GPU: replay the model as a CUDA graph, one launch for a batch; without effect elsewhere."
    )
    bf16_gradients: bool = key(
        "Several processes: sum gradients in bf16, which halves the traffic and rounds the gradient."
    )
    distributed_timeout: float = key(
        "Minutes until a process that waits for the others gives up, and names the missing ones with their last step.",
        above=0,
    )
    trainer: TrainerSettings
    averaging: AveragingSettings
    objective: ObjectiveSettings
    step: StepSettings
    texts: TextSettings
    data: DataSettings
    debug: bool = key("Full traceback for every error.")
    aug: AugmentationSettings
    optimizer: OptimizerSettings
    logging: LoggingSettings
    label_choice: Literal["names", "corrected", "llm", "froster"] = key(
        "The choice of `labels`, stored for checks and results: choose with `labels=`, not here."
    )
    labels_root: str = key(
        "Folder of the class-name files. `labels=llm` sets `labels/llm`, `labels=froster` sets `labels/froster`."
    )
    label_files: dict[str, str | None] = key(
        "The file of each class set (`k400`, `k400_base`, `hmdb51`, ...). The facts of a data set refer to them."
    )
    dataset: dict[str, DatasetFacts] = key("Facts of the data sets, see below.", other_entries=True)
    loss: Literal["cross_entropy", "sigmoid"] = key("One class a video, or any number (`sigmoid`); see below.")

    @property
    def folder(self) -> Path:
        """The output folder."""
        return Path(self.output)

    @property
    def multi_label(self) -> bool:
        """Whether a video has any number of classes."""
        return self.loss == "sigmoid"

    @property
    def starts_from_random_weights(self) -> bool:
        """Whether the model starts from random weights, not from CLIP's."""
        return self.trainer.clip_weights is None

    @property
    def ensemble_weight(self) -> float | None:
        """Weight of the fine-tuned model in the ensemble that the run tests; None: no ensemble."""
        if self.wise_ft == "auto":
            return None if self.starts_from_random_weights else self.final_test.wise_ft
        return self.wise_ft

    def views_of(self, part: Use) -> tuple[int, int]:
        """Return temporal and spatial views of `test`, or of validations: the user's, else the protocol's."""
        views = self.views.test if part == "test" else self.views.val
        return self.num_clip or views.num_clip, self.num_crop or views.num_crop

    def to_dict(self) -> dict[str, Any]:
        """Return all keys as nested dicts: what `config.yaml` and checkpoints store."""
        return asdict(self)
