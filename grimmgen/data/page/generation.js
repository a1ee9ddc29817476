// Generating text as `grimmgen generate` does: initial state, prompt, sample, stop (grimmgen/sampling/).

// Characters that are searched for the beginning of a grapheme cluster.
const LONGEST_CLUSTER = 32;
// Characters of a word of the lexicon, at most.
const LONGEST_WORD = 31;
// Standard deviation of the random initial state.
const STATE_DEVIATION = 0.05;

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

// The logits whose probability is at least p times the largest one.
function minP(logits, p) {
  if (p <= 0) return logits;
  const least = largestOf(logits) + Math.log(p);
  return logits.map((logit) => (logit >= least ? logit : -Infinity));
}

function keepProbable(logits, options) {
  return minP(topP(topK(logits, options.topK), options.topP), options.minP);
}

// Finds the tokens that spell other words than those of a lexicon (grimmgen/sampling/spelling.py).
class Speller {
  constructor(words, vocabulary) {
    this.letters = new Set([...words.join("")]);
    this.words = new Set(words);
    // What a token does to the word before it: the letters that it adds, and whether it ends it.
    this.tokens = [];
    const isWord = (run) => run !== undefined && this.letters.has([...run][0]);
    for (let id = 0; id < vocabulary.size; id++) {
      const runs = this.runs(vocabulary.text(id));
      const added = isWord(runs[0]) ? runs.shift() : "", last = isWord(runs.at(-1)) ? runs.pop() : "";
      this.tokens.push({ added, ends: runs.length > 0 || id === END, whole: runs.filter(isWord), last });
    }
    this.beginnings = this.spellable();
    for (const [id, token] of this.tokens.entries()) {
      token.right = id !== UNKNOWN && this.beginnings.has(token.last) && token.whole.every((word) => this.words.has(word));
    }
    this.known = new Map();
  }

  // The beginnings of words whose rest can be put together from tokens.
  spellable() {
    const added = (wanted) => new Set(this.tokens.slice(END).filter(({ ends }) => ends === wanted).map((token) => token.added));
    const inner = added(false), final = added(true), found = new Set([""]);
    for (const word of this.words) {
      const letters = [...word], size = letters.length, spelt = new Array(size + 1).fill(false);
      const part = (begin, end) => letters.slice(begin, end).join("");
      spelt[size] = true;
      for (let begin = size - 1; begin > 0; begin--) {
        spelt[begin] = final.has(part(begin));
        for (let end = begin + 1; end <= size && !spelt[begin]; end++) spelt[begin] = spelt[end] && inner.has(part(begin, end));
      }
      for (let begin = 1; begin <= size; begin++) if (spelt[begin]) found.add(part(0, begin));
    }
    return found;
  }

  // Runs of letters and of other characters.
  runs(text) {
    const runs = [];
    let before = null;
    for (const character of text) {
      const isLetter = this.letters.has(character);
      if (isLetter === before) runs.push(runs.pop() + character);
      else runs.push(character);
      before = isLetter;
    }
    return runs;
  }

  // The letters at the end of a text.
  lastWord(text) {
    const characters = [...text];
    let begin = characters.length;
    while (begin && this.letters.has(characters[begin - 1])) begin--;
    return characters.slice(begin).join("");
  }

  // The ids that must not follow the beginning of a word. A word that the lexicon does not have may go on in any way.
  misspellings(word) {
    if (this.known.has(word)) return this.known.get(word);
    const isKnown = this.beginnings.has(word), wrong = [];
    for (const [id, { added, ends, right }] of this.tokens.entries()) {
      const whole = word + added;
      const fits = !isKnown || (ends ? whole === "" || this.words.has(whole) : this.beginnings.has(whole));
      if (!right || !fits) wrong.push(id);
    }
    this.known.set(word, wrong);
    return wrong;
  }

  // Forbid misspellings, unless that would leave no token.
  apply(logits, word) {
    const right = logits.slice();
    for (const id of this.misspellings(word)) right[id] = -Infinity;
    return largestOf(right) === -Infinity ? logits : right;
  }
}

