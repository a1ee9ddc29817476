// Random numbers as NumPy's default_rng(seed) gives them, so that a random seed means the same here and there.

const MASK_64 = (1n << 64n) - 1n;
const MASK_128 = (1n << 128n) - 1n;

// The words that a seed expands to: NumPy's SeedSequence, after Melissa O'Neill's seed_seq_fe128 (2015, "Simple
// portable C++ seed entropy"). All arithmetic is modulo 2^32.
function seedWords(seed, count) {
  const hasher = (constant, factor) => (value) => {
    value ^= constant;
    constant = Math.imul(constant, factor);
    value = Math.imul(value, constant);
    return (value ^ (value >>> 16)) >>> 0;
  };
  const mix = (x, y) => {
    const mixed = Math.imul(0xca01f9dd, x) - Math.imul(0x4973f715, y);
    return (mixed ^ (mixed >>> 16)) >>> 0;
  };
  const entropy = [];
  for (let rest = BigInt(seed); rest > 0n || !entropy.length; rest >>= 32n) entropy.push(Number(rest & 0xffffffffn));
  const hash = hasher(0x43b0d7e5, 0x931e8875);
  const pool = Array.from({ length: 4 }, (_, i) => hash(entropy[i] ?? 0));
  for (let from = 0; from < 4; from++) {
    for (let to = 0; to < 4; to++) if (to !== from) pool[to] = mix(pool[to], hash(pool[from]));
  }
  for (const word of entropy.slice(4)) {
    for (let to = 0; to < 4; to++) pool[to] = mix(pool[to], hash(word));
  }
  const finish = hasher(0x8b51f9dd, 0x58f38ded);
  return Array.from({ length: count }, (_, i) => finish(pool[i % 4]));
}

// PCG64: a linear congruential generator of 128 bits whose output is permuted (XSL-RR; O'Neill 2014, "PCG: a family
// of simple fast space-efficient statistically good algorithms for random number generation").
class RandomGenerator {
  constructor(seed) {
    const words = seedWords(seed, 8).map(BigInt);
    const [state, sequence] = [0, 4].map((at) =>
      (words[at + 1] << 96n) | (words[at] << 64n) | (words[at + 3] << 32n) | words[at + 2]);
    this.increment = ((sequence << 1n) | 1n) & MASK_128;
    this.state = (this.increment + state) & MASK_128;
    this.advance();
  }

  advance() {
    this.state = (this.state * 0x2360ed051fc65da44385df649fccf645n + this.increment) & MASK_128;
  }

  // An integer below 2^64.
  bits() {
    this.advance();
    const folded = (this.state >> 64n) ^ (this.state & MASK_64);
    const rotation = this.state >> 122n;
    return ((folded >> rotation) | (folded << (64n - rotation))) & MASK_64;
  }

  // A number from 0 to 1, which is excluded.
  uniform() {
    return Number(this.bits() >> 11n) / 2 ** 53;
  }

  // A number from the standard normal distribution, by Marsaglia and Tsang's ziggurat (2000) of 256 strips.
  normal() {
    const { widths, limits, heights, tail } = ZIGGURAT;
    for (;;) {
      const bits = this.bits();
      const strip = Number(bits & 0xffn);
      const sign = bits & 0x100n ? -1 : 1;
      const position = (bits >> 9n) & 0xfffffffffffffn;
      const x = Number(position) * widths[strip];
      if (position < limits[strip]) return sign * x;
      if (strip === 0) {
        for (;;) {
          const beyond = -Math.log1p(-this.uniform()) / tail;
          const height = -Math.log1p(-this.uniform());
          if (2 * height > beyond * beyond) return (position & 0x100n ? -1 : 1) * (tail + beyond);
        }
      }
      const height = heights[strip] + (heights[strip - 1] - heights[strip]) * this.uniform();
      if (height < Math.exp(-0.5 * x * x)) return sign * x;
    }
  }
}

// The strips of the ziggurat, of equal area. A position in a strip is an integer of 52 bits.
const ZIGGURAT = (() => {
  const tail = 3.6541528853610088, area = 0.004928673233974658;
  const scale = 2 ** 52;
  const density = (x) => Math.exp(-0.5 * x * x);
  const widths = new Float64Array(256), heights = new Float64Array(256), limits = new BigInt64Array(256);
  const base = area / density(tail);
  widths[0] = base / scale;
  heights[0] = 1;
  limits[0] = BigInt(Math.floor((tail / base) * scale));
  widths[255] = tail / scale;
  heights[255] = density(tail);
  let outer = tail;
  for (let strip = 254; strip > 0; strip--) {
    const x = Math.sqrt(-2 * Math.log(area / outer + density(outer)));
    limits[strip + 1] = BigInt(Math.floor((x / outer) * scale));
    widths[strip] = x / scale;
    heights[strip] = density(x);
    outer = x;
  }
  return { widths, limits, heights, tail };  // limits[1] is 0: strip 1 has no rectangle inside the curve
})();
