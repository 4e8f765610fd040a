// What is asked of the rollouts, and which of them answer.

const OUTCOMES = { right: "✓ right", wrong: "✗ wrong", no_answer: "∅ no answer", bad_gold: "gold cannot be parsed",
  timeout: "grading timed out", crash: "grading crashed" };
const ORDERS = {
  saved: ["as saved", () => 0],
  mixed: ["some right, some wrong first", (g) => -(g.rightShare > 0 && g.rightShare < 1 ? 2 : g.spread > 0 ? 1 : 0)],
  right: ["most right first", (g) => -g.rightShare],
  wrong: ["fewest right first", (g) => g.rightShare],
  reward: ["highest reward first", (g) => -(g.reward ?? -Infinity)],
  prefix: ["longest prefix first", (g) => -g.prefix],
  length: ["longest first", (g) => -g.tokens],
};
const WITHIN = {
  saved: ["as saved", () => 0],
  reward: ["reward", (r) => -(r.reward ?? -Infinity)],
  length: ["length", (r) => -(r.tokens ?? 0)],
  advantage: ["advantage", (r) => -(r.advantage ?? 0)],
};
const filters = { outcome: "", low: null, high: null, start: "", order: "mixed", within: "saved", shade: "", text: "", both: false };

// Whether one rollout is wanted, from what the index or a chunk says of it.
function wanted(outcome, reward, prefix) {
  if (filters.outcome === "not_right" ? outcome === "right" : filters.outcome && outcome !== filters.outcome) return false;
  if (filters.low !== null && !(reward !== null && reward >= filters.low)) return false;
  if (filters.high !== null && !(reward !== null && reward <= filters.high)) return false;
  if (filters.start === "prefixed" && !(prefix > 0)) return false;
  if (filters.start === "alone" && prefix > 0) return false;
  return true;
}

function asked() {
  return Boolean(filters.outcome || filters.start || filters.low !== null || filters.high !== null || filters.text);
}

function textOf(rollout) {
  if (rollout.text === undefined) {
    let text = "";
    for (let i = 0; i < rollout.segments.length; i += 2) text += rollout.segments[i] === 3 ? "" : rollout.segments[i + 1];
    rollout.text = text;
  }
  return rollout.text;
}

function hasText(group, rollout, needle) {
  return !needle || textOf(rollout).toLowerCase().includes(needle) || group.prompt.toLowerCase().includes(needle) ||
    (rollout.found ?? "").toLowerCase().includes(needle);
}

// How many rollouts of each generation are wanted, without opening it.
function counts(run) {
  return run.generations.map((saved) => saved.outcomes.reduce(
    (n, outcome, i) => n + wanted(outcome, saved.rewards[i], saved.prefixes[i]), 0));
}

// What a group is ordered by, and what its head says.
function facts(group) {
  if (group.facts) return group.facts;
  const rollouts = group.rollouts, graded = rollouts.filter((r) => r.outcome !== null);
  const rewards = rollouts.map((r) => r.reward).filter((r) => r !== null);
  const right = graded.filter((r) => r.outcome === "right").length;
  group.facts = {
    right, graded: graded.length, rightShare: graded.length ? right / graded.length : -1,
    reward: mean(rewards), spread: rewards.length ? Math.max(...rewards) - Math.min(...rewards) : 0,
    prefixed: rollouts.filter((r) => r.prefix > 0).length,
    prefix: Math.max(0, ...rollouts.map((r) => r.prefix)), tokens: Math.max(0, ...rollouts.map((r) => r.tokens ?? 0)),
  };
  return group.facts;
}

function ordered(items, order, of) {
  const weigh = order[1];
  return items.map((item, i) => [weigh(of(item)), i, item]).sort((a, b) => a[0] - b[0] || a[1] - b[1]).map((entry) => entry[2]);
}

// The controls; `change(what)` is called with "filter", "order" or "look".
function filterControls(run, change, everywhere) {
  const outcomes = [...new Set(run.generations.flatMap((saved) => saved.outcomes.filter((o) => o !== null)))];
  const known = Object.keys(OUTCOMES).filter((o) => outcomes.includes(o)).concat(outcomes.filter((o) => !own(OUTCOMES, o)));
  if (filters.outcome && filters.outcome !== "not_right" && !known.includes(filters.outcome)) filters.outcome = "";
  const number = (key, label) => {
    const made = h("input", { type: "number", step: "any", id: `reward-${key}`, value: filters[key] ?? "", onchange: () => {
      filters[key] = made.value === "" ? null : Number(made.value);
      change("filter");
    } });
    return h("label", {}, `${label} `, made);
  };
  const set = (key, what) => (value) => { filters[key] = value; change(what); };
  const search = h("input", { type: "search", id: "search", value: filters.text, placeholder: "text", oninput: later(200, () => {
    if (typed()) change("filter");
  }), onkeydown: (event) => { if (event.key === "Enter") all(); } });
  const typed = () => filters.text !== (filters.text = search.value.toLowerCase());
  const all = () => { typed(); everywhere(); };
  const names = (table) => Object.entries(table).map(([key, [text]]) => [key, text]);
  return [
    h("div", { class: "controls" },
      select("Outcome", [["", "all"], ...known.map((o) => [o, own(OUTCOMES, o) ?? o]), ["not_right", "all but right"]], filters.outcome, set("outcome", "filter"), { id: "outcome" }),
      select("Start", [["", "all"], ["prefixed", "from a prefix"], ["alone", "without a prefix"]], filters.start, set("start", "filter"), { id: "start" }),
      number("low", "Reward from"), number("high", "to"),
      h("label", {}, "Search ", search),
      h("button", { type: "button", id: "everywhere", onclick: all }, "in all generations")),
    h("div", { class: "controls" },
      select("Groups", names(ORDERS), filters.order, set("order", "order"), { id: "order" }),
      select("Rollouts by", names(WITHIN), filters.within, set("within", "order"), { id: "within" }),
      select("Shade tokens by", [["", "nothing"], ["advantage", "advantage"], ["entropy", "entropy"]], filters.shade, set("shade", "look"), { id: "shade" })),
  ];
}
