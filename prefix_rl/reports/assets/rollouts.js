// The rollouts of a saved generation, group by group; of one run, or of two side by side.

const HEAD = 900, TAIL = 400, FOLD = 1700; // characters of a long rollout that are shown folded, and what is long
const GROUPS_AT_ONCE = 40;
const view = { runs: [], a: 0, b: -1, at: -1, follow: true, shown: GROUPS_AT_ONCE, turn: 0, search: 0, open: new Set(), whole: new Set(), found: null };

const runA = () => view.runs[view.a];
const runB = () => (view.b >= 0 && view.b !== view.a ? view.runs[view.b] : null);
const savedNow = () => runA()?.generations[view.at];

function drawRollouts(index) {
  view.runs = index.runs.filter((run) => run.generations.length);
  const section = document.getElementById("rollouts");
  if (!view.runs.length) {
    section.replaceChildren(h("h2", {}, "Rollouts"), h("p", { class: "quiet" }, "No run has saved rollouts (output.rollouts_every)."));
    return;
  }
  view.a = Math.min(view.a, view.runs.length - 1);
  if (view.b >= view.runs.length) view.b = -1;
  const names = view.runs.map((run, i) => [String(i), run.name]);
  const slider = h("input", { type: "range", id: "generation", min: "0", step: "1", "aria-label": "Saved generation",
    oninput: () => go(Number(slider.value)) });
  const parts = {
    slider, controls: h("div", {}), strip: h("div", { class: "strip", "aria-hidden": "true" }),
    label: h("span", { id: "generation-label" }), groups: h("div", { id: "groups" }),
    count: h("p", { class: "quiet", id: "count", role: "status" }), hits: h("div", { class: "controls", id: "hits" }),
    before: h("button", { type: "button", id: "before", "aria-label": "generation before", onclick: () => go(view.at - 1) }, "◀"),
    after: h("button", { type: "button", id: "after", "aria-label": "generation after", onclick: () => go(view.at + 1) }, "▶"),
  };
  view.parts = parts;
  section.replaceChildren(
    h("h2", {}, "Rollouts"),
    h("p", {}, "A ", h("span", { class: "prefix" }, "prefix of a demonstration"), ", in it the ",
      h("span", { class: "kept" }, "tokens that get gradient"), ", and what the policy wrote."),
    h("div", { class: "controls" },
      select("Run", names, String(view.a), (value) => { view.a = Number(value); view.at = -1; view.found = null; reset(); }, { id: "run-a" }),
      view.runs.length > 1 ? select("beside", [["-1", "–"], ...names], String(view.b), (value) => { view.b = Number(value); reset(); }, { id: "run-b" }) : "",
      view.runs.length > 1 ? bothBox() : ""),
    parts.controls,
    h("div", { class: "controls" }, parts.before, h("div", { class: "slider" }, parts.strip, slider), parts.after, parts.label),
    parts.hits, parts.count, parts.groups,
  );
  reset();
}

function bothBox() {
  const made = h("input", { type: "checkbox", id: "both", checked: filters.both, onchange: () => { filters.both = made.checked; drawGroups(); } });
  return h("label", {}, made, " only problems that both have");
}

function reset() {
  view.parts.controls.replaceChildren(...filterControls(runA(), (what) => {
    view.shown = GROUPS_AT_ONCE;
    if (what === "filter") { view.found = null; drawHits(); drawStrip(); }
    drawGroups();
  }, everywhere));
  go(view.at < 0 || view.at >= runA().generations.length ? runA().generations.length - 1 : view.at);
}

function go(at) {
  const last = runA().generations.length - 1;
  view.at = Math.max(0, Math.min(last, at));
  view.follow = view.at === last;
  view.shown = GROUPS_AT_ONCE;
  const { slider, label, before, after } = view.parts;
  slider.max = String(last);
  slider.value = String(view.at);
  const text = `step ${savedNow().step} (${view.at + 1} of ${last + 1})`;
  slider.setAttribute("aria-valuetext", text);
  label.textContent = text;
  before.disabled = view.at === 0;
  after.disabled = view.at === last;
  drawStrip();
  drawHits();
  drawGroups();
}

