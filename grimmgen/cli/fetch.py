"""`grimmgen fetch`: download the tales into the cache."""

from __future__ import annotations

import time
from typing import Annotated

from grimmgen.cli import options

# Further failures are only counted, since they usually have the same cause.
_MAX_FAILURES_SHOWN = 5


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
    with console.Bars(quiet or json) as bars:
        bar = 0
        notify = None if quiet or json else console.note
        for event in fetching.fetch(fetching.story_numbers(stories), url, jobs=jobs, force=force, notify=notify):
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
                    if len(failed) <= _MAX_FAILURES_SHOWN:
                        bars.line(f"{event.name}: {event.error}", "red")
            size = console.size(received)
            rate = console.size(received / max(1e-3, time.monotonic() - began))
            bars.update(bar, len(fetched) + len(failed), f"{size}  {rate}/s", size)
        if len(failed) > _MAX_FAILURES_SHOWN:
            bars.line(f"and {len(failed) - _MAX_FAILURES_SHOWN} more; --json has them all", "red")
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
        names = ", ".join(failure.name for failure in failed[:10]) + (" …" if len(failed) > 10 else "")
        kind = IntegrityError if all(isinstance(f.error, IntegrityError) for f in failed) else GrimmgenError
        remedies = {failure.error.remedy for failure in failed}
        raise kind(
            f"{len(failed)} of {missing} tales could not be fetched ({names}), {failed[0].error.what}",
            remedies.pop() if len(remedies) == 1 else "run the command again to fetch what is missing",
        )
    if not (quiet or json):
        console.hint("grimmgen train", "next")
