// The network: reads tokens, and gives the logits of the next one. Its instructions were recorded by
// grimmgen/export/instructions.py; each is a loop over vectors of 32-bit floating-point numbers.
//
//     V  vocabulary size

// The checkpoint, a safetensors file: its metadata and the weights as Float32Arrays, by name.
function readCheckpoint(bytes) {
  const length = Number(new DataView(bytes.buffer).getBigUint64(0, true));
  const { __metadata__: metadata, ...entries } = JSON.parse(new TextDecoder().decode(bytes.subarray(8, 8 + length)));
  const weights = new Map();
  for (const [name, { dtype, data_offsets: [begin, end] }] of Object.entries(entries)) {
    const stored = bytes.slice(8 + length + begin, 8 + length + end).buffer;
    weights.set(name, dtype === "F16" ? fromHalves(new Uint16Array(stored)) : new Float32Array(stored));
  }
  return { ...JSON.parse(metadata.grimmgen), weights };
}

// Numbers of 16 bits (IEEE 754 binary16), which Float32Array represents exactly.
function fromHalves(halves) {
  const floats = new Float32Array(halves.length);
  for (let i = 0; i < halves.length; i++) {
    const half = halves[i], exponent = (half >> 10) & 0x1f, fraction = half & 0x3ff;
    const size = exponent ? (1 + fraction / 1024) * 2 ** (exponent - 15) : fraction * 2 ** -24;
    floats[i] = half & 0x8000 ? -size : size;
  }
  return floats;
}

// Up to this many numbers are kept of what tokens add, for the next time that they are read.
const LARGEST_CACHE = 1 << 24;

class Network {
  // checkpoint: from readCheckpoint; program: the instructions, from Program.to_json.
  constructor(checkpoint, program) {
    this.weights = checkpoint.weights;
    const all = [...program.reading, ...program.instructions];
    this.place(program, all);
    this.read = this.compile(program.reading);
    this.advance = this.compile(program.instructions);
    this.states = program.states.map((layers) => layers.map(([old, replaced]) => [this.vectors[old], this.vectors[replaced]]));
    this.logits = this.vectors[program.logits];
    // What a token alone determines and the other instructions use.
    const used = program.instructions.flatMap((instruction) => instruction.operands.map((operand) => operand.vector));
    const of = program.reading.map((instruction) => instruction.result).filter((result) => used.includes(result));
    this.inputs = of.map((result) => this.vectors[result]);
    this.cache = new Map();
    this.cached = 0;
  }

  // Lay out vectors and packed matrices in one memory, which the kernel shares.
  place(program, instructions) {
    let floats = 0;
    const reserve = (size) => (floats += size) - size;
    const slices = new Map();
    for (const { operation, result, operands } of instructions) {
      if (operation === "slice") slices.set(result, operands);
    }
    const vectors = program.vectors.map((size, number) => (slices.has(number) ? null : reserve(padded(size))));
    this.matrices = new Map();
    for (const { operation, operands } of instructions) {
      if (operation !== "product") continue;
      const [K, N] = operands[1].shape;
      const key = JSON.stringify(operands[1]);
      if (!this.matrices.has(key)) this.matrices.set(key, { ...operands[1], K, N, at: reserve(K * padded(N)) });
    }
    const buffer = this.allocate(4 * floats);
    const view = (at, size) => new Float32Array(buffer, 4 * at, size);
    this.vectors = vectors.map((at, number) => at !== null && view(at, program.vectors[number]));
    for (const [number, [whole, from]] of slices) {
      this.vectors[number] = this.vectors[whole.vector].subarray(from, from + program.vectors[number]);
    }
    for (const matrix of this.matrices.values()) {
      const { weight, offset, transposed, K, N } = matrix;
      matrix.packed = view(matrix.at, K * padded(N));
      const stored = this.weights.get(weight).subarray(offset, offset + K * N);
      pack(stored, K, N, transposed ? 1 : N, transposed ? K : 1, matrix.packed);
    }
    this.paddedView = (vector) => new Float32Array(buffer, vector.byteOffset, padded(vector.length));
  }

