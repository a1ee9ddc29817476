"""`grimmgen fetch`: bring the tales of the CMU page into the cache."""

from __future__ import annotations

import time
from typing import Annotated

from grimmgen.cli import options

# So many failures are told as they come; the others are most likely of the same kind.
_TOLD = 5


def fetch(
    stories: Annotated[
        str, options.option(help="How many from the first, all (209), or numbers and ranges like 1-20,35.")
    ] = "100",
    url: Annotated[
        str | None,
        options.option(help="Another place that serves 001.txt and so on.", show_default="the CMU page"),
    ] = None,
    jobs: Annotated[int, options.option(help="How many at once.")] = 8,
    force: Annotated[bool, options.option("--force", help="Fetch again what is there already.")] = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Download the tales of the Brothers Grimm into the cache; what is there already is not asked for again.

    Example: grimmgen fetch --stories all
    """
    from grimmgen.cli import console
    from grimmgen.errors import GrimmgenError, IntegrityError
    from grimmgen.text import fetch as fetching

    asked, missing, received, failed = 0, 0, 0, list[fetching.DocumentFailed]()
    fetched = list[str]()
    began = time.monotonic()
    with console.Bars(quiet or json) as bars:
        bar = 0
        waiting = None if quiet or json else console.note
        for event in fetching.fetch(
            fetching.story_numbers(stories), url or fetching.CMU, jobs=jobs, force=force, notify=waiting
        ):
            match event:
                case fetching.FetchStarted():
                    asked, missing, directory = event.requested, event.missing, event.directory
                    bar = bars.add("tales", missing)
                case fetching.DocumentFetched():
                    fetched.append(event.name)
                    received += event.size
                case fetching.DocumentFailed():
                    failed.append(event)
                    if len(failed) <= _TOLD:
                        bars.line(f"{event.name}: {event.error}", "red")
            rate = received / max(1e-3, time.monotonic() - began)
            bars.update(
                bar,
                len(fetched) + len(failed),
                f"{console.size(received)}  {console.size(rate)}/s",
                console.size(received),
            )
        if len(failed) > _TOLD:
            bars.line(f"and {len(failed) - _TOLD} more; --json has them all", "red")
    failed.sort(key=lambda failure: failure.name)
    if json:
        console.document(
            {
                "directory": directory,
                "asked": asked,
                "present": asked - len(failed),
                "fetched": sorted(fetched),
                "failed": {failure.name: str(failure.error) for failure in failed},
                "bytes": received,
            }
        )
    elif missing and not failed:
        console.out(f"{asked} tales in {directory} ({len(fetched)} fetched, {console.size(received)})")
    elif not failed:
        console.out(f"{asked} tales in {directory}, all there already")
    if failed:
        names = ", ".join(failure.name for failure in failed[:10]) + (" …" if len(failed) > 10 else "")
        kind = IntegrityError if all(isinstance(f.error, IntegrityError) for f in failed) else GrimmgenError
        remedies = {failure.error.remedy for failure in failed}
        raise kind(
            f"{len(failed)} of {missing} tales could not be fetched ({names}), {failed[0].error.what}",
            remedies.pop() if len(remedies) == 1 else "run the command again to fetch what is missing",
        )
    if not (quiet or json):
        console.hint("grimmgen train", "next")
