// Curves: a small chart for every metric, all under one legend.

const MAIN = ["reward_without_prefix", "reward_with_prefix", "eval_reward", "reward", "prefix/length", "prefix/fraction",
  "completions/mean_length", "completions/clipped_ratio", "entropy", "entropy_prefix", "entropy_continuation",
  "frac_reward_zero_std", "loss", "grad_norm", "kl", "step_time"];
const AXES = { step: "step", minutes: "minutes", flops: "FLOPs" };
const HEIGHT = 170, LEFT = 48, RIGHT = 8, TOP = 6, BOTTOM = 20;
const curves = { x: "step", smooth: 0, log: false, clip: true, wanted: "", all: false, hidden: new Set(), data: new Map(), charts: [] };

async function loadCurves(index) {
  const made = await Promise.all(index.runs.map((run) => load(`curves-${run.number}`)));
  index.runs.forEach((run, i) => curves.data.set(run.number, made[i]));
}

function drawCurves(index) {
  const names = [...new Set(index.runs.flatMap((run) => Object.keys(curves.data.get(run.number)?.metrics ?? {})))];
  const place = (name) => (MAIN.indexOf(name) + 1 || MAIN.length + 1);
  names.sort((a, b) => place(a) - place(b) || (a < b ? -1 : 1));
  const section = document.getElementById("curves");
  if (!names.length) return section.replaceChildren();
  const again = () => curves.charts.forEach((chart) => chart.refresh());
  const smooth = h("input", { type: "range", min: "0", max: "0.99", step: "0.01", value: curves.smooth, id: "smoothing",
    oninput: () => { curves.smooth = Number(smooth.value); again(); } });
  const box = (key, text) => {
    const made = h("input", { type: "checkbox", checked: curves[key], id: `curves-${key}`,
      onchange: () => { curves[key] = made.checked; again(); } });
    return h("label", {}, made, ` ${text}`);
  };
  const wanted = h("input", { type: "search", value: curves.wanted, placeholder: "part of a name", id: "metric-filter",
    oninput: later(150, () => { curves.wanted = wanted.value; fill(); }) });
  const axes = Object.entries(AXES).filter(([key]) => [...curves.data.values()].some((d) => d[key]?.some((v) => v > 0)));
  const charts = h("div", { class: "charts" });
  const all = h("button", { type: "button", id: "all-metrics", onclick: () => { curves.all = !curves.all; fill(); } });
  section.replaceChildren(h("h2", {}, "Curves"),
    h("div", { class: "controls" },
      select("Over", axes, curves.x, (value) => { curves.x = value; again(); }, { id: "x-axis" }),
      h("label", {}, "Smoothing ", smooth), box("log", "log axis"), box("clip", "clip outliers"),
      h("label", {}, "Metric ", wanted), h("span", { class: "quiet", id: "metric-count" })),
    drawLegend(index, again), charts, all);

  function fill() {
    const terms = curves.wanted.toLowerCase().split(/\s+/).filter(Boolean);
    const main = names.filter((name) => MAIN.includes(name));
    const some = terms.length ? names.filter((name) => terms.every((term) => name.toLowerCase().includes(term)))
      : curves.all || !main.length ? names : main;
    document.getElementById("metric-count").textContent = `${some.length} of ${plural(names.length, "metric")}`;
    all.textContent = curves.all ? "the main metrics only" : `all ${names.length} metrics`;
    all.hidden = Boolean(terms.length) || !main.length || main.length === names.length;
    curves.charts.forEach((chart) => seen.unobserve(chart.node));
    curves.charts = some.map((name) => new Chart(name, index));
    charts.replaceChildren(...curves.charts.map((chart) => chart.node));
    curves.charts.forEach((chart) => seen.observe(chart.node));
  }
  fill();
}

// A chart is drawn once it comes near what is seen: a run logs eighty metrics.
const seen = new IntersectionObserver((entries) => entries.forEach((entry) => {
  entry.target.chart.near = entry.isIntersecting;
  if (entry.isIntersecting) entry.target.chart.draw();
}), { rootMargin: "300px" });

window.addEventListener("resize", later(150, () => curves.charts.forEach((chart) => chart.refresh())));

function lineClass(number) {
  return `curve run-${number % 6} dash-${Math.floor(number / 6) % 4 || number % 4}`;
}

function drawLegend(index, again) {
  return h("div", { class: "legend", role: "group", "aria-label": "Runs on the curves" }, index.runs.map((run) => {
    const button = h("button", { type: "button", "aria-pressed": String(!curves.hidden.has(run.name)), onclick: () => {
      if (!curves.hidden.delete(run.name)) curves.hidden.add(run.name);
      button.setAttribute("aria-pressed", String(!curves.hidden.has(run.name)));
      again();
    } }, s("svg", { width: 34, height: 10, "aria-hidden": "true" }, s("path", { d: "M0 5H34", class: lineClass(run.number) })), run.name);
    return button;
  }));
}

