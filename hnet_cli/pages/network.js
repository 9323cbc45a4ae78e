// The encoders and routers of an H-Net in float32: what decides where chunks begin. Layers and letters are those of hnet_cli/model/blocks.py.
// A level computes some positions at a time and keeps states on the way, from which it goes on where a text has changed.
// The arithmetic is that of kernels.wat, in one memory: numbers that stand for arrays are places in it, `f`.
const network = (() => {
  const EPS = 1e-5, BLOCK = 32, KEPT = 128;
  const floats = (n) => new Float32Array(n);

  // `array`, whose first `used` numbers matter, with room for `wanted`.
  const grown = (array, wanted, used) => {
    if (wanted <= array.length) return array;
    const larger = new array.constructor(Math.max(wanted, 2 * array.length));
    larger.set(array.subarray(0, used));
    return larger;
  };

  class Machine {
    constructor() {
      this.memory = new WebAssembly.Memory({ initial: 1 });
      this.end = 0;
      this.f = floats(0);
    }

    async start(code) {
      const { instance: { exports } } = await WebAssembly.instantiate(code, { page: { memory: this.memory } });
      const { linear, conv, scan, score, mix, silu, soften } = exports;
      this.linear = ({ at, rows, columns }, x, n, y, add = 0) => linear(4 * at, 4 * x, 4 * y, n, rows, columns, add);
      this.conv = (window, taps, bias, y, channels, count) => conv(4 * window, 4 * taps, 4 * bias, 4 * y, channels, count);
      this.scan = (state, x, B, C, gate, y, ...rest) => scan(4 * state, 4 * x, 4 * B, 4 * C, 4 * gate, 4 * y, ...rest);
      this.score = (query, keys, y, count, stride, width) => score(4 * query, 4 * keys, 4 * y, count, 4 * stride, width);
      this.mix = (shares, values, y, count, stride, width, total) => mix(4 * shares, 4 * values, 4 * y, count, 4 * stride, width, total);
      this.silu = (x, n) => silu(4 * x, n);
      this.soften = (x, n, scale, most) => soften(4 * x, n, scale, most);
    }

    // Room for n numbers.
    take(n) {
      const at = this.end;
      this.end += (n + 3) & ~3;
      const missing = 4 * this.end - this.memory.buffer.byteLength;
      if (missing > 0) this.memory.grow(Math.ceil(missing / 65536));
      this.f = new Float32Array(this.memory.buffer);
      return at;
    }

    norm(x, weight, n, y, width = weight.rows) {
      const { f } = this;
      for (let t = 0; t < n; t++, x += width, y += width) {
        let sum = 0;
        for (let i = 0; i < width; i++) sum += f[x + i] * f[x + i];
        const scale = 1 / Math.sqrt(sum / width + EPS);
        for (let i = 0; i < width; i++) f[y + i] = f[x + i] * scale * f[weight.at + i];
      }
    }
  }

  class Mamba {
    constructor(machine, tensor, width, { d_state, d_conv, expand, headdim }) {
      const inner = expand * width, channels = inner + 2 * d_state;
      Object.assign(this, { machine, inner, channels, size: d_state, taps: d_conv, width: headdim, heads: inner / headdim });
      for (const [name, key] of Object.entries({ first: "in_proj.weight", last: "out_proj.weight", conv: "conv1d.weight", bias: "conv1d.bias", decay: "A_log", skip: "D", step: "dt_bias", norm: "norm.weight" })) this[name] = tensor(`mixer.${key}`);
      this.window = machine.take(d_conv * channels);
      this.ssm = machine.take(inner * d_state);
      this.mixed = machine.take(channels);
      this.y = machine.take(BLOCK * inner);
    }

    // The last inputs of the convolution, and the state (heads, width, size).
    begin() { return [floats((this.taps - 1) * this.channels), floats(this.inner * this.size)]; }

    // `projected` (n, rows of `first`): what the result, which is added to the residual (n, D), is made of. Moves the state.
    run(projected, n, state, residual) {
      const { machine, inner, size, taps, width, heads, channels, window, ssm, mixed, y } = this, { f } = machine, [past, kept] = state;
      f.set(past, window);
      f.set(kept, ssm);
      for (let t = 0; t < n; t++) {
        const gate = projected + t * this.first.rows, raw = gate + inner;
        f.copyWithin(window + past.length, raw, raw + channels);
        machine.conv(window, this.conv.at, this.bias.at, mixed, channels, taps);
        f.copyWithin(window, window + channels, window + taps * channels);
        machine.silu(mixed, channels);
        machine.silu(gate, inner);
        for (let h = 0; h < heads; h++) {
          const raised = f[raw + channels + h] + f[this.step.at + h], at = h * width;
          const dt = raised > 20 ? raised : Math.log1p(Math.exp(raised)), keep = Math.exp(-dt * Math.exp(f[this.decay.at + h]));
          machine.scan(ssm + at * size, mixed + at, mixed + inner, mixed + inner + size, gate + at, y + t * inner + at, width, size, keep, dt, f[this.skip.at + h]);
        }
      }
      past.set(f.subarray(window, window + past.length));
      kept.set(f.subarray(ssm, ssm + kept.length));
      machine.norm(y, this.norm, n, y);
      machine.linear(this.last, y, n, residual, 1);
    }
  }

  class Attention {
    constructor(machine, tensor, all, { heads, window, turns }) {
      Object.assign(this, { machine, window, turns, all, width: all / heads, room: 0, first: tensor("mixer.Wqkv.weight"), last: tensor("mixer.out_proj.weight") });
      this.y = machine.take(BLOCK * all);
    }

    // Keys and values of the positions so far: a copy of a state shares them, for those that it has seen never change.
    begin() { return [{ at: 0, keys: floats(0), values: floats(0) }]; }

    run(projected, n, [past], residual) {
      const { machine, width, all, window, turns, y } = this, half = turns.length, before = past.at;
      const first = window < 0 ? 0 : Math.max(0, before - window);
      if (this.room < before - first + n) {
        this.room = 2 * (before - first + n);
        Object.assign(this, { keys: machine.take(this.room * all), values: machine.take(this.room * all), scores: machine.take(this.room + 4) });
      }
      const { f } = machine, { keys, values, scores } = this;
      for (const name of ["keys", "values"]) {
        past[name] = grown(past[name], (before + n) * all, before * all);
        f.set(past[name].subarray(first * all, before * all), this[name]);
      }
      for (let t = 0; t < n; t++) {
        const query = projected + t * 3 * all, place = before + t, row = (place - first) * all;
        for (let from = query; from < query + 2 * all; from += width) {
          for (let i = 0; i < half; i++) {
            const angle = Math.fround(place * turns[i]), cos = Math.fround(Math.cos(angle)), sin = Math.fround(Math.sin(angle));
            const a = f[from + i], b = f[from + half + i];
            f[from + i] = a * cos - b * sin;
            f[from + half + i] = b * cos + a * sin;
          }
        }
        f.copyWithin(keys + row, query + all, query + 2 * all);
        f.copyWithin(values + row, query + 2 * all, query + 3 * all);
        const low = (window < 0 ? 0 : Math.max(0, place - window)) - first, count = place - first - low + 1;
        for (let h = 0; h < all; h += width) {
          machine.score(query + h, keys + low * all + h, scores, count, all, width);
          f.fill(-Infinity, scores + count, scores + count + 3);
          let most = -Infinity;
          for (let j = scores; j < scores + count; j++) if (f[j] > most) most = f[j];
          const scale = 1 / Math.sqrt(width), total = machine.soften(scores, count, scale, most * scale);
          machine.mix(scores, values + low * all + h, y + t * all + h, count, all, width, total);
        }
      }
      past.at += n;
      for (const name of ["keys", "values"]) {
        const from = this[name] + (before - first) * all;
        past[name].set(f.subarray(from, from + n * all), before * all);
      }
      machine.linear(this.last, y, n, residual, 1);
    }
  }

  // The layers of an encoder and the router behind them. `x` (BLOCK, width): the residual stream, and then the output.
  class Encoder {
    constructor(machine, tensors, level, { width, letters, attention, hidden, ssm, characters }) {
      Object.assign(this, { machine, width, characters, known: [] });
      const of = (prefix) => (name) => tensors[`${level}.${prefix}${name}`];
      this.layers = [...letters].map((letter, i) => {
        const tensor = of(`encoder.layers.${i}.`);
        const mixer = "mM".includes(letter) ? new Mamba(machine, tensor, width, ssm) : new Attention(machine, tensor, width, attention);
        const layer = { mixer, norm: tensor("norm1.weight") };
        return "MT".includes(letter) ? { ...layer, second: tensor("norm2.weight"), up: tensor("mlp.fc1.weight"), down: tensor("mlp.fc2.weight") } : layer;
      });
      this.norm = of("encoder.")("rmsnorm.weight");
      this.router = of("")("routing.weight");
      this.pad = of("")("pad_dimension");
      this.embeddings = of("")("embeddings.weight");
      const widest = Math.max(2 * width, ...this.layers.flatMap(({ mixer, up }) => [mixer.first.rows, up?.rows ?? 0]));
      Object.assign(this, { x: machine.take(BLOCK * width), normed: machine.take(BLOCK * width), wide: machine.take(BLOCK * widest), gated: machine.take(BLOCK * hidden) });
    }

    begin() { return this.layers.map(({ mixer }) => mixer.begin()); }

    // What the first layer projects of a byte depends on nothing else: computed once.
    projection(id) {
      const { machine, width, wide, normed, layers: [{ mixer: { first }, norm }] } = this;
      machine.norm(this.embeddings.at + id * width, norm, 1, normed);
      machine.linear(first, normed, 1, wide);
      return machine.f.slice(wide, wide + first.rows);
    }

    // n positions from `x`, which are the bytes `ids` at level 0. Moves the states; the router's keys and queries (n, 2, width) are in `wide`.
    run(n, states, ids) {
      const { machine, x, normed, wide, gated } = this;
      for (const [i, { mixer, norm, second, up, down }] of this.layers.entries()) {
        if (i === 0 && ids) {
          for (const id of ids) this.known[id] ??= this.projection(id);
          ids.forEach((id, t) => machine.f.set(this.known[id], wide + t * mixer.first.rows));
        } else {
          machine.norm(x, norm, n, normed);
          machine.linear(mixer.first, normed, n, wide);
        }
        mixer.run(wide, n, states[i], x);
        if (!up) continue;
        machine.norm(x, second, n, normed);
        machine.linear(up, normed, n, wide);
        const { f } = machine, hidden = down.columns;
        for (let t = 0; t < n; t++) {
          const value = wide + t * up.rows, to = gated + t * hidden;
          machine.silu(value + hidden, hidden);
          for (let j = 0; j < hidden; j++) f[to + j] = f[value + j] * f[value + hidden + j];
        }
        machine.linear(down, gated, n, x, 1);
      }
      if (this.norm) machine.norm(x, this.norm, n, x);
      machine.linear(this.router, x, n, wide);
    }
  }

  // The positions of a level in one stretch of text. Position 0 is a boundary whatever its probability.
  class Level {
    constructor(encoders, thresholds, s = 0) {
      Object.assign(this, { encoder: encoders[s], thresholds, s, n: 0, every: s ? BLOCK : KEPT });
      this.inner = s + 1 < encoders.length ? new Level(encoders, thresholds, s + 1) : null;
      this.p = floats(BLOCK);
      this.from = new Int32Array(BLOCK); // the position of the outer level that each is
      this.kept = [];
      this.mark = -1;
      if (this.inner) this.out = floats(0);
      this.truncate(0);
    }

    begins(i) { return i === 0 || this.p[i] > this.thresholds[this.s]; }

    // Forget all from position n on, or a little more: what is left has a state. `mark`: keep a state there, too.
    truncate(n) {
      this.mark = n;
      if (n === this.n && n) this.keep();
      if (n < this.n || !this.n) {
        while (this.kept.length && this.kept.at(-1).n > n) this.kept.pop();
        const last = this.kept.at(-1);
        this.n = last?.n ?? 0;
        this.states = last ? copied(last.states) : this.encoder.begin();
        this.query = last ? last.query.slice() : floats(this.encoder.width);
      }
      if (!this.inner) return;
      let count = this.inner.n;
      while (count && this.inner.from[count - 1] >= this.n) count--;
      this.inner.truncate(count);
    }

    // Keep the states, every so often and where a text has last changed.
    keep() {
      const last = this.kept.at(-1);
      if (last?.n === this.n) return;
      if (this.n % this.every && this.n !== this.mark) return;
      if (last && last.n % this.every) this.kept.pop();
      this.kept.push({ n: this.n, states: copied(this.states), query: this.query.slice() });
    }

    // Positions that can be computed at once, of `wanted`.
    room(wanted) {
      const end = Math.min(this.n + wanted, this.n - this.n % BLOCK + BLOCK);
      return (this.mark > this.n ? Math.min(end, this.mark) : end) - this.n;
    }

    // The next n positions, which lie in the encoder's `x`; the ids that they are at level 0.
    add(n, ids) {
      const { encoder, query } = this, { width, wide, x, machine } = encoder;
      encoder.run(n, this.states, ids);
      const { f } = machine;
      this.p = grown(this.p, this.n + n, this.n);
      for (let t = 0; t < n; t++) {
        let dot = 0, a = 0, b = 0;
        const key = wide + 2 * t * width;
        for (let i = 0; i < width; i++) {
          const q = query[i], k = f[key + i];
          dot += q * k; a += q * q; b += k * k;
          query[i] = f[key + width + i];
        }
        const p = Math.min(1, Math.max(0, (1 - dot / (Math.max(Math.sqrt(a), 1e-12) * Math.max(Math.sqrt(b), 1e-12))) / 2));
        this.p[this.n + t] = this.n + t === 0 ? 1 : encoder.characters && (ids[t] & 0xc0) === 0x80 ? 0 : p;
      }
      if (this.inner) {
        this.out = grown(this.out, (this.n + n) * width, this.n * width);
        this.out.set(f.subarray(x, x + n * width), this.n * width);
      }
      this.n += n;
      this.keep();
    }

    // The next chunks of the outer level as positions of this one; tells whether there were any.
    pull(outer) {
      const { encoder } = this, { width, x, machine: { f }, pad } = encoder, given = outer.encoder.width;
      let at = this.n ? this.from[this.n - 1] + 1 : 0, n = 0;
      const most = this.room(BLOCK);
      this.from = grown(this.from, this.n + most, this.n);
      for (; at < outer.n && n < most; at++) {
        if (!outer.begins(at)) continue;
        f.set(outer.out.subarray(at * given, (at + 1) * given), x + n * width);
        if (pad) f.copyWithin(x + n * width + given, pad.at, pad.at + width - given);
        this.from[this.n + n++] = at;
      }
      if (n) this.add(n);
      const deeper = this.inner?.pull(this);
      return n > 0 || Boolean(deeper);
    }
  }
  const copied = (states) => states.map((parts) => parts.map((part) => (ArrayBuffer.isView(part) ? part.slice() : { ...part })));

  // A text in windows, as hnet_cli/inference/windows.py reads it; `width` 0: in one.
  class Reader {
    constructor(machine, tensors, { levels, thresholds, table, bos, width, warmup }) {
      this.encoders = levels.map((level, s) => new Encoder(machine, tensors, s, level));
      Object.assign(this, { table, bos, width, warmup, thresholds: thresholds.map(Math.fround), bytes: new Uint8Array(0), windows: [] });
    }

    // Another text, of which what begins as the last one did is known already.
    read(bytes) {
      let same = 0;
      while (same < Math.min(bytes.length, this.bytes.length) && bytes[same] === this.bytes[same]) same++;
      this.bytes = bytes;
      const width = this.width || Infinity;
      this.windows.length = Math.min(this.windows.length, Math.ceil(bytes.length / width));
      for (let start = 0; start < bytes.length; start += width) {
        const k = start ? start / width : 0, from = Math.max(0, start - this.warmup), lead = start ? 0 : 1;
        const window = (this.windows[k] ??= { start, from, lead, level: new Level(this.encoders, this.thresholds) });
        window.end = Math.min(start + width, bytes.length);
        window.level.truncate(Math.max(0, Math.min(same, window.end) - from + lead));
      }
    }

    // Decide at other thresholds.
    decide(thresholds) {
      thresholds.forEach((threshold, s) => { this.thresholds[s] = Math.fround(threshold); });
      for (const { level } of this.windows) {
        for (let outer = level; outer.inner; outer = outer.inner) {
          const { n, from } = outer.inner;
          let same = 0;
          for (let at = 0; same < n && from[same] >= at; at++) if (outer.begins(at) === (from[same] === at)) same += from[same] === at; else break;
          outer.inner.truncate(same);
        }
      }
    }

    // Compute the next positions, at most `most` of the outermost level; tells whether there were any.
    step(most = BLOCK) {
      for (const { from, lead, end, level } of this.windows) {
        const left = lead + end - from - level.n;
        if (left > 0) {
          const n = level.room(Math.min(left, most)), { width, embeddings, x, machine: { f } } = level.encoder, ids = [];
          for (let t = 0; t < n; t++) {
            const at = from - lead + level.n + t, id = at < 0 ? this.bos : this.table[this.bytes[at]];
            ids.push(id);
            f.copyWithin(x + t * width, embeddings.at + id * width, embeddings.at + (id + 1) * width);
          }
          level.add(n, ids);
          while (level.inner?.pull(level));
          return true;
        }
        if (level.inner?.pull(level)) return true;
      }
      return false;
    }

    // Bytes from the beginning on whose probabilities are known.
    get known() {
      for (const { start, from, lead, end, level } of this.windows) if (level.n < lead + end - from) return Math.max(start, from - lead + level.n);
      return this.bytes.length;
    }

    // The chunks of stage 0 that begin before `known`: places (n), and for each stage p where one of its chunks begins, else NaN.
    chunks() {
      const places = [], p = this.thresholds.map(() => []);
      for (const { start, from, lead, level } of this.windows) {
        if (!start) { places.push(0); p.forEach((row) => row.push(1)); }
        for (let at = 0, first = 0; at < level.n; at++) {
          if (!level.begins(at)) continue;
          const place = from - lead + at, chunk = first++;
          if (place < start || place < 1) continue;
          places.push(place);
          for (let s = 0, i = at, inside = level; s < p.length; s++) {
            const known = inside && i >= 0 && i < inside.n && (s === 0 || inside.begins(i));
            p[s].push(known ? inside.p[i] : NaN);
            const deeper = inside?.inner;
            i = !known || !deeper ? -1 : s === 0 ? chunk : found(deeper.from, deeper.n, i);
            inside = deeper;
          }
        }
      }
      return { places, p };
    }
  }
  const found = (sorted, n, wanted) => {
    let low = 0, high = n;
    while (low < high) { const middle = (low + high) >> 1; if (sorted[middle] < wanted) low = middle + 1; else high = middle; }
    return low < n && sorted[low] === wanted ? low : -1;
  };

  // Bytes of base 85 as hnet_cli/inference/live_page.py writes it: four of five letters, the last ones of fewer.
  const LETTERS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz!#$%.()*+-;,=:?@^_`{|}~";
  const decoded = (text) => {
    const values = new Uint8Array(128), missing = (5 - (text.length % 5)) % 5, whole = text + "~".repeat(missing);
    [...LETTERS].forEach((letter, value) => { values[letter.charCodeAt(0)] = value; });
    const bytes = new DataView(new ArrayBuffer((whole.length / 5) * 4));
    for (let at = 0, to = 0; at < whole.length; to += 4) {
      let word = 0;
      for (const end = at + 5; at < end; at++) word = 85 * word + values[whole.charCodeAt(at)];
      bytes.setUint32(to, word);
    }
    return new Uint8Array(bytes.buffer, 0, bytes.byteLength - missing);
  };

  // Weights as hnet_cli/inference/live_page.py packs them: matrices in words, of which high bytes come before low ones; the rest in single
  // precision. A word is half precision; of inner levels, if `stepped`, a number of steps, whose size is that of its row.
  // The number of rows of a matrix becomes a multiple of four.
  const unpack = (machine, bytes, shapes, stepped) => {
    const words = shapes.reduce((sum, [, rows, columns]) => sum + (columns ? rows * columns : 0), 0), tensors = {};
    const rest = new DataView(bytes.buffer, bytes.byteOffset + 2 * words);
    let at = 0, single = 0;
    const next = () => rest.getFloat32(4 * single++, true), word = () => bytes[at] << 8 | bytes[words + at++];
    const half = (value) => {
      const exponent = (value >> 10) & 31, fraction = (value & 1023) / 1024;
      return (value >> 15 ? -1 : 1) * (exponent ? 2 ** (exponent - 15) * (1 + fraction) : 2 ** -14 * fraction);
    };
    for (const [name, rows, columns] of shapes) {
      const whole = columns ? (rows + 3) & ~3 : rows, to = machine.take(whole * (columns ?? 1)), { f } = machine;
      tensors[name] = { at: to, rows: whole, columns };
      for (let row = 0, j = to; row < rows; row++) {
        if (!columns) { f[j++] = next(); continue; }
        const step = stepped && !name.startsWith("0.") ? next() : 0;
        for (const end = j + columns; j < end; j++) {
          const value = word();
          f[j] = step ? step * ((value >> 1) ^ -(value & 1)) : half(value);
        }
      }
    }
    return tensors;
  };

  // A reader with the weights of a page and the program of kernels.wasm, bytes both.
  const open = async (setup, weights, code, stepped) => {
    const machine = new Machine();
    await machine.start(code);
    return new Reader(machine, unpack(machine, weights, setup.shapes, stepped), setup);
  };
  return { open, decoded };
})();
