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
    stories: Annotated[
        int, options.option(help="Tell so many, each with a random seed one higher than that of the one before.")
    ] = 1,
    state: Annotated[
        Literal["random", "zeros"],
        options.option(help="What the network begins with: a little noise as in the tutorial, or zeros."),
    ] = "random",
    novelty: Annotated[
        bool,
        options.option("--novelty", help="Then tell what of it stands verbatim in the run's training stories."),
    ] = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Tell a story with a trained model: the text goes to standard output as it is made, all else elsewhere.

    Several stories are told side by side, and come when all are complete, with an empty line between them.

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
    judge = None
    if novelty:
        from grimmgen.cli.novelty import Judge

        judge = Judge(run)
    prompt = teller.vocabulary.normalise(seed)
    if stories == 1 and not json:
        pieces = []
        for piece in teller.tell(seed, chosen):
            console.write(piece)
            if judge is not None:
                pieces.append(piece)
        console.write("\n")
        told = ["".join(pieces)]
    else:
        told = teller.tell_several(seed, chosen, stories)
        if json:
            documents = [
                {
                    "run": name,
                    "prompt": prompt,
                    "text": text,
                    "length": chosen.length,
                    "top_k": chosen.top_k,
                    "temperature": chosen.temperature,
                    "random_seed": chosen.random_seed + number,
                    "state": chosen.state,
                    **({} if judge is None else judge.describe(text[len(prompt) :])),
                }
                for number, text in enumerate(told)
            ]
            console.document(documents if stories > 1 else documents[0])
            return
        console.write("\n".join(f"{text}\n" for text in told))
    if judge is not None:
        for number, text in enumerate(told, 1):
            if stories > 1:
                console.note(f"story {number}:")
            judge.tell(text[len(prompt) :])
    if random_seed is None and not quiet and sys.stderr.isatty():
        several = f" --stories {stories}" if stories > 1 else ""
        console.hint(f"--random-seed {chosen.random_seed}{several}", f"{name} tells the same again with")
