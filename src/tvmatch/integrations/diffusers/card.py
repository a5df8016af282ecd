"""The model card of an exported pipeline: README.md, with what the run says of itself and nothing else."""

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tvmatch.metrics.features import sha256_of
from tvmatch.metrics.tradeoff import cells
from tvmatch.training.checkpoint import read_header
from tvmatch.training.run_folder import read_config
from tvmatch.training.trained import TrainedRun

NAMED = 20  # classes listed by name
NOT_STATED = "not stated; ask whoever trained it before you use it"


@dataclass(frozen=True)
class CardFacts:
    """What a model card says that the weights do not.

    name          of the model
    data          what it was trained on; empty where that is not known
    network       the preset; empty where that is not known
    figures       rows as `tvmatch evaluate` wrote them, of this checkpoint, average and method
    remarks       what a reader of the figures must know
    imported      from a snapshot of the official implementation
    licence       of the weights, as an identifier of the hub (`apache-2.0`); None: nobody said
    data_licence  of the training data; None: nobody said
    """

    name: str
    data: str = ""
    network: str = ""
    figures: tuple[dict[str, Any], ...] = field(default=())
    licence: str | None = None
    data_licence: str | None = None
    remarks: tuple[str, ...] = ()
    imported: bool = False


def facts_of(run: Path, trained: TrainedRun, licence: str | None, data_licence: str | None) -> CardFacts:
    """What the folder of a run says; of an exported file, only its name."""
    for name, text in (("license", licence), ("data-license", data_licence)):
        if text is not None and (not text.strip() or "\n" in text):
            raise ValueError(f"--{name} must be one line, such as cc-by-4.0; got {text!r}.")
    imported = read_header(trained.checkpoint).get("imported", False)
    if run.is_file():
        return CardFacts(run.stem, licence=licence, data_licence=data_licence, imported=imported)
    config = read_config(run)
    # of a path the last part: the rest is this machine's business
    data = config.data if config.data.startswith("hf:") else Path(config.data).name
    figures, remarks = figures_of(run, trained)
    remarks = tuple(_without_folders(remark, (str(run), config.data)) for remark in remarks)
    return CardFacts(
        run.resolve().name, data, config.network, figures, licence, data_licence, remarks=remarks, imported=imported
    )


def figures_of(run: Path, trained: TrainedRun) -> tuple[tuple[dict[str, Any], ...], tuple[str, ...]]:
    """The rows and the remarks of RUN/evaluation.json if they are of this very checkpoint and average, and of samples
    drawn by the method that the pipeline draws by; else none. Rows say how many samples they are of; those in the
    features of a network are text, with that network's file and the data that they compare with."""
    path = run / "evaluation.json"
    try:
        said = json.loads(path.read_text("utf-8"))
        pin = said["checkpoint"]
        in_features = isinstance(pin, dict)
        pin = pin if in_features else {"path": pin, "ema": said["ema"], "sha256": said.get("sha256")}
        if (Path(pin["path"]).name, pin["ema"]) != (trained.checkpoint.name, trained.ema):
            return (), ()
        if said.get("method") != trained.method:
            return (), ()
        # earlier versions wrote no hash: then the name must do
        if pin.get("sha256") is not None and pin["sha256"] != sha256_of(trained.checkpoint):
            return (), ()
        remarks = tuple(map(str, said.get("remarks", ())))
        if not in_features:
            return tuple({**row, "samples": said["samples"]} for row in said["rows"]), remarks
        data, features = said["statistics"]["data"], said["features"]["file"]
        against = {"features": features, "against": data if data.startswith("hf:") else Path(data).name}
        rows = tuple({**line, **against, "samples": said["samples"]} for line in cells(said["rows"]))
        return rows, tuple(_without_folders(remark, (data, said.get("run", ""))) for remark in remarks)
    except FileNotFoundError:
        return (), ()
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} is not what `tvmatch evaluate` writes ({error!r}); measure again, or remove it."
        ) from error


