"""Options, each declared once as a field of a dataclass, and `Configuration`: the options of training.

A declaration (`option`) yields the check of the range, the parameter of the command and its completions, the way
the option is typed, the type check of a stored value, and a row of docs/options.md.

Needs neither PyTorch nor NumPy: help texts show the defaults, and the registry reads configurations.
"""

# ruff: noqa: RUF009 - `option` returns a dataclass field

from __future__ import annotations

import contextlib
import dataclasses
import numbers
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import InitVar, dataclass
from functools import cache, partial
from types import NoneType
from typing import Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

from grimmgen.errors import IntegrityError, UsageError, did_you_mean
from grimmgen.network.cells import cells

Initialisation = Literal["auto", "normal", "xavier"]
DropoutMode = Literal["tutorial", "output", "locked"]
Schedule = Literal["plateau", "cosine"]
Newlines = Literal["keep", "space"]
Language = Literal["tr", "az"]
# What a matrix product rounds its factors to; `auto` is resolved when the backend is known.
Products = Literal["fp32", "bf16"]
Precision = Literal["auto", Products]

# The options that say how a text is read.
READING = ("documents", "encoding", "column", "field", "keep_boilerplate")
DOCUMENT_ENDS = ("file", "line", "paragraph")
LONGEST_NGRAM = 8
# Sizes of a byte-pair vocabulary.
BYTE_PAIRS = 8, 1 << 20
NETWORK, TRAINING, TEXT = "Network", "Training", "Text"
# The epochs of a run whose learning rate anneals to the end of its budget.
UNLIMITED_EPOCHS = 1 << 20
_LARGEST = 1 << 20
_SEEDS = 2**63 - 1


class Normalisation(NamedTuple):
    """How a text is normalised before it is cut into tokens; see `grimmgen.text.normalisation`.

    Attributes:
        lower: convert to lower case.
        newlines: "keep" line ends, or replace each by a "space".
        language: the language whose rules of lower case apply, where they differ from those of all others.
    """

    lower: bool = True
    newlines: Newlines = "keep"
    language: Language | None = None