// Above the slider, for each generation the share of its rollouts that are right; where filters are set, of those that
// they leave; where a text was searched, of those that have it.
function drawStrip() {
  const run = runA(), plain = !view.found && !asked();
  const left = view.found ?? (plain ? run.generations.map((saved) => saved.outcomes.filter((o) => o === "right").length) : counts(run));
  view.parts.strip.replaceChildren(...run.generations.map((saved, i) => {
    const told = `step ${saved.step}: ${left[i] ?? "?"} of ${saved.outcomes.length}${plain ? " right" : ""}`;
    const bar = h("i", { title: told, class: i === view.at ? "here" : null });
    bar.style.height = `${(100 * (left[i] ?? 0)) / Math.max(saved.outcomes.length, 1)}%`;
    return bar;
  }));
}

function drawHits() {
  const run = runA();
  const steps = view.found?.flatMap((n, i) => (n ? [[i, n]] : [])) ?? [];
  view.parts.hits.replaceChildren(...(view.found ? [h("span", {}, `found in ${plural(steps.length, "generation")}:`)] : []),
    ...steps.slice(0, 60).map(([i, n]) => h("button", { type: "button", "aria-current": i === view.at ? "true" : null, onclick: () => go(i) }, `step ${run.generations[i].step} (${n})`)));
}

async function everywhere() {
  const run = runA(), search = ++view.search, asked = JSON.stringify(filters), found = [];
  for (const [i, saved] of run.generations.entries()) {
    view.parts.count.textContent = `searching step ${saved.step} …`;
    const groups = await load(`${run.number}-${saved.step}`);
    if (search !== view.search || asked !== JSON.stringify(filters) || run !== runA()) return; // something else is asked
    found[i] = groups.reduce((n, group) => n + group.rollouts.filter(
      (r) => wanted(r.outcome, r.reward, r.prefix) && hasText(group, r, filters.text)).length, 0);
  }
  view.found = found;
  drawStrip();
  drawHits();
  drawGroups();
}

async function drawGroups() {
  const run = runA(), saved = savedNow(), turn = ++view.turn, { groups: place, count } = view.parts;
  let groups;
  try {
    groups = await generation(run, saved);
  } catch (error) {
    if (turn === view.turn) place.replaceChildren(h("p", { class: "finding" }, `This generation cannot be opened: ${error.message}`));
    return;
  }
  if (turn !== view.turn) return; // the slider has moved on
  const other = runB(), theirs = other && new Set(other.generations.flatMap((g) => g.problems));
  let left = 0, all = 0;
  const some = groups.map((group, number) => {
    all += group.rollouts.length;
    const kept = group.rollouts.filter((r) => wanted(r.outcome, r.reward, r.prefix) && hasText(group, r, filters.text));
    left += kept.length;
    return { group, kept, id: `${run.name} ${saved.step} ${number}` };
  }).filter(({ group, kept }) => kept.length && !(other && filters.both && !theirs.has(group.key)));
  const inOrder = ordered(some, ORDERS[filters.order], (item) => facts(item.group));
  count.textContent = asked() ? `${left} of ${plural(all, "rollout")} in ${plural(some.length, "group")}` : `${plural(all, "rollout")} in ${plural(some.length, "group")}`;
  if (run.limit) count.textContent += `; the middle of completions longer than ${run.limit.toLocaleString("en")} characters was left out to keep the page small (rollouts/ has them whole)`;
  const held = { advantage: "advantages", entropy: "entropies" }[filters.shade];
  if (held && !groups.some((g) => g.rollouts.some((r) => r[held] || (held === "advantages" && r.advantage)))) {
    count.textContent += `; no ${filters.shade} of single tokens was saved with these`;
  }
  place.replaceChildren(...inOrder.slice(0, view.shown).map((item, i) => drawGroup(run, saved, item, i === 0)));
  if (inOrder.length > view.shown) {
    const rest = inOrder.length - view.shown;
    place.append(h("button", { type: "button", id: "more", onclick: () => { view.shown += GROUPS_AT_ONCE; drawGroups(); } }, `${plural(rest, "more group")}`));
  }
  document.documentElement.dataset.drawn = `${run.name} ${saved.step}`;
}

