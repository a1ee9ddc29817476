
// The page: reads the form, has the worker generate, shows the text. Everything that comes from the model or the reader
// is put into the page as text (textContent), never as markup.

const element = (id) => document.getElementById(id);
const form = element("form"), story = element("story"), writeButton = element("write"), stopButton = element("stop");

// Upper bounds of the levels of surprise but the last, in bits per character.
const LEVELS = [0.5, 1, 2, 3, 4, 6];
// Tokens of the shortest story whose speed is shown.
const SHORTEST_TIMED = 200;
const LARGEST_SEED = 2n ** 63n - 1n;

let tokens = [];  // of the story: {text, bits}; bits are null for the prompt
const numbers = new Intl.NumberFormat("en");

// --- The worker ----------------------------------------------------------------------------------------------------

const source = new Blob([element("worker").textContent], { type: "text/javascript" });
const worker = new Worker(URL.createObjectURL(source));
worker.onmessage = ({ data }) => RECEIVE[data.type](data);
worker.onerror = (event) => fail(event.message);
worker.postMessage({
  type: "load",
  checkpoint: element("checkpoint").textContent,
  program: JSON.parse(element("program").textContent),
});

const RECEIVE = {
  ready({ model }) {
    describe(model);
    report("");
    writeButton.disabled = false;
  },
  tokens({ tokens: arrived }) {
    const follow = innerHeight + scrollY >= document.documentElement.scrollHeight - 4;
    tokens.push(...arrived);
    show(arrived);
    if (follow) scrollTo(0, document.documentElement.scrollHeight);
  },
  done({ ending, count, seconds, unknown }) {
    finish();
    if (ending === "end") story.classList.add("ended");
    const why = { end: "The end", length: "Length reached", stopped: "Stopped" }[ending];
    // Of a short story it would be the time that the first steps take.
    const speed = count >= SHORTEST_TIMED ? `, ${numbers.format(Math.round(count / seconds))} tokens a second` : "";
    const unseen = unknown.length ? `. The model has never seen ${unknown.map((c) => `“${c}”`).join(" ")}` : "";
    report(`${why}: ${numbers.format(written())} characters${speed}${unseen}.`);
  },
  failed({ message }) {
    fail(message);
  },
};

function describe(model) {
  const title = {
    lstm: "LSTM", coupled: "coupled LSTM", gru: "GRU", mingru: "minGRU", mogrifier: "Mogrifier LSTM", peephole: "peephole LSTM",
  };
  const layers = model.layers > 1 ? `${model.layers} layers of ` : "";
  const network = `${title[model.cell] ?? model.cell}, ${layers}${numbers.format(model.hidden)} units`;
  element("name").textContent = model.run || "Stories";
  element("about").textContent = model.corpus ? `trained on ${model.corpus}; ${network}` : network;
  document.title = model.run || "Stories";
  element("top-k").max = model.size;
  element("top-k").defaultValue = model.minP ? 0 : Math.min(element("top-k").value, model.size);
  element("min-p").defaultValue = model.minP;
  element("lexicon").defaultChecked = model.lexicon === true;
  element("lexicon").disabled = model.lexicon === null;
}

// --- Writing -------------------------------------------------------------------------------------------------------

form.addEventListener("submit", (event) => {
  event.preventDefault();
  if (writeButton.disabled) return;
  const seed = element("random-seed");
  if (element("fresh").checked) seed.value = Math.floor(Math.random() * 1e6);
  seed.setCustomValidity(/^\d+$/.test(seed.value) && BigInt(seed.value) > LARGEST_SEED ? seed.title : "");
  if (!form.reportValidity()) return;
  begin(element("prompt").value, {
    length: Number(element("length").value),
    temperature: Number(element("temperature").value),
    topK: Number(element("top-k").value),
    topP: Number(element("top-p").value),
    minP: Number(element("min-p").value),
    lexicon: element("lexicon").checked,
    randomSeed: seed.value,
  });
});

// A field that is wrong is shown, also among the options that are closed.
form.addEventListener("invalid", () => { element("options").open = true; }, true);

element("random-seed").addEventListener("input", () => { element("fresh").checked = false; });

element("prompt").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  form.requestSubmit();
});

document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && !stopButton.hidden) stop();
});

stopButton.addEventListener("click", stop);

function begin(prompt, options) {
  tokens = [];
  story.replaceChildren();
  story.classList.remove("ended");
  story.setAttribute("aria-busy", "true");
  element("result").hidden = false;
  element("command").textContent = commandLine(prompt, options);
  writeButton.disabled = true;
  writeButton.hidden = true;
  stopButton.hidden = false;
  if (document.activeElement === writeButton || document.activeElement === document.body) stopButton.focus();
  report("Writing …");
  worker.postMessage({ type: "generate", prompt, options });
}

function stop() {
  worker.postMessage({ type: "stop" });
}

function finish() {
  const focused = document.activeElement === stopButton;
  story.removeAttribute("aria-busy");
  writeButton.disabled = false;
  writeButton.hidden = false;
  stopButton.hidden = true;
  if (focused) writeButton.focus();
}

function fail(message) {
  if (!stopButton.hidden) finish();
  report(`Something went wrong: ${message}`);
}

// Screen readers read the status aloud, and not the text while it streams.
function report(message) {
  element("status").textContent = message;
}

function written() {
  return tokens.reduce((sum, { text, bits }) => sum + (bits === null ? 0 : [...text].length), 0);
}

function commandLine(prompt, { length, temperature, topK, topP, minP, lexicon, randomSeed }) {
  const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;
  const file = decodeURIComponent(location.pathname.split("/").pop()) || "FILE.html";
  return [
    `grimmgen generate --run ${quoted(`./${file}`)}`,
    prompt && `--seed=${quoted(prompt)}`,
    `--random-seed ${randomSeed} --length ${length} --temperature ${temperature}`,
    `--top-k ${topK} --top-p ${topP} --min-p ${minP}`,
    lexicon ? "--lexicon" : "--no-lexicon",
  ].filter(Boolean).join(" ");
}

// --- The text ------------------------------------------------------------------------------------------------------

// Append tokens: as one text or, coloured, each by itself.
function show(arrived) {
  if (coloured()) {
    story.append(...arrived.filter(({ text }) => text).map(colouredSpan));
    return;
  }
  for (const { text, bits } of arrived) {
    const last = story.lastChild;
    if (bits === null) {
      if (text) story.append(span(text, "prompt"));
    } else if (last instanceof Text) {
      last.appendData(text);
    } else {
      story.append(text);
    }
  }
}

function span(text, name) {
  const made = document.createElement("span");
  made.className = name;
  made.textContent = text;
  return made;
}

function colouredSpan({ text, bits }) {
  if (bits === null) return span(text, "prompt");
  const perCharacter = bits / [...text].length;
  const made = span(text, `s${LEVELS.filter((bound) => perCharacter >= bound).length}`);
  made.title = `${bits.toFixed(1)} bits`;
  return made;
}

function coloured() {
  return element("surprisal").getAttribute("aria-pressed") === "true";
}

element("surprisal").addEventListener("click", () => {
  element("surprisal").setAttribute("aria-pressed", String(!coloured()));
  element("legend").hidden = !coloured();
  story.replaceChildren();
  show(tokens);
});

const labels = LEVELS.map((bound) => `< ${bound}`);
element("legend").append(...[...labels, `≥ ${LEVELS.at(-1)}`].map((label, level) => {
  const item = document.createElement("li");
  item.className = `s${level}`;
  item.textContent = label;
  return item;
}));
const unit = document.createElement("li");
unit.textContent = "bits per character";
element("legend").append(unit);