class Option(NamedTuple):
    """The declaration of an option.

    Attributes:
        help: one line for `--help`; `{choices}` stands for the choices.
        low: the smallest value; None where there is no range.
        high: the largest value; None is no limit.
        range: the range in words, where "low to high" would not say it well.
        unit: follows the range in an error message.
        choices: the values of a text; those of a `Literal` are known without this.
        suggestions: values that a shell completes, where the choices are not all that there are.
        flag: what is typed where it is not the field's name; `--on/--off` for a bool; a single flag of a bool
            sets the opposite of its default.
        alias: another flag that sets the same; empty for none.
        panel: the heading in `--help`; None is the first one.
        metavar: the value's name in `--help`.
        default_text: the default in words.
        parse: converts the text that was typed, where the type alone does not say how.
        typed: the inverse of `parse`.
        validate: checks a value whose range is not one of numbers or choices; raises UsageError.
        effective_with: another option and the value that it must have for this one to have an effect; refused only
            where this one was typed.
        requires: another option that must be set where this one is.
        excludes: options that make this one ineffective.
        name: the field's name; this and what follows come from the field.
        type: int, float, str or bool.
        optional: whether None is a value.
        default: the field's default.
    """

    help: str
    low: float | None = None
    high: float | None = None
    range: str = ""
    unit: str = ""
    choices: Callable[[], tuple[str, ...]] = tuple
    suggestions: tuple[str, ...] = ()
    flag: str = ""
    alias: str = ""
    panel: str | None = None
    metavar: str | None = None
    default_text: str | None = None
    parse: Callable[[str], Any] | None = None
    typed: Callable[[Any], str] = str
    validate: Callable[[Any], None] | None = None
    effective_with: tuple[str, Any] | None = None
    requires: str | None = None
    excludes: tuple[str, ...] = ()
    name: str = ""
    type: type = str
    optional: bool = False
    default: Any = None

    @property
    def flags(self) -> tuple[str, ...]:
        """What is typed: for a bool the one that switches it on, then the one that switches it off."""
        dashed = self.name.replace("_", "-")
        return tuple(
            (self.flag or (f"--{dashed}/--no-{dashed}" if self.type is bool else f"--{dashed}")).split("/")
        )

    @property
    def parameter(self) -> str:
        """The name of the command's parameter, and in capitals of its variable: `lr`, `keep_case`."""
        return self.flags[0].removeprefix("--").replace("-", "_")

    @property
    def inverted(self) -> bool:
        """Whether the flag switches off what is on by default."""
        return self.type is bool and len(self.flags) == 1 and bool(self.default)

    @property
    def description(self) -> str:
        """The help with the choices put in."""
        *first, last = self.choices() or ("",)
        return self.help.replace("{choices}", f"{', '.join(first)} or {last}")

    @property
    def limits(self) -> str:
        """The range or the choices in words; empty where there are none."""
        if self.range or self.choices():
            return self.range or " or ".join(self.choices())
        if self.low is None:
            return ""
        return f"{_number(self.low)} to {_number(self.high)}" if self.high is not None else f"{self.low:g} or more"

    def as_typed(self, value: Any) -> str:
        """The option with this value on a command line."""
        if self.type is bool:
            return self.flags[0] if bool(value) != self.inverted else self.flags[-1]
        return f"{self.flags[0]} {self.typed(value)}"

    def check(self, value: Any) -> None:
        """Raise UsageError if the value is out of range, or none of the choices."""
        if self.optional and value is None:
            return
        if (choices := self.choices()) and value not in choices:
            raise UsageError(f"{self.flags[0]} {str(value)[:80]!r} is not known", f"give {self.limits}")
        if self.validate is not None:
            self.validate(value)
        # The comparison is false for NaN.
        if self.low is not None and not self.low <= value <= (value if self.high is None else self.high):
            raise UsageError(f"{self.flags[0]} {_number(value)} is out of range", f"give {self.limits}{self.unit}")

    def convert(self, value: Any) -> Any:
        """Convert an argument of a Python function: a value of the option's type, or text as it is typed in a shell.

        Raises:
            UsageError: it is neither.
        """
        kinds = {bool: bool, int: numbers.Integral, float: numbers.Real, str: str}
        if isinstance(value, str) and self.type is not bool:
            with contextlib.suppress(ValueError):
                return (self.parse or self.type)(value)
        elif isinstance(value, kinds[self.type]) and isinstance(value, bool) == (self.type is bool):
            return self.type(value)
        kind = {bool: "True or False", int: "a whole number", float: "a number", str: "text"}[self.type]
        raise UsageError(
            f"{self.flags[0]} {str(value)[:40]!r} is not {kind}", f"give {self.limits or kind}{self.unit}"
        )

    def accepts(self, value: object) -> bool:
        """Whether a stored value has the right type; a whole number may stand for a float."""
        if value is None:
            return self.optional
        return type(value) is self.type or (self.type is float and type(value) is int)


def option(default: Any, help: str, **declaration: Any) -> Any:  # noqa: A002 - as in Typer
    """A dataclass field that declares an option; see `Option`."""
    return dataclasses.field(default=default, metadata={"option": Option(help=help, **declaration)})


@cache
def options_of(options: type) -> Mapping[str, Option]:
    """The options that a dataclass declares, by the names of its fields."""
    hints = get_type_hints(options)
    found = {}
    for field in dataclasses.fields(options):
        parts = [part for part in get_args(hints[field.name]) if part is not NoneType]
        hint, optional = hints[field.name], False
        if NoneType in get_args(hint):
            [hint], optional = parts, True
        declared: Option = field.metadata["option"]
        if get_origin(hint) is Literal:
            known = get_args(hint)
            declared, hint = declared._replace(choices=partial(tuple, known)), str
        found[field.name] = declared._replace(name=field.name, type=hint, optional=optional, default=field.default)
    return found