// The order of filter_logits in grimmgen/sampling/logits.py.
function filterLogits(logits, options) {
  logits = logits.slice();
  logits[UNKNOWN] = -Infinity;
  const tempered = temper(logits, options.temperature);
  const filtered = keepProbable(tempered, options);
  // A text can always end, except where only the most probable token is taken.
  if (options.temperature !== 0 && options.topK !== 1) filtered[END] = tempered[END];
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
    this.vocabulary = vocabularyOf(checkpoint.vocabulary);
    this.network = new Network(checkpoint, program);
    const { beginnings } = checkpoint.provenance;
    const known = (Array.isArray(beginnings) ? beginnings : []).filter(
      (id) => Number.isInteger(id) && id > END && id < this.vocabulary.size);
    this.beginnings = known.length ? known : null;
    const { lexicon } = checkpoint.provenance;
    const words = typeof lexicon === "string" ? lexicon.split(" ").filter((word) => word && [...word].length <= LONGEST_WORD) : [];
    this.speller = words.length ? new Speller(words, this.vocabulary) : null;
  }

  // Yields {text, bits}: first the prompt, whose bits are null, then each token with its surprisal; and while the prompt is
  // read, an empty text for each of its tokens. Returns why it ended: "end" or "length".
  *generate(prompt, options) {
    const { network, vocabulary } = this;
    const generator = new RandomGenerator(options.randomSeed);
    this.drawStates(generator);
    prompt = vocabulary.normalise(prompt);
    if (prompt) yield { text: prompt, bits: null };
    const { ids, ends } = vocabulary.readPrompt(prompt);
    for (const id of [END, ...ids]) {
      network.step(id);
      yield { text: "", bits: null };
    }
    let prefix = this.readEnd(ends, options, generator);
    let candidates = prompt ? prefix && vocabulary.startingWith(prefix) : this.beginnings;
    let tail = [...prompt].slice(-LONGEST_CLUSTER);
    const speller = options.lexicon ? this.speller : null;
    let word = speller ? speller.lastWord(prompt.slice(0, prompt.length - prefix.length)) : "";
    for (let remaining = options.length; remaining > 0;) {
      const logits = network.logits;
      if (!(largestOf(logits) < Infinity)) throw new Error("the logits are not finite");
      const allowed = candidates ? allowOnly(logits, candidates) : logits;
      const spelt = speller ? speller.apply(allowed, word) : allowed;
      const token = draw(filterLogits(spelt, options), generator.uniform());
      const bits = this.surprisal(token, prefix ? candidates : null);
      network.step(token);
      if (speller) word = speller.lastWord(word + vocabulary.text(token));
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

  // Read the end of a prompt, of several ways one in proportion to their probabilities. Returns the first characters of the
  // token that follows.
  readEnd(ends, options, generator) {
    const { network, vocabulary } = this;
    const before = network.snapshot(), logP = new Float32Array(ends.length), after = [];
    for (const [number, { ids, prefix }] of ends.entries()) {
      network.restore(before);
      let sum = 0;
      for (const id of ids) {
        sum += network.logits[id] - logSum(network.logits);
        network.step(id);
      }
      const { logits } = network;
      if (prefix) sum += logSum(allowOnly(logits, vocabulary.startingWith(prefix))) - logSum(logits);
      logP[number] = sum;
      after.push(network.snapshot());
    }
    const chosen = ends.length > 1 ? draw(keepProbable(temper(logP, options.temperature), options), generator.uniform()) : 0;
    network.restore(after[chosen]);
    return ends[chosen].prefix;
  }

  // The bits of a token under the model; those of a token that the prompt begins are given its beginning.
  surprisal(token, candidates) {
    const { logits } = this.network;
    return Math.max(0, (logSum(candidates ? allowOnly(logits, candidates) : logits) - logits[token]) / Math.LN2);
  }
}
