// Generating text as `grimmgen generate` does: initial state, prompt, sample, stop (grimmgen/sampling/).

const UNKNOWN = 0, END = 1;
const SPECIALS = 2;
// Characters that are searched for the beginning of a grapheme cluster.
const LONGEST_CLUSTER = 32;
// Standard deviation of the random initial state.
const STATE_DEVIATION = 0.05;

class Vocabulary {
  constructor({ ngram, lower, newlines, language, ngrams, alphabet }) {
    Object.assign(this, { ngram, lower, newlines, language, ngrams });
    this.alphabet = new Set(alphabet);
    this.ids = new Map(ngrams.map((text, i) => [text, i + SPECIALS]));
    this.size = ngrams.length + SPECIALS;
  }

  text(id) {
    return id < SPECIALS ? "" : this.ngrams[id - SPECIALS];
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

  // A normalised prompt as the ids to read, the characters of the first token that the prompt has already, and the ids
  // that the first token may have (null is all).
  parse(prompt, beginnings) {
    const characters = [...prompt];
    if (!characters.length) return { ids: [END], prefix: "", candidates: beginnings };
    const ids = [END];
    let at = 0;
    for (; at + this.ngram <= characters.length; at += this.ngram) {
      ids.push(this.ids.get(characters.slice(at, at + this.ngram).join("")) ?? UNKNOWN);
    }
    const prefix = characters.slice(at).join("");
    if (!prefix) return { ids, prefix, candidates: null };
    const candidates = this.startingWith(prefix);
    if (candidates.length) return { ids, prefix, candidates };
    return { ids: [...ids, UNKNOWN], prefix: "", candidates: null };
  }

  // The tokens that start with a prefix and are longer than it.
  startingWith(prefix) {
    return [...this.ids].filter(([text]) => text.length > prefix.length && text.startsWith(prefix)).map(([, id]) => id);
  }
}

// The functions below take time at every token: they are loops, since iterators would take several times as long.

function largestOf(logits) {
  let largest = -Infinity;
  for (let id = 0; id < logits.length; id++) if (!(logits[id] <= largest)) largest = logits[id];  // NaN, too
  return largest;
}

// The logarithm of the sum of the exponentials: what is subtracted from a logit is the logarithm of its probability.
function logSum(logits) {
  const largest = largestOf(logits);
  let sum = 0;
  for (let id = 0; id < logits.length; id++) sum += Math.exp(logits[id] - largest);
  return largest + Math.log(sum);
}

// All logits but those of some ids become minus infinity.
function allowOnly(logits, ids) {
  const allowed = new Float32Array(logits.length).fill(-Infinity);
  for (const id of ids) allowed[id] = logits[id];
  return allowed;
}

function temper(logits, temperature) {
  const largest = largestOf(logits), tempered = new Float32Array(logits.length);
  for (let id = 0; id < logits.length; id++) tempered[id] = logits[id] - largest;
  if (temperature === 0) return allowOnly(tempered, [tempered.indexOf(0)]);
  if (temperature !== 1) for (let id = 0; id < logits.length; id++) tempered[id] /= temperature;
  return tempered;
}

// The k largest logits; of equal ones the first.
function topK(logits, k) {
  if (k < 1 || k >= logits.length) return logits;
  const least = logits.slice().sort()[logits.length - k];
  const kept = new Float32Array(logits.length).fill(-Infinity);
  let left = k;
  for (let id = 0; id < logits.length; id++) {
    if (logits[id] > least) {
      kept[id] = logits[id];
      left--;
    }
  }
  for (let id = 0; left > 0; id++) {
    if (logits[id] === least) {
      kept[id] = least;
      left--;
    }
  }
  return kept;
}

// The fewest largest logits whose probabilities add up to at least p, and at least one.
function topP(logits, p) {
  if (p >= 1) return logits;
  const ascending = logits.slice().sort(), normaliser = logSum(logits);
  let sum = 0, count = 0;
  do sum += Math.exp(ascending[logits.length - ++count] - normaliser); while (sum < p && count < logits.length);
  return topK(logits, count);
}

// The order of filter_logits in grimmgen/sampling/logits.py.
function filterLogits(logits, { temperature, topK: k, topP: p }) {
  logits = logits.slice();
  logits[UNKNOWN] = -Infinity;
  const tempered = temper(logits, temperature);
  const filtered = topP(topK(tempered, k), p);
  // A text can always end, except where only the most probable token is taken.
  if (temperature !== 0 && k !== 1) filtered[END] = tempered[END];
  return filtered;
}

// Sample an id in proportion to its probability, with a random number from 0 to 1.
function draw(logits, uniform) {
  const sums = new Float64Array(logits.length);
  let sum = 0;
  for (let id = 0; id < logits.length; id++) sums[id] = sum += Math.exp(logits[id]);
  for (let id = 0; id < logits.length; id++) if (sums[id] > uniform * sum) return id;
  return logits.length - 1;
}

// Cut a text that has too many characters, -remaining, but no grapheme cluster, which may have begun in the tail.
function cut(tail, text, remaining) {
  const known = tail.join("") + text;
  const end = [...known].slice(0, remaining || undefined).join("").length;
  let boundary = 0;
  for (const { index, segment } of new Intl.Segmenter("en", { granularity: "grapheme" }).segment(known)) {
    if (index + segment.length > end) break;
    boundary = index + segment.length;
  }
  return known.slice(tail.join("").length, boundary);
}

class TextGenerator {
  constructor(checkpoint, program) {
    this.vocabulary = new Vocabulary(checkpoint.vocabulary);
    this.network = new Network(checkpoint, program);
    const { beginnings } = checkpoint.provenance;
    const known = (Array.isArray(beginnings) ? beginnings : []).filter(
      (id) => Number.isInteger(id) && id > END && id < this.vocabulary.size);
    this.beginnings = known.length ? known : null;
  }

