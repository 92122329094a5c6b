"""Every configuration composes, has the published numbers, and is checked in both directions."""

import pytest
import yaml
from omegaconf import DictConfig, OmegaConf

import tc_clip
from tests.documents import CONFIGS, NEEDED, compose_config
from trainers import build
from trainers.config.keys import keys_of
from trainers.config.resolve import resolve, to_yaml
from trainers.config.settings import PROTOCOLS, Settings
from trainers.errors import ConfigError

DATA = sorted(path.stem for path in (CONFIGS / "data").glob("*.yaml"))
TRAINERS = sorted(path.stem for path in (CONFIGS / "trainer").glob("*.yaml"))


def protocol_of(data: str) -> str:
    return next(protocol for protocol in PROTOCOLS if data.startswith(f"{protocol}_"))


def composed(protocol: str, *overrides: str) -> DictConfig:
    return compose_config(protocol, "output=runs/test", *NEEDED.get(protocol, []), *overrides)


# Every data configuration with one trainer, and every trainer with one data configuration: all pairs take minutes.
COMBINATIONS = [(data, "tc_clip") for data in DATA]
COMBINATIONS += [("zero_shot_shapes", trainer) for trainer in TRAINERS if trainer != "tc_clip"]


@pytest.mark.parametrize(("data", "trainer"), COMBINATIONS)
def test_every_combination_composes_and_is_valid(data: str, trainer: str) -> None:
    cfg = composed(protocol_of(data), f"data={data}", f"trainer={trainer}")
    settings = resolve(cfg)
    assert settings.protocol == protocol_of(data) and settings.data.name == data
    for entry in (settings.data.train, settings.data.val, *settings.data.test):
        assert entry["dataset"] in settings.dataset
    # What config.yaml and checkpoints store, in the order of the files: fields and yaml have the same keys.
    assert to_yaml(settings.to_dict()) == OmegaConf.to_yaml(cfg, resolve=True)


@pytest.mark.parametrize("trainer", TRAINERS)
def test_every_trainer_is_a_model_with_such_options(trainer: str) -> None:
    settings = resolve(composed("zero_shot", "data=zero_shot_shapes", f"trainer={trainer}")).trainer
    known = tc_clip.model_options(settings.name)
    sizes = {"patch_size", "vision_width", "vision_depth", "text_width", "text_depth", "embed_dim", "head_width"}
    assert settings.options.keys() <= known.keys() | (sizes if trainer.endswith("_tiny") else set())
    if trainer == settings.name:  # the defaults are written down twice, for people and for programs
        for key, value in settings.options.items():
            assert value == (list(known[key]) if isinstance(known[key], tuple) else known[key]), key


@pytest.mark.parametrize("group", ["aug", "optimizer", "logging", "recipe"])
def test_every_choice_of_the_small_groups_composes(group: str) -> None:
    for path in (CONFIGS / group).glob("*.yaml"):
        resolve(composed("zero_shot", "data=zero_shot_shapes", f"{group}={path.stem}"))


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_data_of_another_protocol_is_refused_with_those_that_fit(protocol: str) -> None:
    for other in (name for name in PROTOCOLS if name != protocol):
        with pytest.raises(ConfigError, match=f"belongs to {other}, not to {protocol}.*{protocol}_shapes"):
            resolve(composed(protocol, f"data={other}_shapes"))


# Section 3 of the protocols: epochs, warm-up, lr, lr_min, total batch, save_freq, keep_every, views, final test.
PUBLISHED = {
    "zero_shot": (10, 5, 8e-6, 8e-8, 256, 1, None, (1, 1), (2, 1), True, 0.7),
    "few_shot": (50, 5, 2e-6, 2e-8, 64, 10, None, (2, 1), (2, 1), False, None),
    "base2novel": (12, 2, 3.33e-6, 3.33e-8, 64, 1, None, (2, 1), (2, 1), True, None),
    "fully_supervised": (30, 5, 2.2e-5, 2.2e-7, 512, 1, 10, (1, 1), (4, 3), True, None),
}


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_published_numbers(protocol: str) -> None:
    data = "few_shot_ssv2" if protocol == "few_shot" else f"{protocol}_k400"
    settings = resolve(composed(protocol, f"data={data}"))
    assert PUBLISHED[protocol] == (
        settings.epochs,
        settings.warmup_epochs,
        settings.lr,
        settings.lr_min,
        settings.total_batch_size,
        settings.save_freq,
        settings.keep_every,
        settings.views_of("val"),
        settings.views_of("test"),
        settings.final_test.enabled,
        settings.ensemble_weight,
    )
    assert (settings.batch_size, settings.num_frames, settings.input_size) == (4, 16, 224)
    assert (settings.seed, settings.context_length) == (1024, 30)
    optimizer, aug = settings.optimizer, settings.aug
    assert (optimizer.betas, optimizer.eps, optimizer.weight_decay) == ([0.9, 0.98], 1e-8, 1e-3)
    assert optimizer.clip_grad_norm is None
    assert (aug.mixup, aug.cutmix, aug.switch_prob, aug.label_smoothing) == (0.8, 1.0, 0.5, 0.1)
    assert (aug.color_jitter, aug.gray, aug.jitter_per_frame) == (0.8, 0.2, True)
    assert settings.trainer.prompt_lr_factor == 10
    assert settings.partial_update == "drop"


