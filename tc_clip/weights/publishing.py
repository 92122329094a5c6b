"""A model to the Hugging Face hub: weights as safetensors, facts as JSON, and a model card."""

import json
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from torch import Tensor, nn

from tc_clip.weights.convert import write_safetensors
from tc_clip.weights.downloads import KNOWN_CLIP_WEIGHTS, within_deadline
from tc_clip.weights.files import Checkpoint, WeightsError, one_line
from tc_clip.weights.hub import KNOWN_HUB_WEIGHTS
from tc_clip.weights.model_card import model_card
from tc_clip.weights.sources import PREFIX, WEIGHTS_FILE, CheckpointSource, as_checkpoint, check_repo
from tc_clip.weights.trained_part import ENTRY

CONFIG_FILE, CARD_FILE = "config.json", "README.md"
_LICENCE = re.compile(r"[\w.+-]+", re.ASCII)


@dataclass(frozen=True)
class _Content:
    state: dict[str, Tensor]
    info: dict[str, Any]
    class_names: list[str]


def push_to_hub(
    model_or_checkpoint: nn.Module | CheckpointSource,
    repo: str,
    *,
    private: bool = False,
    revision: str | None = None,
    class_names: Sequence[str] | None = None,
    licence: str | None = None,
    recipe: str = "",
    results: Sequence[str] = (),
    metrics: Sequence[Mapping[str, Any]] = (),
    message: str = "Add a model",
    endpoint: str | None = None,
) -> str:
    """Publish a model: `model.safetensors`, `config.json` and a model card in one commit.

    `tc_clip.load_model` builds the model again from the address `hf://repo`. The weights that its training started from
    are not part of it, as in every checkpoint; of a path to them only the file's name is published.

    Args:
        model_or_checkpoint: a model of this package, or a checkpoint of this project (any source of `load_model`).
        repo: owner and name; it is created if it does not exist.
        private: only its owner can read a new repository. An existing one must be private already.
        revision: a branch, which is created if it does not exist; None: the main branch.
        class_names: the classes to publish with the weights; by default those of the model or the checkpoint.
        licence: of the weights, an SPDX identifier such as "mit"; None: not stated.
        recipe: a sentence on the training, for the card.
        results: lines of Markdown with the results, for the card.
        metrics: the same as plain values, for `config.json`.
        message: title of the commit.
        endpoint: instead of the hub's own address (`HF_ENDPOINT`).

    Returns:
        the address of the commit, `hf://owner/name@commit`.

    Raises:
        WeightsError: in one line, if the model cannot be published, or the hub refuses.
    """
    check_repo(repo)
    if licence is not None and not _LICENCE.fullmatch(licence):
        raise WeightsError(f"licence {licence!r}: must be an SPDX identifier, such as mit or cc-by-nc-4.0")
    content = _content_of(model_or_checkpoint, class_names)
    with tempfile.TemporaryDirectory(prefix="tc_clip_push_") as folder:
        try:
            _write(Path(folder), content, repo, licence, recipe, results, metrics)
        except OSError as error:
            raise WeightsError(f"{repo}: its files cannot be written to {folder} ({one_line(error)})") from error
        return _upload(Path(folder), repo, private, revision, message, endpoint)