  // Yields {text, bits}: first the prompt, whose bits are null, then each token with its surprisal; and while the prompt is
  // read, an empty text for each of its tokens. Returns why it ended: "end" or "length".
  *generate(prompt, options) {
    const { network, vocabulary } = this;
    const generator = new RandomGenerator(options.randomSeed);
    this.drawStates(generator);
    prompt = vocabulary.normalise(prompt);
    if (prompt) yield { text: prompt, bits: null };
    let { ids, prefix, candidates } = vocabulary.parse(prompt, this.beginnings);
    for (const id of ids) {
      network.step(id);
      yield { text: "", bits: null };
    }
    let tail = [...prompt].slice(-LONGEST_CLUSTER);
    for (let remaining = options.length; remaining > 0;) {
      const logits = network.logits;
      if (!(largestOf(logits) < Infinity)) throw new Error("the logits are not finite");
      const allowed = candidates ? allowOnly(logits, candidates) : logits;
      const token = draw(filterLogits(allowed, options), generator.uniform());
      const bits = this.surprisal(token, prefix ? candidates : null);
      network.step(token);
      let text = vocabulary.text(token).slice(prefix.length);
      remaining -= [...text].length;
      if (remaining <= 0) text = cut(tail, text, remaining);
      yield { text, bits };
      if (token === END) return "end";
      tail = [...tail, ...text].slice(-LONGEST_CLUSTER);
      prefix = "";
      candidates = null;
    }
    return "length";
  }

  drawStates(generator) {
    const { states } = this.network;
    for (const layers of states) {
      for (const [state] of layers) for (let n = 0; n < state.length; n++) state[n] = STATE_DEVIATION * generator.normal();
    }
    // Two states are drawn even for a cell with one, so that each random number has the place that it has in grimmgen.
    if (states.length === 1) for (const [state] of states[0]) for (let n = 0; n < state.length; n++) generator.normal();
  }

  // The bits of a token under the model; those of a token that the prompt begins are given its beginning.
  surprisal(token, candidates) {
    const { logits } = this.network;
    return Math.max(0, (logSum(candidates ? allowOnly(logits, candidates) : logits) - logits[token]) / Math.LN2);
  }
}
