"""Pictures that cannot be decoded: others of their class stand in for them, and figures must say so."""

from tvmatch.data.source import Source


def stand_ins(source: Source, among: range | None = None) -> int:
    """How many pictures of a source (`among` these numbers) could not be decoded until now, so that others of their
    class stood in for them."""
    unusable = getattr(source, "unusable", ())
    return len(unusable) if among is None else sum(index in among for index in unusable)


def stand_in_remark(name: str, count: int) -> str | None:
    """What must be said of `count` such pictures of `name`."""
    if not count:
        return None
    return (
        f"at least {count} of the pictures of {name} cannot be used, and others of their classes stand in for them: "
        "these count twice, and each is its own nearest neighbour."
    )