@pytest.mark.parametrize("options", [["wise_ft=0.0"], ["wise_ft=auto", "final_test.wise_ft=0"]])
def test_a_weight_of_0_is_refused_but_in_a_sweep(options: list[str]) -> None:
    """In the published code it means off; here it would evaluate CLIP's own weights without a word."""
    arguments = ["data=zero_shot_k400", "resume=best.pth", "eval=test", *options]
    with pytest.raises(ConfigError, match=r"^wise_ft=0 would evaluate the start weights alone.*give wise_ft=null"):
        resolve(composed("zero_shot", *arguments))
    assert resolve(composed("zero_shot", *arguments), is_sweep=True).ensemble_weight == 0


def test_rephrased_names_train_zero_shot_with_2_videos_at_once() -> None:
    for data, size in (("zero_shot_k400_llm", 2), ("zero_shot_k400_tiny_llm", 2), ("zero_shot_k400", 4)):
        assert resolve(composed("zero_shot", f"data={data}")).batch_size == size


def test_the_user_decides_on_views() -> None:
    settings = resolve(composed("fully_supervised", "data=fully_supervised_k400", "num_clip=2", "num_crop=1"))
    assert settings.views_of("val") == settings.views_of("test") == (2, 1)


def test_without_mixup_labels_are_smoothed_only() -> None:
    mixing = build.build_mixing(resolve(composed("zero_shot", "data=zero_shot_k400", "aug.mixup=0")), 10)
    assert (mixing.mixup_alpha, mixing.cutmix_alpha, mixing.label_smoothing) == (0, 0, 0.1)


def test_every_key_of_base_is_explained_and_has_a_field() -> None:
    lines = (CONFIGS / "base.yaml").read_text().split("\nhydra:")[0].splitlines()
    keys = [line for line in lines[lines.index("# What to do") :] if ":" in line and not line.lstrip().startswith("#")]
    sections = {"views:", "final_test:", "robustness:", "trainer:", "data:"}
    unexplained = [line for line in keys if "#" not in line and line not in sections]
    assert unexplained == []
    top = yaml.safe_load((CONFIGS / "base.yaml").read_text())
    fields = {name.split(".")[0] for name in keys_of(Settings)}
    assert top.keys() - {"defaults", "hydra"} <= fields


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_protocols_hold_only_differences_and_known_keys(protocol: str) -> None:
    base, own = (yaml.safe_load((CONFIGS / f"{name}.yaml").read_text()) for name in ("base", protocol))
    assert own.pop("defaults") == ["base", "_self_"]
    assert own.pop("protocol") == protocol
    assert own.keys() <= base.keys()


def test_the_configuration_is_read_only_afterwards() -> None:
    cfg = composed("zero_shot", "data=zero_shot_shapes")
    resolve(cfg)
    assert OmegaConf.is_readonly(cfg)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("+lrr=1", "unknown key lrr; did you mean lr"),
        ("+aug.mixp=1", "unknown key aug.mixp; did you mean aug.mixup"),
        ("lr=0", "lr=0: must be a number above 0"),
        ("lr=fast", "lr=fast: must be a number above 0"),
        ("num_workers=-1", "num_workers=-1: must be a whole number of at least 0"),
        ("num_workers=1.5", "num_workers=1.5: must be a whole number"),
        ("precision=fp8", "precision=fp8: must be one of auto, fp32, bf16, fp16, fp64"),
        ("auto_resume=2", "auto_resume=2: must be true or false"),
        ("optimizer.betas=[0.9]", "optimizer.betas=.*: must be a list of 2 numbers"),
        ("data.decoder=opencv", "data.decoder=opencv: must be one of auto, pyav, decord, torchcodec"),
        ("warmup_epochs=10", "warmup_epochs=10 leaves nothing of epochs=10"),
        ("output=???", "output is not set"),
        ("data.train.dataset=k401", "data.train.dataset=k401: not among the data sets k400"),
        ("data.train.list=3", "data.train.list=3: must be text"),
        ("data.train=null", "data.train=null: must be a group of keys"),
        ("+data.train.lst=a.txt", "unknown key data.train.lst; did you mean list"),
        ("~data.val.list", "the key data.val.list is missing; it must be text"),
        ("data.train.class_names=null", "data.train.class_names=null: name the file of the class names of k400"),
        ("data.test=[3]", r"data.test=\[3\]: must be a list of groups of keys"),
        ("data.test=[{name:a,group:b,dataset:k400}]", r"the key data.test\[0\].class_names is missing"),
        (
            "data.test=[{name:../a,group:b,dataset:k400,list:x.txt,class_names:null}]",
            r"data.test\[0\].name=../a: must be text for file names",
        ),
        ("data.name=a/b", "data.name=a/b: must be text for file names"),
        ("dataset.k400.flip=maybe", "dataset.k400.flip=maybe: must be true or false"),
        ("dataset.k400.root=null", "dataset.k400.root=null: must be text"),
        ("~dataset.k400.root", "dataset.k400: the key root is missing"),
        ("output='a\tb'", r"output='a\\tb': must be text"),
        ("seed=1000000000000000000000", "seed=1000000000000000000000: must be a whole number"),
    ],
)
def test_wrong_values_are_named(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build.read_lists(resolve(composed("zero_shot", "data=zero_shot_k400", override)), ("train",))


def test_a_missing_list_is_named_with_its_path() -> None:
    settings = resolve(composed("zero_shot", "data=zero_shot_k400", "lists_root=nowhere"))
    with pytest.raises(ValueError, match="^nowhere/"):
        build.read_lists(settings, ("train",))