def model_card(trained: TrainedRun, facts: CardFacts, codec: str | None, picture: str | None) -> str:
    """The text of the card. `codec` names the codec in vae/, `picture` the file of samples; None: there is none."""
    network = trained.flow.network
    shape = " x ".join(map(str, network.data_shape))
    count = sum(value.numel() for value in trained.flow.parameters())
    asked = "class_labels=0" if network.num_classes else "num_images_per_label=4"
    if network.num_classes and trained.class_names:
        asked = f"class_labels={json.dumps(trained.class_names[0], ensure_ascii=False)}"
    kind = "" if picture else ', output_type="latent"'  # without a codec there is nothing else to give
    origin = "Imported from a snapshot of the official implementation" if facts.imported else "Trained"
    decay = f"average of weights: decay {trained.ema}"
    training = "not known, nor which average of weights this is" if facts.imported else f"{trained.step} ({decay})"
    told = ", as said when it was imported" if facts.imported else ""
    what = f"pictures of {shape}" if picture else f"latents of {shape}"
    if trained.latent_space is not None and codec:
        what = f"pictures of {trained.latent_space.image_size} pixels a side, as latents of {shape},"
    calls = f"{trained.nfe} network call{'s' if trained.nfe > 1 else ''}"
    lines = [
        "---",
        "library_name: diffusers",
        *([f"license: {json.dumps(facts.licence)}"] if facts.licence else []),
        "tags: [tvmatch, terminal-velocity-matching, few-step]",
        "---",
        "",
        f"# {facts.name}",
        "",
        f"Draws {what} in {calls}, or as many as you like. {origin} and exported with tvmatch.",
        "",
        *([f"![Samples in {calls}, not selected]({picture})", ""] if picture else []),
        "```python",
        "from tvmatch.integrations.diffusers import TVMatchPipeline  # pip install 'tvmatch[export]'",
        "",
        'pipeline = TVMatchPipeline.from_pretrained("THIS FOLDER")',
        f"images = pipeline({asked}, num_inference_steps={trained.nfe}{kind}).images",
        "```",
        "",
        "## The model",
        "",
        "| | |",
        "|---|---|",
        f"| network | {facts.network or type(network).__name__}, {count:,} parameters |",
        f"| objective | {trained.objective} |",
        f"| training steps | {training} |",
        f"| guidance scales in training | {trained.guidance}{told}; {trained.w:g} by default |",
        f"| classes | {_classes(trained)} |",
        *([f"| codec | {codec} |"] if codec else []),
        f"| training data | {facts.data or 'not known'} |",
        "",
        "## Figures",
        "",
        *_figures(facts),
        "",
        "## Licences",
        "",
        f"- Weights: {facts.licence or NOT_STATED}.",
        *(
            ["- They come from a snapshot of the official implementation, whose licence applies."]
            if facts.imported
            else []
        ),
        f"- Training data: {facts.data_licence or NOT_STATED}.",
        *(["- The codec in `vae/` is somebody else's work, under its own licence."] if codec else []),
        "",
        "## Method",
        "",
        "Terminal Velocity Matching, [arXiv 2511.19797](https://arxiv.org/abs/2511.19797)."
        if trained.objective == "terminal-velocity"
        else f"{trained.objective}, as tvmatch trains it (docs/methods.md there).",
        "",
    ]
    return "\n".join(lines)


def _classes(trained: TrainedRun) -> str:
    count = trained.flow.network.num_classes
    if not count:
        return "none"
    listed = ", ".join(name.replace("|", "\\|") for name in trained.class_names[:NAMED])
    return f"{count}: {listed}{', ...' if len(trained.class_names) > NAMED else ''}" if listed else str(count)


def _figures(facts: CardFacts) -> list[str]:
    if not facts.figures:
        return ["None: this checkpoint was exported before `tvmatch evaluate` had measured it as the pipeline draws."]
    columns = list(dict.fromkeys(name for row in facts.figures for name in row))
    return [
        "As `tvmatch evaluate` measured this checkpoint"
        + ("." if "against" in columns else ", against its training data."),
        "",
        f"| {' | '.join(columns)} |",
        "|---" * len(columns) + "|",
        *(f"| {' | '.join(_shown(row.get(name)) for name in columns)} |" for row in facts.figures),
        *(["", *(f"- {remark}" for remark in facts.remarks)] if facts.remarks else []),
    ]


def _without_folders(text: str, known: tuple[str, ...]) -> str:
    """A remark with the last part of each path only: the rest is this machine's business. Of paths with spaces in them
    those that are `known`."""
    for path in known:
        if Path(path).is_absolute():
            text = text.replace(path, Path(path).name)
    return re.sub(r"(?<![\w:/.])/(?:[^\s/]+/)+", "", text)


def _shown(value: Any) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
