"""`grimmgen fetch`: download the tales into the cache."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Sequence
from typing import Annotated

from grimmgen.cli import options

# Tales that a message names.
_MOST_NAMED = 10


def fetch(
    stories: Annotated[
        str, options.option(help="Number of stories, all (209), or numbers and ranges like 1-20,35.")
    ] = "100",
    url: Annotated[
        str | None,
        options.option(
            help="Directory URL of 001.txt and so on.", show_default="of the cached tales, else the CMU page"
        ),
    ] = None,
    jobs: Annotated[int, options.option(help="Number of simultaneous downloads.")] = 8,
    force: Annotated[bool, options.option("--force", help="Download again what is in the cache.")] = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Download the tales of the Brothers Grimm into the cache, except those that are in it.

    Example: grimmgen fetch --stories all
    """
    from grimmgen.cli import console
    from grimmgen.errors import GrimmgenError, IntegrityError
    from grimmgen.text import fetch as fetching

    requested, missing, received, failed = 0, 0, 0, list[fetching.DocumentFailed]()
    fetched = list[str]()
    began = time.monotonic()
    notify = None if quiet or json else console.note
    events = fetching.fetch(fetching.story_numbers(stories), url, jobs=jobs, force=force, notify=notify)
    try:
        with console.Bars(quiet or json) as bars, contextlib.closing(events):
            bar = 0
            for event in events:
                match event:
                    case fetching.FetchStarted():
                        requested, missing, directory = event.requested, event.missing, event.directory
                        bar = bars.add("tales", missing)
                    case fetching.DocumentFetched():
                        fetched.append(event.name)
                        received += event.size
                    case fetching.DocumentFailed():
                        failed.append(event)
                        if event.name in fetched:
                            # It had the same text as another one.
                            fetched.remove(event.name)
                size = console.size(received)
                rate = console.size(received / max(1e-3, time.monotonic() - began))
                failures = f"{len(failed)} failed  " if failed else ""
                bars.update(bar, len(fetched), f"{failures}{size}  {rate}/s", failures or size)
    except KeyboardInterrupt:
        present = requested - missing + len(fetched)
        raise KeyboardInterrupt(
            f"stopped: {present} of {requested} tales are in the cache; the same command fetches the others"
        ) from None
    failed.sort(key=lambda failure: failure.name)
    if json:
        console.document(
            {
                "directory": directory,
                "asked": requested,
                "present": requested - len(failed),
                "fetched": sorted(fetched),
                "failed": {failure.name: str(failure.error) for failure in failed},
                "bytes": received,
            }
        )
    elif not failed:
        news = f" ({len(fetched)} fetched, {console.size(received)})" if missing else ", all there already"
        console.out(f"{requested} tales in {directory}{news}")
    if failed:
        reasons = dict[str, list[str]]()
        for failure in failed:
            reasons.setdefault(_reason(failure.error), []).append(failure.name)
        if len(reasons) > 1 and not (quiet or json):
            for reason, names in reasons.items():
                console.note(f"{_listed(names)}: {reason}")
        kind = IntegrityError if all(isinstance(f.error, IntegrityError) for f in failed) else GrimmgenError
        remedies = {failure.error.remedy for failure in failed}
        remedy = remedies.pop() if len(remedies) == 1 else "run the command again to fetch what is missing"
        if len(failed) == requested:
            remedy += "; `grimmgen train --corpus sampler` needs none of them"
        named = f" ({_listed([failure.name for failure in failed])})" if len(failed) < missing else ""
        raise kind(f"{len(failed)} of {missing} tales could not be fetched{named}, {failed[0].error.what}", remedy)
    if not (quiet or json):
        console.hint("grimmgen train", "next")


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:_MOST_NAMED]) + (" …" if len(names) > _MOST_NAMED else "")


def _reason(error: Exception) -> str:
    """Why a tale could not be fetched: its error without its address and the number of attempts."""
    return re.sub(r"^\S+: | \([0-9]+ attempts?\)$", "", getattr(error, "what", str(error)))