function headOf(group, kept) {
  const f = facts(group), many = group.rollouts.length;
  const right = f.graded ? `${f.right} of ${many} right` : "no verdict";
  const parts = [`reward ${short(f.reward)}`, group.answer ? `answer ${group.answer}` : ""];
  if (f.prefixed) parts.push(`${f.prefixed} from a prefix of ${f.prefix === 0 ? "" : "up to "}${plural(f.prefix, "token")}`);
  if (kept.length < many) parts.push(`${kept.length} shown`);
  const start = group.prompt.replace(/\s+/g, " ").slice(0, 90);
  return [h("b", {}, right), ` · ${parts.filter(Boolean).join(" · ")} · `, h("span", { class: "quiet" }, start)];
}

function drawGroup(run, saved, { group, kept, id }, first) {
  const inside = h("div", { class: "inside" });
  const open = () => {
    if (inside.childNodes.length) return;
    const own = h("div", {}, listOf(group, kept, id));
    const other = runB();
    inside.append(h("div", { class: "text prompt", tabindex: "0" }, ...marked(group.prompt)));
    if (!other) return inside.append(own);
    const beside = h("div", {}, h("h3", {}, other.name), h("p", { class: "quiet" }, "…"));
    own.prepend(h("h3", {}, `${run.name}, step ${saved.step}`));
    inside.append(h("div", { class: "sides" }, own, beside));
    drawBeside(other, saved, group.key, beside, id);
  };
  const details = h("details", { class: "group", "data-key": group.key }, h("summary", {}, headOf(group, kept)), inside);
  details.refill = () => { inside.replaceChildren(); open(); };
  details.addEventListener("toggle", () => {
    if (details.open) { view.open.add(id); open(); } else view.open.delete(id);
  });
  if (first || view.open.has(id)) { details.open = true; open(); }
  return details;
}

// The same problem in the other run: in the saved generation that is nearest by step and has it.
async function drawBeside(other, saved, key, place, id) {
  const having = other.generations.filter((g) => g.problems.includes(key));
  if (!having.length) {
    place.replaceChildren(h("h3", {}, other.name), h("p", { class: "quiet" }, "This problem is not among its saved rollouts."));
    return;
  }
  const near = having.reduce((a, b) => (Math.abs(b.step - saved.step) < Math.abs(a.step - saved.step) ? b : a));
  let groups;
  try {
    groups = await generation(other, near);
  } catch (error) {
    place.replaceChildren(h("p", { class: "finding" }, `It cannot be opened: ${error.message}`));
    return;
  }
  const group = groups.find((g) => g.key === key);
  const kept = group.rollouts.filter((r) => wanted(r.outcome, r.reward, r.prefix));
  place.replaceChildren(h("h3", {}, `${other.name}, step ${near.step}`), h("p", { class: "quiet" }, headOf(group, kept)[0], `, reward ${short(facts(group).reward)}`),
    listOf(group, kept, `${id} beside`));
}

function listOf(group, kept, id) {
  const most = { advantage: 0, entropy: 0 };
  for (const r of group.rollouts) {
    for (const v of r.advantages ?? [r.advantage]) most.advantage = Math.max(most.advantage, Math.abs(v ?? 0));
    for (const v of r.entropies ?? []) most.entropy = Math.max(most.entropy, v ?? 0);
  }
  return h("div", {}, ordered(kept, WITHIN[filters.within], (r) => r).map((r) => drawRollout(r, group.answer, `${id} ${group.rollouts.indexOf(r)}`, most)));
}

function drawRollout(rollout, answer, id, most) {
  const outcome = rollout.outcome, right = outcome === "right";
  const verdict = outcome === null ? "no verdict" : own(OUTCOMES, outcome) ?? outcome;
  const told = [`reward ${short(rollout.reward)}`, `advantage ${rollout.advantage > 0 ? "+" : ""}${short(rollout.advantage)}`];
  const apart = Object.entries(rollout.rewards ?? {}).map(([name, value]) => `${name} ${short(value)}`);
  if (apart.length) told[0] += ` (${apart.join(", ")})`;
  if (rollout.tokens !== null && rollout.tokens !== undefined) told.push(plural(rollout.tokens, "token"));
  told.push(rollout.prefix ? `prefix ${rollout.prefix}${rollout.of ? ` of ${rollout.of}` : ""}` : "no prefix");
  if (rollout.found) told.push(`found ${rollout.found}, compared with ${answer || "nothing"}`);
  const body = h("div", { class: "text" });
  const fill = () => {
    const long = length(rollout) > FOLD && !view.whole.has(id);
    body.replaceChildren(...pieces(rollout, most, long));
    if (length(rollout) > FOLD) {
      const words = textOf(rollout).split(/\s+/).filter(Boolean).length;
      body.append(h("button", { type: "button", class: "fold", "aria-expanded": String(!long), onclick: () => {
        if (!view.whole.delete(id)) view.whole.add(id);
        fill();
      } }, long ? `show all ${plural(words, "word")}` : "fold"));
    }
  };
  fill();
  return h("article", { class: `rollout ${right ? "right" : "wrong"}` }, h("div", { class: "verdict" },
    h("b", { class: outcome === null ? null : right ? "right" : "not-right" }, verdict), ` · ${told.join(" · ")}`), body);
}