def from_arguments(options: type, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Convert keyword arguments, named and written as in a shell, to values of the fields of a dataclass of options.

    The names of fields are accepted, too. An argument that is None counts as not given.

    >>> from_arguments(Configuration, {"lr": 0.01, "budget": "5m", "keep_case": True, "hidden": None})
    {'learning_rate': 0.01, 'budget': 300.0, 'lower': False}

    Raises:
        UsageError: there is no such option, it is given twice, or its value is not of its type.
    """
    declared = options_of(options).values()
    fields = {one.name: one for one in declared}
    named = {name: one for one in declared for name in (one.parameter, one.alias.removeprefix("--")) if name}
    values: dict[str, Any] = {}
    for name, argument in arguments.items():
        one = fields.get(name) or named.get(name)
        if one is None:
            near = did_you_mean(name, [*named, *fields])
            raise UsageError(f"there is no option {name[:40]!r}{near}", "the function's help lists all")
        if argument is None:
            continue
        if one.name in values:
            raise UsageError(f"{name} is another name of an option that is given already", "leave out one of them")
        value = one.convert(argument)
        values[one.name] = value != one.inverted if name not in fields and one.type is bool else value
    return values


def check_options(options: Any) -> None:
    """Check the values of a dataclass of options, each by itself and beside the others.

    Raises:
        UsageError: a value is out of range, or two contradict each other.
    """
    declared = options_of(options.__class__)
    for name, option in declared.items():
        option.check(getattr(options, name))
    for name, option in declared.items():
        if getattr(options, name) == option.default:
            continue
        flag = option.flags[0]
        if option.requires and getattr(options, option.requires) == declared[option.requires].default:
            needed = declared[option.requires].flags[0]
            raise UsageError(f"{flag} has no effect without {needed}", f"give {needed} as well")
        for other in option.excludes:
            if getattr(options, other) != declared[other].default:
                excluding = declared[other].flags[0]
                raise UsageError(f"{flag} has no effect with {excluding}", f"leave out {flag}")


def duration(text: str) -> float:
    """Seconds of a duration as typed: 90, 30s, 10m, 1.5h.

    >>> duration("10m")
    600.0

    Raises:
        UsageError: the text is not a duration.
    """
    number, unit = (text[:-1], text[-1]) if text[-1:].isalpha() else (text, "s")
    try:
        return float(number) * {"s": 1, "m": 60, "h": 3600, "d": 86400}[unit.lower()]
    except (ValueError, KeyError):
        raise UsageError(f"--budget {text!r} is not a duration", "give one like 30s, 10m or 1h") from None


def check_documents(documents: str) -> None:
    """Raise UsageError unless this is one of DOCUMENT_ENDS, or a regular expression that can separate documents."""
    if documents in DOCUMENT_ENDS:
        return
    shown, form = repr(documents[:40]), f"give {', '.join(DOCUMENT_ENDS)} or a regular expression"
    if documents.isalpha():
        # More likely a mistaken name than a separator.
        raise UsageError(f"--documents {shown} is not known", f"{form} (a word in brackets)")
    try:
        pattern = re.compile(documents, re.MULTILINE)
    except (re.error, RecursionError, OverflowError):
        raise UsageError(f"--documents {shown} is not a regular expression", form) from None
    if pattern.match(""):
        raise UsageError(f"--documents {shown} matches between any two characters", form)


def check_encoding(encoding: str) -> None:
    """Raise UsageError if Python does not know a text encoding of this name."""
    try:
        "".encode(encoding)
    except (LookupError, ValueError):
        raise UsageError(
            f"--encoding {encoding[:40]!r} is not known", "give a name like utf-8, windows-1252 or gb18030"
        ) from None


def check_name(flag: str, name: str) -> None:
    """Raise UsageError if a name is empty or has control characters."""
    if not name or not name.isprintable():
        raise UsageError(f"{flag} {name[:40]!r} is not a name", "give the name of one")


class Tokenization(NamedTuple):
    """How a text is cut into tokens.

    Attributes:
        kind: n-grams; words, spelt from characters where they are rare; or byte pairs.
        size: n of n-grams, vocabulary size of byte pairs, 0 for words.
    """

    kind: Literal["ngram", "word", "bpe"]
    size: int = 0

    @property
    def name(self) -> str:
        """As `--tokens` has it; the inverse of `tokenization`."""
        if self.kind == "ngram":
            return {1: "char", 2: "bigram"}.get(self.size, f"ngram:{self.size}")
        return f"bpe:{self.size}" if self.kind == "bpe" else "word"

    @property
    def units(self) -> str:
        """What the tokens are called in the plural."""
        if self.kind != "ngram":
            return "tokens"
        return {1: "unigrams", 2: "bigrams", 3: "trigrams"}.get(self.size, f"{self.size}-grams")


def tokenization(tokens: str) -> Tokenization:
    """The meaning of `--tokens`; a number alone is that of `--ngram`.

    >>> tokenization("ngram:3"), tokenization("bigram").name, tokenization("1").name
    (Tokenization(kind='ngram', size=3), 'bigram', 'char')

    Raises:
        UsageError: it is none of the forms, or its number is out of range.
    """
    form = f"give bigram, char, ngram:N (1 to {LONGEST_NGRAM}), word or bpe:SIZE (as in bpe:1000)"
    named = {"char": Tokenization("ngram", 1), "bigram": Tokenization("ngram", 2), "word": Tokenization("word")}
    if tokens in named:
        return named[tokens]
    kind, colon, digits = tokens.rpartition(":")
    if re.fullmatch(r"[+-]?[0-9]{1,9}", digits, re.ASCII):
        size = int(digits)
        if kind == "bpe":
            low, high = BYTE_PAIRS
            if not low <= size <= high:
                raise UsageError(f"--tokens bpe:{size} is out of range", f"give bpe:{low} to bpe:{high}")
            return Tokenization("bpe", size)
        if kind == "ngram" or not colon:
            if not 1 <= size <= LONGEST_NGRAM:
                flag = "--tokens ngram:" if colon else "--ngram "
                raise UsageError(f"{flag}{size} is out of range", f"give 1 to {LONGEST_NGRAM}")
            return Tokenization("ngram", size)
    raise UsageError(f"--tokens {tokens[:40]!r} is not known", form)


@dataclass(frozen=True)
class Configuration:
    """The options of a training run; the defaults are the tutorial's. docs/options.md lists them.

    The precision is that of the matrix products in training; weights, states, gates, loss and optimiser are always
    float32, and so are evaluation and generation. (Dynamic evaluation trains: see `grimmgen.evaluation.dynamic`.)

    Raises:
        UsageError: a value is out of range, or lacks an option that it requires.
    """

    cell: str = option(
        "lstm", "Recurrent cell: {choices}", choices=lambda: tuple(cells()), metavar="CELL", panel=NETWORK
    )
    rounds: int = option(
        5,
        "Modulation rounds of the mogrifier",
        low=0,
        high=20,
        effective_with=("cell", "mogrifier"),
        panel=NETWORK,
    )
    hidden: int = option(128, "Hidden units per layer", low=1, high=1 << 15, panel=NETWORK)
    layers: int = option(1, "Number of layers", low=1, high=64, panel=NETWORK)
    embedding: int = option(0, "Embedding size; 0 uses one-hot input", low=0, high=1 << 15, panel=NETWORK)
    tied: bool = option(
        False,
        "Share the embedding with the output layer",
        flag="--tied/--untied",
        requires="embedding",
        panel=NETWORK,
    )
    dropout: float = option(0.2, "Dropout probability of a layer's output", low=0.0, high=0.99, panel=TRAINING)
    dropout_mode: DropoutMode = option(
        "tutorial",
        "tutorial: the next time step receives the dropped output, too; output: only the next layer does;"
        " locked: the same, with one mask per window",
        metavar="MODE",
        panel=TRAINING,
    )
    input_dropout: float = option(
        0.0,
        "Dropout probability of the embedding, one mask per window",
        low=0.0,
        high=0.99,
        requires="embedding",
        panel=TRAINING,
    )
    weight_drop: float = option(
        0.0,
        "Dropout probability of the recurrent weights, one mask per window",
        low=0.0,
        high=0.99,
        panel=TRAINING,
    )
    initialisation: Initialisation = option(
        "auto",
        "Weight initialisation: normal (σ 0.02), xavier, or auto: xavier from two layers on",
        flag="--init",
        metavar="INIT",
        panel=NETWORK,
    )
    batch_size: int = option(64, "Batch rows", low=1, high=_LARGEST, panel=TRAINING)
    unroll: int = option(50, "Time steps of truncated back-propagation", low=1, high=_LARGEST, panel=TRAINING)
    learning_rate: float = option(
        0.001, "Learning rate after warm-up", low=1e-12, high=1e6, flag="--lr", panel=TRAINING
    )
    clip: float = option(5.0, "Largest global norm of the gradient", low=1e-12, high=1e12, panel=TRAINING)
    weight_decay: float = option(
        0.0, "Decoupled weight decay, relative to the learning rate", low=0.0, high=1e3, panel=TRAINING
    )
    schedule: Schedule = option(
        "plateau",
        "Learning rate: plateau decays it when validation perplexity stops improving, cosine anneals it to the end"
        " of --epochs or --budget",
        metavar="SCHEDULE",
        panel=TRAINING,
    )
    warmup: float = option(
        0.02,
        "Share of the training over which cosine warms up",
        low=0.0,
        high=1.0,
        effective_with=("schedule", "cosine"),
        panel=TRAINING,
    )
    decay_factor: float = option(
        0.5,
        "Factor by which plateau decays the rate",
        low=1e-6,
        high=1.0,
        effective_with=("schedule", "plateau"),
        panel=TRAINING,
    )
    decay_patience: int = option(
        5,
        "Evaluations without improvement before the rate decays",
        low=1,
        high=_LARGEST,
        effective_with=("schedule", "plateau"),
        panel=TRAINING,
    )
    precision: Precision = option(
        "auto",
        "Matrix products in training: fp32, bf16, or auto: the fastest here, measured at the start",
        metavar="PRECISION",
        panel=TRAINING,
    )
    epochs: int = option(180, "Maximum number of passes over the training set", low=1, high=1 << 30)
    budget: float | None = option(
        None,
        "Maximum training time of the run, with its resumes, as in 30s, 10m, 1h: start-up, evaluations and saves"
        " count, reading more than 64 MB of text does not",
        low=1e-3,
        high=1e9,
        range="0.001s to 1000000000s, as in 30s, 10m, 1h",
        metavar="TIME",
        default_text="no limit",
        parse=duration,
        typed=lambda seconds: f"{seconds:.15g}s",  # without an exponent
    )
    patience: int = option(
        15,
        "Evaluations without improvement of the validation perplexity before training stops; 0 never stops",
        low=0,
        high=_LARGEST,
    )
    reset_state: bool = option(True, "Reset the state at the start of each story", panel=NETWORK)
    random_seed: int = option(0, "Seed of all randomness", low=0, high=_SEEDS)
    tokens: str = option(
        "bigram",
        "How text is cut into tokens: bigram, char or ngram:N characters that do not overlap; word, where rare words"
        " are spelt from characters; or bpe:SIZE, a byte-pair encoding with a vocabulary of this size. --ngram N"
        " stands for --tokens ngram:N",
        alias="--ngram",
        metavar="TOKENS",
        range="bigram, char, ngram:N, word or bpe:SIZE",
        suggestions=("bigram", "char", "ngram:3", "word", "bpe:1000"),
        parse=lambda typed: tokenization(typed).name,
        validate=tokenization,
        panel=TEXT,
    )
    min_count: int = option(
        10,
        "Minimum occurrences of a token in the training set; rarer n-grams become <unk>",
        low=1,
        high=1 << 40,
        panel=TEXT,
    )
    lower: bool = option(True, "Keep upper case instead of folding to lower case", flag="--keep-case", panel=TEXT)
    newlines: Newlines = option("keep", "Line ends: keep them, or read each as a space", metavar="HOW", panel=TEXT)
    documents: str = option(
        "file",
        "Where a document ends: file, line, paragraph (an empty line), or a regular expression that separates"
        " documents",
        metavar="WHERE",
        range="file, line, paragraph or a regular expression",
        suggestions=DOCUMENT_ENDS,
        validate=check_documents,
        panel=TEXT,
    )
    encoding: str | None = option(
        None,
        "Encoding of the text, as in utf-8, windows-1252 or gb18030",
        metavar="NAME",
        default_text="recognised in each file",
        range="a name",
        validate=check_encoding,
        panel=TEXT,
    )
    column: str | None = option(
        None,
        "Column of a CSV or TSV file that has the text",
        metavar="NAME",
        default_text="the only one with text",
        range="a name",
        validate=partial(check_name, "--column"),
        panel=TEXT,
    )
    field: str | None = option(
        None,
        "Field of a JSON line that has the text",
        metavar="NAME",
        default_text="text, or the only one with text",
        range="a name",
        validate=partial(check_name, "--field"),
        panel=TEXT,
    )
    keep_boilerplate: bool = option(
        False,
        "Keep the header and the licence of Project Gutenberg's books",
        flag="--keep-boilerplate",
        panel=TEXT,
    )
    language: Language | None = option(
        None,
        "Language with lower-case rules of its own: {choices} (Turkish, Azeri), where I becomes ı, and İ becomes i",
        metavar="CODE",
        default_text="the rules of all others",
        excludes=("lower",),
        panel=TEXT,
    )
    phases: bool = option(
        False, "Train on tokens cut from every offset, a new offset for each story and epoch", panel=TEXT
    )
    counts: bool = option(
        False,
        "Keep counts of the training set beside the network, for a mixture of both that predicts better; it is"
        " fitted on the validation set when training is complete",
        flag="--counts/--no-counts",
        panel=TRAINING,
    )

    # The name that `tokens` had when tokens could only be n-grams.
    ngram: InitVar[int | None] = None

    def __post_init__(self, ngram: int | None) -> None:
        if ngram is not None:
            if self.tokens != OPTIONS["tokens"].default:
                raise UsageError("--ngram and --tokens exclude each other", "give one of them")
            object.__setattr__(self, "tokens", str(ngram))
        check_options(self)
        object.__setattr__(self, "tokens", self.tokenization.name)
        if self.phases and self.tokenization.kind != "ngram":
            raise UsageError(f"--phases has no effect with --tokens {self.tokens}", "leave out --phases")
        if cells()[self.cell].pre_step is not None and not self.embedding:
            raise UsageError(f"--cell {self.cell} needs --embedding", "give it as well, as in --embedding 256")

    @property
    def normalisation(self) -> Normalisation:
        """The options of normalisation."""
        return Normalisation(self.lower, self.newlines, self.language)

    @property
    def tokenization(self) -> Tokenization:
        """How text is cut into tokens."""
        return tokenization(self.tokens)

    @property
    def is_tutorial(self) -> bool:
        """Whether network and training are the tutorial's, whatever the text and the time."""
        any_value = {"epochs", "budget", "patience", "random_seed", "precision"}
        return all(OPTIONS[name].panel == TEXT or name in any_value for name in self.departures())

    def departures(self) -> dict[str, Any]:
        """The options that are not the tutorial's."""
        return {name: value for name, value in self.to_json().items() if value != OPTIONS[name].default}

    def to_json(self) -> dict[str, Any]:
        """A value that `from_json` reads."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, value: object, written_by: str = "") -> Configuration:
        """The configuration that `to_json` wrote, here or in an earlier version, of which it keeps the behaviour.

        Args:
            value: of `to_json`.
            written_by: the program that wrote it, for an error message.

        Raises:
            IntegrityError: an option is unknown, of the wrong type, or out of range.
        """
        if not isinstance(value, dict):
            raise IntegrityError("the configuration is not a JSON object", "train again")
        if "ngram" in value and "tokens" not in value:
            value = {**value}
            if type(ngram := value.pop("ngram")) is not int:
                raise IntegrityError("the configuration's ngram has the wrong type", "train again")
            value["tokens"] = f"ngram:{ngram}"
        for name, stored in value.items():
            if name not in OPTIONS:
                source = f", written by {written_by}," if written_by else ""
                raise IntegrityError(
                    f"the configuration{source} has an unknown option {str(name)[:80]!r}", "upgrade grimmgen"
                )
            if not OPTIONS[name].accepts(stored):
                raise IntegrityError(f"the configuration's {name} has the wrong type", "train again")
        try:
            return cls(**{**_EARLIER, **value})
        except UsageError as error:
            raise IntegrityError(f"the configuration is invalid: {error.what}", "train again") from error


OPTIONS = options_of(Configuration)
# Values that reproduce what versions did which did not have the option, where it is not the default.
_EARLIER = {"keep_boilerplate": True, "patience": 0}

# What the departures from the tutorial add up to, by purpose; docs/settings.md says what each is good for.
PRESETS: dict[str, dict[str, Any]] = {
    "tutorial": {},
    # What does not depend on the text and the time; `grimmgen.training.auto` chooses the rest.
    "auto": {
        "tokens": "bpe:1000",
        "initialisation": "xavier",
        "dropout": 0.3,
        "dropout_mode": "output",
        "learning_rate": 0.006,
        "clip": 1.0,
        "batch_size": 8,
        "schedule": "cosine",
        "epochs": 15,
        "counts": True,
    },
    "quick": {
        "tokens": "bpe:1000",
        "hidden": 192,
        "initialisation": "xavier",
        "dropout": 0.1,
        "dropout_mode": "output",
        "learning_rate": 0.006,
        "clip": 1.0,
        "batch_size": 8,
        "schedule": "cosine",
        "epochs": 5,
        "counts": True,
    },
    "strong": {
        "cell": "coupled",
        "tokens": "bpe:1000",
        "hidden": 512,
        "embedding": 256,
        "tied": True,
        "initialisation": "xavier",
        "dropout": 0.55,
        "dropout_mode": "output",
        "input_dropout": 0.1,
        "weight_drop": 0.3,
        "learning_rate": 0.005,
        "clip": 1.0,
        "batch_size": 16,
        "schedule": "cosine",
        "epochs": 20,
        "counts": True,
    },
}


def default_preset(sources: Collection[str]) -> str:
    """The preset where none is given: the tutorial's for the tales it is about, and `auto` for other texts.

    Args:
        sources: of the corpus.
    """
    return "tutorial" if {*sources} <= {"grimm", "sampler"} else "auto"


def preset_options(preset: str, chosen: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a preset, with these in place of its own; see `merge_options`.

    Raises:
        UsageError: there is no such preset.
    """
    if preset not in PRESETS:
        near = did_you_mean(str(preset), PRESETS)
        raise UsageError(f"--preset {str(preset)[:40]!r} is not known{near}", f"give {' or '.join(PRESETS)}")
    return merge_options(PRESETS[preset], chosen)


def merge_options(defaults: Mapping[str, Any], chosen: Mapping[str, Any]) -> dict[str, Any]:
    """Options with those that were chosen in place of the defaults.

    Phases are left out where the tokens chosen have none; where phases were chosen, so are tokens that have none.
    """
    values = {**defaults, **chosen}
    if tokenization(values.get("tokens", "bigram")).kind != "ngram":
        if "phases" not in chosen:
            values.pop("phases", None)
        elif "tokens" not in chosen:
            values.pop("tokens")
    return values


def configure(preset: str, chosen: Mapping[str, Any], base: Configuration | None = None) -> Configuration:
    """The configuration of a preset with these options, by the names of their fields, in place of its own.

    Args:
        preset: its name.
        chosen: the options.
        base: that of the model that training starts from.

    Raises:
        UsageError: there is no such preset, a value is out of range, or an option contradicts the base.
    """
    values = preset_options(preset, chosen)
    if base is not None:
        values = base_options(base, values, chosen)
    if "budget" in chosen and "epochs" not in chosen and values.get("schedule") == "cosine":
        # The rate anneals to the end of the budget: the epochs must not end training before.
        values["epochs"] = UNLIMITED_EPOCHS
    return Configuration(**values)


def check_effective(configuration: Configuration, typed: Collection[str]) -> None:
    """Refuse options, by the names of their fields, that were typed and have no effect in this configuration.

    Raises:
        UsageError: there is one.
    """
    for name, declared in OPTIONS.items():
        if declared.effective_with and name in typed:
            other, value = declared.effective_with
            if (found := getattr(configuration, other)) != value:
                flag, needed = declared.flags[0], OPTIONS[other].flags[0]
                raise UsageError(
                    f"{flag} has no effect with {needed} {found}", f"leave it out, or give {needed} {value}"
                )
    if "weight_drop" in typed and not cells()[configuration.cell].recurrent_product:
        raise UsageError(
            f"--weight-drop has no effect with --cell {configuration.cell}, which has no recurrent weight",
            "leave it out",
        )


# What a model's weights and its tokens follow from: a training that starts from a model cannot change it.
_OF_BASE = ("cell", "rounds", "hidden", "layers", "embedding", "tied", "tokens", "min_count")
# What says how a text is read and cut into tokens.
_OF_TEXT = (*READING, "tokens", "min_count", "lower", "newlines", "language", "phases")
# What it takes over where nothing else is chosen.
_LIKE_BASE = ("dropout_mode", "reset_state", "lower", "newlines", "language", "phases")


def text_options(configuration: Configuration) -> dict[str, Any]:
    """The options that say how a text is read and cut into tokens."""
    return {option: getattr(configuration, option) for option in _OF_TEXT}


def base_options(base: Configuration, values: Mapping[str, Any], chosen: Collection[str]) -> dict[str, Any]:
    """The options of a training that starts from a model: its architecture, its tokens and its reading of a text.

    Args:
        base: the configuration of the model.
        values: the options of the new training.
        chosen: the names of those that the user chose.

    Raises:
        UsageError: one that was chosen contradicts the model.
    """
    values = {**values}
    for option in _OF_BASE:
        has = getattr(base, option)
        if option in chosen and values[option] != has:
            flag = OPTIONS[option].flags[0]
            raise UsageError(
                f"{OPTIONS[option].as_typed(values[option])} contradicts --from, whose model has"
                f" {OPTIONS[option].as_typed(has)}",
                f"leave {flag} out, or train without --from",
            )
        values[option] = has
    values |= {option: getattr(base, option) for option in _LIKE_BASE if option not in chosen}
    if not base.embedding and "input_dropout" not in chosen:
        values["input_dropout"] = 0.0
    return values


def _number(number: float) -> str:
    # A whole number in full, as it was typed, unless it has too many digits to be of use.
    if isinstance(number, float):
        return f"{number:g}"
    return str(number) if -(10**40) < number < 10**40 else "(a number of more than 40 digits)"
