// Data: chunks of the page, or of the server behind it, opened when they are looked at; and how texts become nodes.

const LIVE = document.documentElement.dataset.source === "live";
const KEPT_CHUNKS = 6; // generations held open; a long run has hundreds
const opened = new Map();

const parsed = new Promise((done) => {
  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", done, { once: true });
  else done();
});

async function inflate(bytes) {
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return JSON.parse(await new Response(stream).text());
}

async function bytesOf(name) {
  if (LIVE) {
    const answer = await fetch(name, { cache: "no-store" });
    if (!answer.ok) throw new Error(`${name}: ${answer.status}`);
    return answer.arrayBuffer();
  }
  let block = document.getElementById(`chunk-${name}`);
  if (!block) {
    await parsed; // it stands further down, and the browser is not there yet
    block = document.getElementById(`chunk-${name}`);
  }
  if (!block) throw new Error(`the page has no chunk ${name}`);
  return Uint8Array.from(atob(block.textContent), (c) => c.charCodeAt(0));
}

async function load(name) {
  return inflate(await bytesOf(name));
}

// The groups of a generation; the last few stay open. `version` changes when a file was written anew.
async function generation(run, saved) {
  const name = `${run.number}-${saved.step}`;
  const key = `${name} ${saved.version ?? ""}`;
  if (!opened.has(key)) opened.set(key, load(name));
  const found = opened.get(key);
  opened.delete(key);
  opened.set(key, found); // the youngest is last
  while (opened.size > KEPT_CHUNKS) opened.delete(opened.keys().next().value);
  try {
    return await found;
  } catch (error) {
    opened.delete(key); // the next look tries again
    throw error;
  }
}

// --- nodes. Every text becomes a text node: nothing that a model or a file wrote is ever read as HTML -----------------

function h(tag, props, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(props ?? {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "value" || name === "checked" || name === "open") node[name] = value;
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return node;
}

function s(tag, props, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(props ?? {})) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

function select(label, options, value, change, props) {
  const made = h("select", { onchange: () => change(made.value), ...props },
    options.map(([key, text]) => h("option", { value: key }, text)));
  made.value = value;
  return h("label", {}, `${label} `, made);
}

// What an object holds under a name that others chose: "constructor" is a name like any other.
function own(object, name) {
  return object && Object.hasOwn(object, name) ? object[name] : undefined;
}

// --- numbers ----------------------------------------------------------------------------------------------------------

function short(value, digits = 3) {
  if (value === null || value === undefined) return "–";
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 1e5 || size < 1e-3) return value.toExponential(2).replace("e+", "e");
  return String(Number(value.toPrecision(Math.max(digits, size >= 1000 ? 5 : 0))));
}

function mean(values) {
  const known = values.filter((v) => v !== null && v !== undefined);
  return known.length ? known.reduce((a, b) => a + b, 0) / known.length : null;
}

function plural(count, what) {
  return `${count.toLocaleString("en")} ${what}${count === 1 ? "" : "s"}`;
}

// Waits for a pause of what calls it.
function later(milliseconds, run) {
  let timer = 0;
  return (...given) => {
    clearTimeout(timer);
    timer = setTimeout(() => run(...given), milliseconds);
  };
}
