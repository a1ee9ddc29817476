// The vocabulary: tokens and their ids, and how a prompt is read, as in grimmgen/text/.

const UNKNOWN = 0, END = 1;
const SPECIALS = 2;

// The vocabulary of a checkpoint.
function vocabularyOf(stored) {
  if ("ngram" in stored) return new NgramVocabulary(stored);
  return new (stored.tokens === "word" ? WordVocabulary : BytePairVocabulary)(stored);
}

class Vocabulary {
  constructor({ lower, newlines, language }, texts, alphabet) {
    Object.assign(this, { lower, newlines, language, texts });
    this.alphabet = new Set(alphabet);
    this.ids = new Map(texts.map((text, i) => [text, i + SPECIALS]));
    this.size = texts.length + SPECIALS;
  }

  text(id) {
    return id < SPECIALS ? "" : this.texts[id - SPECIALS];
  }

  // As the training text was normalised.
  normalise(text) {
    text = text.replace(/\r\n?/g, "\n");
    if (this.newlines === "space") text = text.replaceAll("\n", " ");
    if (this.lower) {
      // Turkish and Azeri; composed first, since I and U+0307 are U+0130.
      if (this.language) text = text.normalize("NFC").replaceAll("I", "\u0131").replaceAll("\u0130", "i");
      text = text.toLowerCase();
    }
    return text.normalize("NFC");
  }

  // The characters of a prompt that the training text does not have.
  unknownIn(prompt) {
    return [...new Set(this.normalise(prompt))].filter((character) => !this.alphabet.has(character));
  }

  // The tokens that start with a prefix.
  startingWith(prefix) {
    return [...this.ids].filter(([text]) => text.startsWith(prefix)).map(([, id]) => id);
  }

  // readPrompt(prompt): the ids of a normalised prompt that are the same however it continues, and all ways to read the rest:
  // {ids, prefix}, with in `prefix` the first characters of a token that generation completes.
}

class NgramVocabulary extends Vocabulary {
  constructor(stored) {
    super(stored, stored.ngrams, stored.alphabet);
    this.ngram = stored.ngram;
  }

  startingWith(prefix) {
    return super.startingWith(prefix).filter((id) => this.text(id).length > prefix.length);
  }

  readPrompt(prompt) {
    const characters = [...prompt], ids = [];
    let at = 0;
    for (; at + this.ngram <= characters.length; at += this.ngram) {
      ids.push(this.ids.get(characters.slice(at, at + this.ngram).join("")) ?? UNKNOWN);
    }
    const prefix = characters.slice(at).join("");
    const known = !prefix || this.startingWith(prefix).length;
    return { ids, ends: [known ? { ids: [], prefix } : { ids: [UNKNOWN], prefix: "" }] };
  }
}

// Words, runs of punctuation, each with the space before it, and other white space (grimmgen/text/pretokens.py).
const PRETOKENS = (() => {
  const space = "\\t-\\r\\x1c-\\x20\\x85\\xa0\\u1680\\u2000-\\u200a\\u2028\\u2029\\u202f\\u205f\\u3000";
  const word = "\\p{L}\\p{N}_\\p{M}\\u200c\\u200d", several = "{1,32}";
  const parts = [` ?[${word}]${several}`, ` ?[^${space}${word}]${several}`, `[${space}]${several}?(?= ?[^${space}])`];
  return new RegExp([...parts, `[${space}]${several}`].join("|"), "gu");
})();

class PretokenVocabulary extends Vocabulary {
  constructor(stored) {
    super(stored, stored.texts, stored.texts.filter((text) => [...text].length === 1));
  }

  readPrompt(prompt) {
    const pretokens = prompt.match(PRETOKENS) ?? [];
    const last = pretokens.pop();
    if (last === undefined) return { ids: [], ends: [{ ids: [], prefix: "" }] };
    const ends = this.ends(last);
    return {
      ids: pretokens.flatMap((pretoken) => this.encode(pretoken)),
      ends: ends.length ? ends : [{ ids: this.encode(last), prefix: "" }],
    };
  }

  // The ids of a pre-token, or of its beginning.
  encode(pretoken) {
    return this.split(pretoken).map((text) => this.ids.get(text) ?? UNKNOWN);
  }
}

class WordVocabulary extends PretokenVocabulary {
  split(pretoken) {
    return this.ids.has(pretoken) ? [pretoken] : [...pretoken];
  }

  // A word that the prompt has begun; white space and the space of a word; or a word that is spelt.
  ends(last) {
    const ends = this.startingWith(last).length ? [{ ids: [], prefix: last }] : [];
    if ([...last].length > 1) {
      if (last.endsWith(" ") && this.startingWith(" ").length) {
        ends.push({ ids: this.encode(last.slice(0, -1)), prefix: " " });
      }
      ends.push({ ids: [...last].flatMap((character) => this.encode(character)), prefix: "" });
    }
    return ends;
  }
}

class BytePairVocabulary extends PretokenVocabulary {
  constructor(stored) {
    super(stored);
    this.longest = Math.max(...this.texts.map((text) => [...text].length));
    this.ranks = new Map(this.texts.filter((text) => [...text].length > 1).map((text, rank) => [text, rank]));
  }

  // Join neighbours until none are a token: those that were learnt first, then from the left.
  split(pretoken) {
    const parts = [...pretoken];
    for (;;) {
      let first = Infinity, place = 0;
      for (let i = 0; i + 1 < parts.length; i++) {
        const rank = this.ranks.get(parts[i] + parts[i + 1]) ?? Infinity;
        if (rank < first) [first, place] = [rank, i];
      }
      if (first === Infinity) return parts;
      parts.splice(place, 2, parts[place] + parts[place + 1]);
    }
  }

  ends(last) {
    const characters = [...last], ends = [];
    for (let at = Math.max(0, characters.length - this.longest); at < characters.length; at++) {
      const prefix = characters.slice(at).join("");
      if (this.startingWith(prefix).length) ends.push({ ids: this.encode(characters.slice(0, at).join("")), prefix });
    }
    return ends;
  }
}