function length(rollout) {
  let n = 0;
  for (let i = 1; i < rollout.segments.length; i += 2) n += rollout.segments[i].length;
  return n;
}

// The text as spans, cut where its kind, a token's value or a found text begins and ends; a long one without its middle.
function pieces(rollout, most, folded) {
  const kinds = [], shades = [], text = [];
  let at = 0;
  for (let i = 0; i < rollout.segments.length; i += 2) {
    const [kind, part] = [rollout.segments[i], rollout.segments[i + 1]];
    const shown = kind === 3 ? ` … ${Number(part).toLocaleString("en")} characters left out … ` : part;
    text.push(shown);
    kinds.push([at, kind]);
    at += shown.length;
  }
  const whole = text.join(""), bounds = new Map(kinds.map(([start, kind]) => [start, { kind }]));
  const cutAt = (start, change) => bounds.set(start, { ...bounds.get(start), ...change });
  const values = filters.shade === "advantage" ? rollout.advantages : filters.shade === "entropy" ? rollout.entropies : null;
  if (values && rollout.widths) {
    let start = 0;
    rollout.widths.forEach((width, i) => { if (width) cutAt(start, { value: values[i] }); start += width; });
  } else if (filters.shade === "advantage" && !rollout.advantages) {
    for (const [start, kind] of kinds) cutAt(start, { value: kind === 0 || kind === 3 ? null : rollout.advantage });
  }
  const lower = filters.text ? whole.toLowerCase() : "";
  let hidden = false;
  for (let found = lower.indexOf(filters.text); filters.text && found >= 0; found = lower.indexOf(filters.text, found + filters.text.length)) {
    cutAt(found, { mark: true });
    cutAt(found + filters.text.length, { mark: false });
    hidden ||= folded && found + filters.text.length > HEAD && found < at - TAIL;
  }
  if (folded && !hidden) { cutAt(HEAD, {}); cutAt(at - TAIL, {}); }
  const starts = [...bounds.keys()].sort((a, b) => a - b), nodes = [], now = { kind: 2, value: null, mark: false };
  starts.forEach((start, i) => {
    Object.assign(now, bounds.get(start));
    const end = starts[i + 1] ?? at;
    if (end <= start) return;
    if (folded && !hidden && start >= HEAD && end <= at - TAIL) {
      if (start === HEAD) nodes.push(h("span", { class: "cut" }, " … "));
      return;
    }
    nodes.push(span(whole.slice(start, end), now, most));
  });
  return nodes;
}

function span(text, { kind, value, mark }, most) {
  const node = h(mark ? "mark" : "span", { class: ["prefix", "kept", null, "cut"][kind] }, text);
  const top = most[filters.shade];
  if (filters.shade && value !== null && value !== undefined && top > 0 && kind !== 3) {
    const strength = Math.min(1, Math.abs(value) / top);
    if (value < 0) node.classList.add("below");
    node.style.background = `rgba(var(--shade${value < 0 ? "-below" : ""}), ${(0.75 * strength).toFixed(2)})`;
    node.title = `${filters.shade} ${short(value)}`;
  }
  return node;
}

function marked(text) {
  if (!filters.text) return [text];
  const lower = text.toLowerCase(), found = [];
  let at = 0;
  for (let hit = lower.indexOf(filters.text); hit >= 0; hit = lower.indexOf(filters.text, at)) {
    found.push(text.slice(at, hit), h("mark", {}, text.slice(hit, hit + filters.text.length)));
    at = hit + filters.text.length;
  }
  return [...found, text.slice(at)];
}
