"""`grimmgen generate`: tell a story."""

from __future__ import annotations

import sys
from typing import Annotated, Literal

from grimmgen.cli import options

# It is read n-gram by n-gram before the story goes on.
_LONGEST_PROMPT = 1 << 20


def generate(
    run: options.RunOrFile = None,
    seed: Annotated[
        str, options.option(help="The text that the story begins with; - reads it from standard input.")
    ] = "",
    length: Annotated[
        int, options.option(help="Characters to tell after it, at most: the story may end before.")
    ] = 500,
    top_k: Annotated[int, options.option(help="Draw among this many best n-grams, in proportion; 0 is all.")] = 3,
    temperature: Annotated[float, options.option(help="Above 1 bolder, below 1 safer, 0 always the best.")] = 1.0,
    random_seed: Annotated[
        int | None, options.option(help="Makes the story the same again.", show_default="a new one")
    ] = None,
    state: Annotated[
        Literal["random", "zeros"],
        options.option(help="What the network begins with: a little noise as in the tutorial, or zeros."),
    ] = "random",
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Tell a story with a trained model: the text goes to standard output as it is made, all else elsewhere.

    Example: grimmgen generate --seed "the king" --top-k 3 > story.txt
    """
    from grimmgen import registry
    from grimmgen.cli import console
    from grimmgen.errors import UsageError
    from grimmgen.generation import Decoding, Storyteller, fresh_random_seed

    chosen = Decoding(
        length=length,
        top_k=top_k,
        temperature=temperature,
        random_seed=fresh_random_seed() if random_seed is None else random_seed,
        state=state,
    )
    if seed == "-":
        try:
            # One line end before the end of the input is the shell's, not the story's.
            sent = sys.stdin.buffer.read(_LONGEST_PROMPT + 1)
            seed = sent.decode("utf-8-sig").removesuffix("\n").removesuffix("\r")
        except UnicodeDecodeError as error:
            raise UsageError(f"standard input is not UTF-8 (byte {error.start})", "convert it first") from None
        if len(sent) > _LONGEST_PROMPT:
            raise UsageError(
                f"standard input is longer than {_LONGEST_PROMPT >> 20} MB", "give the last part of it"
            )
    name, checkpoint = registry.find_checkpoint(run)
    teller = Storyteller(name, checkpoint)
    if not quiet and (unseen := teller.vocabulary.unseen(seed)):
        shown = " ".join(repr(character) for character in unseen[:20]) + (" …" if len(unseen) > 20 else "")
        console.warn(f"the model has never seen {shown}: it reads <unk> there and goes on")
    pieces = teller.tell(seed, chosen)
    if json:
        console.document(
            {
                "run": name,
                "prompt": teller.vocabulary.normalise(seed),
                "text": "".join(pieces),
                "length": chosen.length,
                "top_k": chosen.top_k,
                "temperature": chosen.temperature,
                "random_seed": chosen.random_seed,
                "state": chosen.state,
            }
        )
        return
    for piece in pieces:
        console.write(piece)
    console.write("\n")
    if random_seed is None and not quiet and sys.stderr.isatty():
        console.hint(f"--random-seed {chosen.random_seed}", f"{name} tells the same again with")
