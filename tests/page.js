// Generates text with an exported page's worker in Node.js, without a browser.
//
//     node page.js PAGE [plain] < jobs.json > answers.json
//
// A job is {prompt, options}; the answer is {text, bits, ending, count, seconds, unknown}. With {"draws": N, seed} the answer
// is the page's first N normal and then uniform random numbers, with {"ids": […]} the logits after each of these tokens.
// With `plain` there is no WebAssembly.

const fs = require("fs");
const vm = require("vm");

const page = fs.readFileSync(process.argv[2], "utf8");
const part = (id) => page.match(new RegExp(`<script type="[^"]*" id="${id}">([^]*?)</script>`))[1];
const posted = [];
if (process.argv[3] === "plain") delete globalThis.WebAssembly;
globalThis.self = globalThis;
globalThis.postMessage = (message) => posted.push(message);
vm.runInThisContext(`${part("worker")}
  globalThis.inside = { RandomGenerator, network: () => generator.network };`);

async function answer(job) {
  if (job.draws) {
    const generator = new inside.RandomGenerator(job.seed);
    const numbers = (draw) => Array.from({ length: job.draws }, draw);
    return { normal: numbers(() => generator.normal()), uniform: numbers(() => generator.uniform()) };
  }
  if (job.ids) {
    const network = inside.network();
    for (const layers of network.states) for (const [state] of layers) state.fill(0);
    return job.ids.map((id) => {
      network.step(id);
      return [...network.logits];
    });
  }
  posted.length = 0;
  await self.onmessage({ data: { type: "generate", ...job } });
  const tokens = posted.filter(({ type }) => type === "tokens").flatMap(({ tokens }) => tokens);
  return { ...posted.at(-1), text: tokens.map(({ text }) => text).join(""), bits: tokens.map(({ bits }) => bits) };
}

(async () => {
  await self.onmessage({
    data: { type: "load", checkpoint: part("checkpoint"), program: JSON.parse(part("program")) },
  });
  const answers = [posted.at(-1)];
  for (const job of JSON.parse(fs.readFileSync(0, "utf8"))) answers.push(await answer(job));
  fs.writeFileSync(1, JSON.stringify(answers));
  process.exit(0);  // a message channel is open
})();