  // The memory and, if there is WebAssembly SIMD, the kernel; some browsers switch it off in their strictest mode.
  allocate(bytes) {
    try {
      const memory = new WebAssembly.Memory({ initial: Math.ceil(bytes / 65536) });
      this.kernel = compileKernel(memory);
      return memory.buffer;
    } catch {
      this.kernel = null;
      return new ArrayBuffer(bytes);
    }
  }

  // One function for the instructions, from the token id where they need it.
  compile(instructions) {
    const steps = instructions.map((instruction) => this.compileOne(instruction)).filter((step) => step !== null);
    return (token) => {
      for (const step of steps) step(token);
    };
  }

  compileOne({ operation, result, operands }) {
    const out = this.vectors[result];
    if (operation === "slice") return null;  // a view of the vector
    if (operation === "row") {
      const table = this.weights.get(operands[0].weight);
      return (token) => out.set(table.subarray(token * out.length, (token + 1) * out.length));
    }
    const [a, b] = operands.map((operand) => this.operand(operand, out.length));
    if (operation === "product") {
      const matrix = this.matrices.get(JSON.stringify(operands[1]));
      const whole = this.paddedView(out);
      if (!this.kernel) return () => addProduct(a, matrix.packed, whole.fill(0));
      const addresses = [a, matrix.packed, whole].map((array) => array.byteOffset);
      return () => {
        whole.fill(0);
        this.kernel(...addresses, a.length, whole.length / PANEL);
      };
    }
    return ELEMENTWISE[operation](out, a, b);
  }

  // An operand as an array; a number is repeated.
  operand(operand, size) {
    if (typeof operand === "number") return new Float32Array(size).fill(operand);
    if ("vector" in operand) return this.vectors[operand.vector];
    const { weight, offset, shape } = operand;
    return this.weights.get(weight).subarray(offset, offset + shape.reduce((product, length) => product * length, 1));
  }

  // Read one token; afterwards `logits` has the logits of the next one, [V].
  step(token) {
    const known = this.cache.get(token);
    if (known) {
      known.forEach((values, i) => this.inputs[i].set(values));
    } else {
      this.read(token);
      this.keep(token);
    }
    this.advance(token);
    for (const layers of this.states) for (const [state, replaced] of layers) state.set(replaced);
  }

  // The states and the logits, for `restore`.
  snapshot() {
    return { states: this.states.map((layers) => layers.map(([state]) => state.slice())), logits: this.logits.slice() };
  }

  restore({ states, logits }) {
    this.states.forEach((layers, i) => layers.forEach(([state], depth) => state.set(states[i][depth])));
    this.logits.set(logits);
  }

  keep(token) {
    const values = this.inputs.map((input) => input.slice());
    this.cached += values.reduce((sum, { length }) => sum + length, 0);
    if (this.cached < LARGEST_CACHE) this.cache.set(token, values);
  }
}

const ELEMENTWISE = {
  add: (out, a, b) => () => { for (let n = 0; n < out.length; n++) out[n] = a[n] + b[n]; },
  subtract: (out, a, b) => () => { for (let n = 0; n < out.length; n++) out[n] = a[n] - b[n]; },
  multiply: (out, a, b) => () => { for (let n = 0; n < out.length; n++) out[n] = a[n] * b[n]; },
  divide: (out, a, b) => () => { for (let n = 0; n < out.length; n++) out[n] = a[n] / b[n]; },
  sigmoid: (out, a) => () => { for (let n = 0; n < out.length; n++) out[n] = 1 / (1 + Math.exp(-a[n])); },
  tanh: (out, a) => () => { for (let n = 0; n < out.length; n++) out[n] = Math.tanh(a[n]); },
};