// Exponential smoothing without the pull of the first value towards 0.
function smoothed(values, weight) {
  let sum = 0, mass = 0;
  return values.map((value) => {
    if (value === null) return null;
    sum = weight * sum + (1 - weight) * value;
    mass = weight * mass + (1 - weight);
    return sum / mass;
  });
}

function quantile(sorted, share) {
  return sorted[Math.min(sorted.length - 1, Math.max(0, Math.round(share * (sorted.length - 1))))];
}

// The limits of an axis: all values, or most of them where a few lie far outside.
function limits(values, clip) {
  const sorted = Float64Array.from(values).sort();
  let low = sorted[0], high = sorted[sorted.length - 1];
  if (clip && sorted.length >= 20) {
    const a = quantile(sorted, 0.02), b = quantile(sorted, 0.98), room = 0.5 * (b - a);
    if (b > a && high - low > 3 * (b - a)) { low = Math.max(low, a - room); high = Math.min(high, b + room); }
  }
  if (low === high) { const room = Math.abs(low) * 0.1 || 0.5; return [low - room, high + room]; }
  const room = 0.04 * (high - low);
  return [low - room, high + room];
}

function ticks(low, high, count) {
  const raw = (high - low) / count, power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((m) => m * power).find((m) => m >= raw);
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + 1e-9 * step; i += 1) found.push(i * step);
  return found;
}

// With as many digits as tell a tick from its neighbour.
function tickText(tick, all) {
  const step = all.length > 1 ? all[1] - all[0] : 1, size = Math.max(...all.map(Math.abs));
  return short(Math.abs(tick) < step / 2 ? 0 : tick, Math.min(12, Math.max(3, Math.ceil(Math.log10(size / step)) + 1)));
}

class Chart {
  constructor(name, index) {
    this.name = name;
    this.index = index;
    this.near = false;
    this.svg = s("svg", { role: "img", tabindex: "0" });
    this.out = h("output", { "aria-live": "polite" });
    this.node = h("figure", { class: "chart", "data-metric": name }, h("h3", {}, name), this.svg, this.out);
    this.node.chart = this;
    this.svg.addEventListener("pointermove", (event) => this.point(event.offsetX));
    this.svg.addEventListener("pointerleave", () => this.point(null));
    this.svg.addEventListener("keydown", (event) => this.key(event));
    this.svg.addEventListener("blur", () => this.point(null));
  }

  refresh() {
    if (this.near) this.draw();
  }

  lines() {
    const log = curves.log, found = [];
    this.lost = 0;
    for (const run of this.index.runs) {
      const data = curves.data.get(run.number), held = own(data?.metrics, this.name);
      if (!held || curves.hidden.has(run.name)) continue;
      const all = held.at.map((at, i) => [data[curves.x][at], held.values[i]]);
      const points = all.filter(([x, y]) => x !== null && (y === null || !log || y > 0));
      this.lost += all.length - points.length + points.filter(([, y]) => y === null).length;
      if (points.some(([, y]) => y !== null)) {
        found.push({ run, xs: points.map((p) => p[0]), raw: points.map((p) => p[1]) });
      }
    }
    for (const line of found) line.ys = curves.smooth ? smoothed(line.raw, curves.smooth) : line.raw;
    return found;
  }

