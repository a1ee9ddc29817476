// The worker: generates text beside the page, which stays responsive.
//
// It receives {type: "load", checkpoint (base64), program}, {type: "generate", prompt, options} and {type: "stop"}, and
// posts {type: "ready", model}, {type: "tokens", tokens}, {type: "done", ending, count, seconds, unknown} and
// {type: "failed", message}.

// Milliseconds of work between two looks at the messages that have arrived.
const SLICE = 16;
let generator = null, stopped = false;

function fromBase64(text) {
  const characters = atob(text), bytes = new Uint8Array(characters.length);
  for (let i = 0; i < bytes.length; i++) bytes[i] = characters.charCodeAt(i);
  return bytes;
}

// What the page says about the model, and how to sample from it. A checkpoint may have anything in place of a name.
function describe({ configuration, provenance }) {
  const { cell, layers, hidden } = configuration;
  const name = (value) => (typeof value === "string" ? value : "");
  const { min_p: minP, lexicon } = provenance.decoding ?? {};
  return {
    ...{ cell, layers, hidden, size: generator.vocabulary.size },
    ...{ run: name(provenance.run), corpus: name(provenance.corpus) },
    minP: minP > 0 && minP <= 1 ? minP : 0,
    lexicon: generator.speller ? lexicon === true : null,
  };
}

// Let messages in. A timer would wait for some milliseconds.
const { port1, port2 } = new MessageChannel();
const breathe = () => new Promise((resolve) => {
  port1.onmessage = resolve;
  port2.postMessage(null);
});

async function generate({ prompt, options }) {
  stopped = false;
  const story = generator.generate(prompt, options);
  let count = 0, working = 0, ending = "stopped";
  while (!stopped) {
    const began = performance.now(), tokens = [];
    let next;
    do {
      next = story.next();
      if (!next.done) tokens.push(next.value);
    } while (!next.done && performance.now() - began < SLICE);
    working += performance.now() - began;
    count += tokens.filter(({ bits }) => bits !== null).length;
    self.postMessage({ type: "tokens", tokens });
    if (next.done) {
      ending = next.value;
      break;
    }
    await breathe();
  }
  const unknown = generator.vocabulary.unknownIn(prompt);
  self.postMessage({ type: "done", ending, count, seconds: working / 1000, unknown });
}

self.onmessage = async ({ data }) => {
  try {
    if (data.type === "load") {
      const checkpoint = readCheckpoint(fromBase64(data.checkpoint));
      generator = new TextGenerator(checkpoint, data.program);
      self.postMessage({ type: "ready", model: describe(checkpoint) });
    } else if (data.type === "stop") {
      stopped = true;
    } else {
      await generate(data);
    }
  } catch (error) {
    self.postMessage({ type: "failed", message: String(error.message ?? error) });
  }
};
