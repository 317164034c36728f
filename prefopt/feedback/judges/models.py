"""Which model is behind a server: what the server says of it, and whether that changes."""

import hashlib
import json
import logging
import threading
from collections.abc import Sequence

from prefopt.feedback.judges.question import Serving

log = logging.getLogger(__name__)


class Models:
    """The models that a server is known to have now.

    A model is what the server lists about it (`/models`: root, size, quantisation, where it says so) together with what its replies
    say of it (`model`, `system_fingerprint`). The list is asked for before each batch; where it has changed, and at the beginning,
    no reply is known, and one question tells. A hosted model may answer from several builds at once, so all that were heard count.

    Args:
        backend: the server.

    Attributes:
        heard: what replies said, under the present list; the latest last.
        all: every model that was heard of.
        latest: list and reply together, as JSON; None before the first reply.
        noted: the latest that is on disk.
        lock: held while it is found out.
    """

    def __init__(self, backend: Serving):
        self.backend = backend
        self.heard: list[str] = []
        self.all: list[str] = []
        self.latest: str | None = None
        self.noted: str | None = None
        self.lock = threading.RLock()
        self._listed: str | None = None
        self._told = False

    def look(self, last: str | None) -> bool:
        """Ask for the list; whether a question has to tell which model it is.

        Args:
            last: what the server said to an earlier run; taken to be so still where it is not there.
        """
        listed = self.backend.listed()
        if listed is None:
            if not self.heard and last is not None:
                self._listed, served = json.loads(last)
                self.heard = [served]
                log.warning("the server is not there; remembered answers of %s are used", describe(last))
            return False
        if listed != self._listed:
            self._listed, self.heard = listed, []
        return not self.heard

    def hear(self, served: str, last: str | None) -> None:
        """What a reply said; says so where that is another model than before.

        Args:
            served: `Answer.served`.
            last: what the server said before, to this run or an earlier one.
        """
        with self.lock:
            if not served or served in self.heard:
                return
            self.heard.append(served)
            self.latest = json.dumps([self._listed or "", served])
            before = self.all[-1] if self.all else last
            if before is not None and before != self.latest and self.latest not in self.all:
                log.warning(
                    "another model answers behind the judge's server: %s, before it was %s. Its answers are asked for anew, and "
                    "scores of the two are not of one judge",
                    describe(self.latest),
                    describe(before),
                )
            if self.latest not in self.all:
                self.all.append(self.latest)

    def key(self, key: bytes, served: str) -> bytes:
        """A question's key under a model."""
        return hashlib.sha256(key + json.dumps([self._listed or "", served]).encode()).digest()

    def keys(self, key: bytes, likely: Sequence[str] = ()) -> list[bytes]:
        """A question's keys under all that were heard, the latest first, and under more that are likely."""
        return [self.key(key, served) for served in [*reversed(self.heard), *likely]]

    def note_unknown(self, name: str) -> None:
        """Say once that answers of an earlier version are used, which did not ask whose they were."""
        if not self._told:
            self._told = True
            log.warning(
                "%s: remembered answers of an earlier version of prefopt are used, which did not record the model behind the "
                "server; `cache` with another folder asks anew",
                name,
            )


def describe(model: str) -> str:
    """A model in words."""
    listed, served = json.loads(model)
    said = {**(json.loads(listed) if listed else {}), **(json.loads(served) if served else {})}
    names = ("root", "parent", "model", "id", "system_fingerprint", "meta")
    return ", ".join(f"{name} {said[name]}" for name in names if said.get(name)) or "one that it says nothing of"