  draw() {
    const lines = this.drawn = this.lines();
    const width = Math.max(this.svg.clientWidth || 300, 120);
    this.svg.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
    if (!lines.length) {
      this.svg.replaceChildren(s("text", { x: LEFT, y: HEIGHT / 2 }, "nothing to show"));
      this.say();
      return;
    }
    const scale = curves.log ? Math.log10 : (v) => v;
    const values = lines.flatMap((line) => line.raw.filter((v) => v !== null).map(scale));
    const [low, high] = limits(values, curves.clip);
    this.beyond = values.filter((v) => v < low || v > high).length;
    const xs = lines.flatMap((line) => [line.xs[0], line.xs.at(-1)]);
    let [left, right] = [Math.min(...xs), Math.max(...xs)];
    if (left === right) { left -= 0.5; right += 0.5; }
    const inner = width - LEFT - RIGHT, tall = HEIGHT - TOP - BOTTOM;
    this.x = (v) => ((v - left) / (right - left)) * inner;
    this.y = (v) => tall - ((scale(v) - low) / (high - low)) * tall;
    this.left = left; this.right = right; this.inner = inner;
    const plot = s("svg", { x: LEFT, y: TOP, width: inner, height: tall, overflow: "hidden" }); // cuts lines at its edge
    const marks = [];
    const rows = ticks(low, high, 5);
    for (const tick of rows) {
      const y = TOP + tall - ((tick - low) / (high - low)) * tall;
      marks.push(s("line", { class: "grid", x1: LEFT, x2: width - RIGHT, y1: y, y2: y }),
        s("text", { x: LEFT - 5, y: y + 4, "text-anchor": "end" }, curves.log ? short(10 ** tick) : tickText(tick, rows)));
    }
    for (const tick of ticks(left, right, Math.max(2, Math.floor(inner / 90)))) {
      const x = LEFT + this.x(tick);
      marks.push(s("text", { x, y: HEIGHT - 5, "text-anchor": x > width - 30 ? "end" : "middle" }, short(tick, 6)));
    }
    for (const line of lines) {
      if (curves.smooth) plot.append(this.path(line, line.raw, inner, `${lineClass(line.run.number)} faint`));
      plot.append(this.path(line, line.ys, inner, lineClass(line.run.number)));
    }
    this.cursor = s("line", { class: "cursor", y1: 0, y2: tall, visibility: "hidden" });
    plot.append(this.cursor);
    this.svg.replaceChildren(...marks, plot);
    const told = lines.map(({ run, raw }) => `${run.name} ${short(raw.find((v) => v !== null))} to ${short(raw.findLast((v) => v !== null))}`);
    this.svg.setAttribute("aria-label", `${this.name} over ${AXES[curves.x]}: ${told.join("; ")}`);
    this.say();
  }

  // Of a line with more points than pixels the lowest and the highest of each pixel are drawn.
  path(line, ys, inner, className) {
    const parts = [];
    let pen = "M", column = -1, low = 0, high = 0;
    const known = ys.filter((v) => v !== null).length;
    if (known === 1) {
      const i = ys.findIndex((v) => v !== null);
      return s("circle", { cx: this.x(line.xs[i]), cy: this.y(ys[i]), r: 2.5, class: className });
    }
    const dense = known > 2 * inner;
    const flush = () => { if (column >= 0) { parts.push(`${pen}${column} ${low.toFixed(1)}L${column} ${high.toFixed(1)}`); pen = "L"; column = -1; } };
    for (let i = 0; i < ys.length; i += 1) {
      if (ys[i] === null) { flush(); pen = "M"; continue; }
      const x = this.x(line.xs[i]), y = Math.max(-1e4, Math.min(1e4, this.y(ys[i])));
      if (!dense) { parts.push(`${pen}${x.toFixed(1)} ${y.toFixed(1)}`); pen = "L"; continue; }
      if (Math.round(x) !== column) { flush(); column = Math.round(x); low = high = y; }
      low = Math.min(low, y); high = Math.max(high, y);
    }
    flush();
    return s("path", { d: parts.join(""), class: className });
  }

  say(text) {
    const notes = [this.beyond ? `${plural(this.beyond, "point")} beyond the axis` : "", this.lost ? `${plural(this.lost, "point")} cannot be drawn` : ""];
    this.out.textContent = text ?? notes.filter(Boolean).join(", ");
  }

  point(offset) {
    if (!this.drawn?.length) return;
    if (offset === null) { this.at = null; this.cursor.setAttribute("visibility", "hidden"); this.say(); return; }
    this.at = this.left + Math.min(1, Math.max(0, (offset - LEFT) / this.inner)) * (this.right - this.left);
    this.read();
  }

  read() {
    const x = this.x(this.at);
    for (const [name, value] of [["x1", x], ["x2", x], ["visibility", "visible"]]) this.cursor.setAttribute(name, value);
    const near = this.drawn.map((line) => {
      let best = -1;
      for (let i = 0; i < line.xs.length; i += 1) {
        if (line.ys[i] !== null && (best < 0 || Math.abs(line.xs[i] - this.at) < Math.abs(line.xs[best] - this.at))) best = i;
      }
      return `${line.run.name} ${short(line.ys[best])}`;
    });
    this.say(`${AXES[curves.x]} ${short(this.at, 6)}: ${near.join(", ")}`);
  }

  key(event) {
    const way = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!way || !this.drawn?.length) return;
    event.preventDefault();
    event.stopPropagation();
    const xs = this.drawn[0].xs;
    const now = this.at ?? (way > 0 ? -Infinity : Infinity);
    const next = way > 0 ? xs.find((x) => x > now) : xs.findLast((x) => x < now);
    this.at = next ?? (way > 0 ? xs.at(-1) : xs[0]);
    this.read();
  }
}
