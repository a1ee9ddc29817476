// The product of a vector and a matrix, in WebAssembly SIMD, assembled here from its instructions so that it can be read.
//
//     K  length of the vector    N  columns of the matrix
//
// A matrix is packed in panels of 32 columns, row after row, the last one padded with zeros: a panel of a row is what the
// eight accumulators of the kernel hold, and memory is read in order.

const PANEL = 32;

// Columns with the padding.
function padded(N) {
  return Math.ceil(N / PANEL) * PANEL;
}

// Pack a matrix whose element (k, n) is at k * rowStride + n * columnStride.
function pack(matrix, K, N, rowStride, columnStride, packed) {
  for (let panel = 0, to = 0; panel < N; panel += PANEL) {
    for (let k = 0; k < K; k++, to += PANEL) {
      const columns = Math.min(PANEL, N - panel);
      for (let n = 0; n < columns; n++) packed[to + n] = matrix[k * rowStride + (panel + n) * columnStride];
    }
  }
}

// y += a W for a [K] and a packed W, without WebAssembly. Rounded as the kernel rounds: each product, each sum.
function addProduct(a, packed, y) {
  const sums = new Float32Array(PANEL);
  for (let panel = 0, from = 0; panel < y.length; panel += PANEL) {
    sums.set(y.subarray(panel, panel + PANEL));
    for (let k = 0; k < a.length; k++, from += PANEL) {
      const left = a[k];
      for (let n = 0; n < PANEL; n++) sums[n] += Math.fround(left * packed[from + n]);
    }
    y.set(sums, panel);
  }
}

// The kernel: (a, W, y: addresses; K, panels) -> y += a W. Throws where the browser has no WebAssembly SIMD.
function compileKernel(memory) {
  const module = new WebAssembly.Module(assembleKernel());
  return new WebAssembly.Instance(module, { page: { memory } }).exports.addProduct;
}

// The binary form of the kernel (WebAssembly Core Specification 2.0, section 5).
function assembleKernel() {
  const I32 = 0x7f, V128 = 0x7b, ACCUMULATORS = PANEL / 4;
  const A = 0, W = 1, Y = 2, K = 3, PANELS = 4, LEFT_TO_READ = 5, NEXT = 6, LEFT = 7, SUMS = 8;
  const signed = (n) => {
    const bytes = [];
    for (; n < -64 || n > 63; n >>= 7) bytes.push((n & 0x7f) | 0x80);
    return [...bytes, n & 0x7f];
  };
  const counted = (items) => [items.length, ...items.flat()];
  const section = (id, content) => {
    const size = [(content.length & 0x7f) | 0x80, content.length >> 7];  // of at most 16,383 bytes
    return [id, ...size, ...content];
  };
  const name = (text) => counted([...text].map((c) => c.charCodeAt(0)));
  const get = (local) => [0x20, local];
  const set = (local) => [0x21, local];
  const advance = (local, by) => [...get(local), 0x41, ...signed(by), 0x6a, ...set(local)];
  const loop = (...body) => [0x03, 0x40, ...body.flat(), 0x0b];
  const repeatWhile = (local) => [...get(local), 0x0d, 0];
  const load = (address, offset) => [...get(address), 0xfd, 0x00, 2, offset];
  const splat = (address) => [...get(address), 0xfd, 0x09, 2, 0];
  const store = (address, offset, value) => [...get(address), ...value, 0xfd, 0x0b, 2, offset];
  const ADD = [0xfd, 0xe4, 0x01], MULTIPLY = [0xfd, 0xe6, 0x01];
  const each = (instructions) => Array.from({ length: ACCUMULATORS }, (_, i) => instructions(SUMS + i, 16 * i)).flat();

  const body = [
    ...loop(
      each((sum, offset) => [...load(Y, offset), ...set(sum)]),
      get(A), set(NEXT), get(K), set(LEFT_TO_READ),
      loop(
        splat(NEXT), set(LEFT),
        each((sum, offset) => [...get(sum), ...get(LEFT), ...load(W, offset), ...MULTIPLY, ...ADD, ...set(sum)]),
        advance(W, 4 * PANEL), advance(NEXT, 4), advance(LEFT_TO_READ, -1), repeatWhile(LEFT_TO_READ),
      ),
      each((sum, offset) => store(Y, offset, get(sum))),
      advance(Y, 4 * PANEL), advance(PANELS, -1), repeatWhile(PANELS),
    ),
    0x0b,
  ];
  const locals = [[2, I32], [1 + ACCUMULATORS, V128]];
  const code = [...counted(locals), ...body];
  return new Uint8Array([
    0x00, 0x61, 0x73, 0x6d, 1, 0, 0, 0,
    ...section(1, counted([[0x60, ...counted([I32, I32, I32, I32, I32]), ...counted([])]])),
    ...section(2, counted([[...name("page"), ...name("memory"), 0x02, 0x00, 0]])),
    ...section(3, counted([0])),
    ...section(7, counted([[...name("addProduct"), 0x00, 0]])),
    ...section(10, [1, (code.length & 0x7f) | 0x80, code.length >> 7, ...code]),
  ]);
}
