"""Which GPUs a submission names: by index, by UUID or the beginning of one; and what of it contradicts itself. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from gpuq.errors import CannotFit, UsageError
from gpuq.model import ANY_GPU, Driver, Wishes

#: So many GPUs are named where one does not exist.
MOST_NAMED = 16


@dataclass(frozen=True, slots=True)
class Listed:
    """The GPUs of this host, as a submission may name them."""

    #: None while they are not known yet
    driver: Driver | None
    #: index by UUID, of every GPU seen since the daemon started; None for one that the driver does not list now
    indexes: Mapping[str, int | None]
    #: what is wrong with the driver as a whole
    fault: str | None = None

    @property
    def none(self) -> bool:
        """Whether this is a host for CPU jobs."""
        return self.driver is Driver.NONE or (self.driver is Driver.OK and not self.indexes)

    def place(self, uuid: str) -> str:
        index = self.indexes.get(uuid)
        return uuid if index is None else f"GPU {index} ({uuid})"

    def find(self, word: str, what: str) -> str:
        """The UUID of the GPU that is meant. Raises CannotFit for none, UsageError where it may be several."""
        if not self.indexes:
            why = "this host has no GPUs" if self.none else f"which GPUs there are is not known: {self._unknown}"
            raise CannotFit(f"{what} {word}: {why}")
        if word.isascii() and word.isdigit():
            return self._at(word, what)
        start = word.casefold()
        found = [uuid for uuid in self.indexes if uuid.casefold().startswith(start)]
        found = [uuid for uuid in found if uuid.casefold() == start] or found
        if not found:
            raise CannotFit(f"{what} {word}: there is no such GPU; {self._there_are}")
        if len(found) > 1:
            raise UsageError(f"{what} {word} is how {len(found)} UUIDs begin: {', '.join(found[:MOST_NAMED])}")
        return found[0]

    def _at(self, index: str, what: str) -> str:
        found = next((uuid for uuid, number in self.indexes.items() if str(number) == index.lstrip("0").zfill(1)), None)
        if found is not None:
            return found
        if all(number is None for number in self.indexes.values()):
            why = f"which GPU has that index is not known: {self._unknown}"
            raise CannotFit(f"{what} {index:.20}: {why}; name its UUID: {self._there_are}")
        raise CannotFit(f"{what} {index:.20}: there is no GPU {index:.20}; {self._there_are}")

    @property
    def _unknown(self) -> str:
        return self.fault or ("they have not been read yet" if self.driver is None else "the driver lists none now")

    @property
    def _there_are(self) -> str:
        named = [uuid if index is None else f"{index} ({uuid})" for uuid, index in self.indexes.items()]
        more = [f"and {len(named) - MOST_NAMED} more"] if len(named) > MOST_NAMED else []
        return f"there {'is' if len(named) == 1 else 'are'} {', '.join([*named[:MOST_NAMED], *more])}"


def resolve(words: Iterable[str], what: str, listed: Listed) -> tuple[str, ...]:
    """UUIDs, each once. Raises CannotFit, UsageError."""
    return tuple(dict.fromkeys(listed.find(word, what) for word in words))


def refuse_contradiction(gpus: int, wishes: Wishes, listed: Listed) -> None:
    """Raises UsageError for what no host could satisfy."""
    if not gpus and wishes != ANY_GPU:
        raise UsageError(f"--gpus 0 is a job without GPUs, and {_options(wishes)} chooses among them: leave one out")
    both = next((uuid for uuid in wishes.only if uuid in wishes.exclude), None)
    if both is not None:
        raise UsageError(f"--gpu-id and --exclude-gpu both name {listed.place(both)}: leave one of them out")
    if wishes.only and len(wishes.only) < gpus:
        raise UsageError(
            f"--gpus asks for {gpus} GPUs, and --gpu-id names {len(wishes.only)}: name as many, from which to choose"
        )


def _options(wishes: Wishes) -> str:
    """The first of the options by which something was wished."""
    given = {
        "--gpu-type": wishes.types,
        "--gpu-min-memory": wishes.min_memory,
        "--gpu-id": wishes.only,
        "--exclude-gpu": wishes.exclude,
    }
    return next((name for name, value in given.items() if value), "--spread")