def _content_of(source: nn.Module | CheckpointSource, class_names: Sequence[str] | None) -> _Content:
    names: Sequence[str] | None
    if isinstance(source, nn.Module):
        if not callable(info_of := getattr(source, "info", None)):
            raise WeightsError(f"a {type(source).__name__} does not describe itself (info()), as models here do")
        state, info, names = source.state_dict(), info_of(), getattr(source, "class_names", None)
        label = "the model"
    else:
        checkpoint: Checkpoint = as_checkpoint(source)
        label, names = checkpoint.source, checkpoint.class_names
        if checkpoint.model_info is None or not isinstance(checkpoint.content.get("model"), Mapping):
            raise WeightsError(
                f"{label}: does not name its model, as checkpoints of this project do: build it by create_model, and "
                "push the model"
            )
        if ENTRY in checkpoint.content:
            raise WeightsError(
                f"{label}: has only what was trained (save=trained); `tc-clip convert` with --clip-weights writes the "
                "whole weights, or push the model"
            )
        state, info = dict(checkpoint.content["model"]), dict(checkpoint.model_info)
    if (info.get("options") or {}).get("descriptions") is not None:
        raise WeightsError(
            f"{label}: reads its texts from the file {info['options']['descriptions']!r}, which others do not have; "
            "publish a model without descriptions"
        )
    start = info.get("clip_weights")
    if isinstance(start, str) and start not in (*KNOWN_CLIP_WEIGHTS, *KNOWN_HUB_WEIGHTS):
        info = info | {"clip_weights": PurePath(start.replace("\\", "/")).name}
    state = {name: value.detach().cpu() for name, value in state.items()}
    return _Content(state, info, list(class_names if class_names is not None else names or ()))


def _write(
    folder: Path,
    content: _Content,
    repo: str,
    licence: str | None,
    recipe: str,
    results: Sequence[str],
    metrics: Sequence[Mapping[str, Any]],
) -> None:
    names = {"class_names": content.class_names} if content.class_names else {}
    weights = {"model": content.state, "model_info": content.info, **names, "format_version": 1}
    write_safetensors(folder / WEIGHTS_FILE, weights)
    facts = {"library_name": "tc-clip", "licence": licence, "model_info": content.info, **names}
    text = json.dumps(facts | {"results": [dict(row) for row in metrics]}, indent=1, ensure_ascii=False)
    (folder / CONFIG_FILE).write_text(text + "\n", encoding="utf-8")
    usage = ["import tc_clip", "", f'model = tc_clip.load_model("{PREFIX}{repo}").eval()']
    card = model_card(
        content.info,
        content.class_names,
        sum(value.numel() for value in content.state.values()),
        recipe=recipe,
        results=results,
        files=[(WEIGHTS_FILE, "the weights and what builds the model"), (CONFIG_FILE, "the same facts, to read")],
        licence=licence,
        usage=usage if content.class_names else [usage[0], "", usage[2].replace('")', '", ["a class", "another"])')],
    )
    (folder / CARD_FILE).write_text(card, encoding="utf-8")


def _upload(folder: Path, repo: str, private: bool, revision: str | None, message: str, endpoint: str | None) -> str:
    from huggingface_hub import CommitOperationAdd, HfApi, errors

    api = HfApi(endpoint=endpoint, library_name="tc_clip")
    operations = [CommitOperationAdd(name, folder / name) for name in (WEIGHTS_FILE, CONFIG_FILE, CARD_FILE)]
    try:
        within_deadline(lambda: api.create_repo(repo, private=private, exist_ok=True))
        if private and not api.model_info(repo).private:
            raise WeightsError(f"{repo}: exists and is public; make it private on its page, or leave out private")
        if revision is not None:
            api.create_branch(repo, branch=revision, exist_ok=True)
        commit = api.create_commit(repo, operations, commit_message=message, revision=revision)
    except errors.OfflineModeIsEnabled as error:
        raise WeightsError(f"{repo}: cannot be published: HF_HUB_OFFLINE is set") from error
    except errors.HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else None
        if status in (401, 403, 404):
            raise WeightsError(
                f"{repo}: the hub refuses ({status}): log in with `hf auth login`, or set HF_TOKEN to a token that may "
                "write there"
            ) from error
        raise WeightsError(f"{repo}: cannot be published ({one_line(error)})") from error
    except WeightsError:
        raise
    except (OSError, ValueError, errors.HTTPError) as error:
        raise WeightsError(f"{repo}: cannot be published ({one_line(error)})") from error
    return f"{PREFIX}{repo}@{commit.oid}"
