// The page as a whole: it begins, keeps up with runs that go on, and listens to keys.

const REFRESH = 3000; // milliseconds between two looks at runs that go on
let current = null;

function number(index) {
  index.runs.forEach((run, i) => { run.number = i; });
  return index;
}

async function begin() {
  current = number(await load("index"));
  drawTable(current);
  drawHealth(current);
  drawRollouts(current);
  drawRecipes(current);
  document.documentElement.dataset.ready = "table";
  await loadCurves(current);
  drawCurves(current);
  document.documentElement.dataset.ready = "all";
  if (LIVE) setTimeout(refresh, REFRESH);
}

// A run that goes on: what changed is drawn anew; what is looked at stays where it is.
async function refresh() {
  const live = document.getElementById("live");
  try {
    const next = number(await load("index"));
    const changed = (part) => JSON.stringify(next.runs.map(part)) !== JSON.stringify(current.runs.map(part));
    const [rows, moved, health, saved] = [JSON.stringify(next.table) !== JSON.stringify(current.table),
      changed((run) => run.curves_version), changed((run) => run.health), changed((run) => run.generations.map((g) => [g.step, g.version]))];
    const states = changed((run) => run.state);
    const recipes = changed((run) => run.recipe);
    const names = changed((run) => run.name);
    const before = current;
    current = next;
    if (rows || states) drawTable(next);
    if (health) drawHealth(next);
    if (recipes || names) drawRecipes(next);
    if (moved || names) {
      const metrics = () => JSON.stringify(next.runs.map((run) => Object.keys(curves.data.get(run.number)?.metrics ?? {})));
      const known = metrics();
      await loadCurves(next);
      if (names || metrics() !== known) drawCurves(next);
      else curves.charts.forEach((chart) => { chart.index = next; chart.refresh(); });
    }
    if (saved || names) keepUp(next, before);
    live.textContent = `● live, ${new Date().toLocaleTimeString()}`;
    document.documentElement.dataset.refreshed = String(Number(document.documentElement.dataset.refreshed ?? 0) + 1);
  } catch (error) {
    live.textContent = `○ the server does not answer (${error.message}); what is shown stays`;
  }
  setTimeout(refresh, REFRESH);
}

function keepUp(next, before) {
  const shown = before.runs.length && view.runs.length ? { a: runA().name, step: savedNow()?.step, b: runB()?.name } : null;
  const follow = view.follow;
  view.runs = next.runs.filter((run) => run.generations.length);
  view.a = Math.max(0, view.runs.findIndex((run) => run.name === shown?.a));
  view.b = shown?.b ? view.runs.findIndex((run) => run.name === shown.b) : -1;
  view.at = follow || !shown ? -1 : runA()?.generations.findIndex((g) => g.step === shown.step);
  if (!view.parts || before.runs.filter((run) => run.generations.length).length !== view.runs.length) return drawRollouts(next);
  if (!follow) { // the slider grows, the groups stay
    const { slider } = view.parts;
    slider.max = String(runA().generations.length - 1);
    slider.value = String(view.at);
    drawStrip();
  } else if (runA().generations.at(-1).step !== shown?.step) go(runA().generations.length - 1);
}

// --- colours and keys -------------------------------------------------------------------------------------------------

const theme = document.getElementById("theme");

function recall() {
  try { return localStorage.getItem("prefix_rl theme") ?? ""; } catch { return ""; } // a file may have no storage
}

function paint(name) {
  if (name) document.documentElement.dataset.theme = name;
  else delete document.documentElement.dataset.theme;
  theme.value = name;
  try { localStorage.setItem("prefix_rl theme", name); } catch { /* it lasts as long as the page */ }
}

theme.addEventListener("change", () => paint(theme.value));
paint(recall());

document.addEventListener("keydown", (event) => {
  const field = event.target.closest?.("input, select, textarea, .chart, .wide");
  if (field || event.ctrlKey || event.metaKey || event.altKey) {
    if (event.key === "Escape") event.target.blur();
    return;
  }
  const heads = [...document.querySelectorAll("#groups summary")];
  const at = heads.findIndex((head) => head.parentElement.contains(document.activeElement));
  const act = {
    ArrowLeft: () => view.runs.length && go(view.at - 1),
    ArrowRight: () => view.runs.length && go(view.at + 1),
    j: () => heads[Math.min(at + 1, heads.length - 1)]?.focus(),
    k: () => heads[Math.max(at - 1, 0)]?.focus(),
    x: () => heads[Math.max(at, 0)]?.parentElement.querySelectorAll(".fold").forEach((button) => button.click()),
    d: () => paint(dark() ? "light" : "dark"),
    "/": () => document.getElementById("search")?.focus(),
  }[event.key];
  if (!act) return;
  event.preventDefault();
  act();
});

function dark() {
  const chosen = document.documentElement.dataset.theme;
  return chosen ? chosen === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
}

begin().catch((error) => {
  document.querySelector("main").prepend(h("p", { class: "finding" }, `The data of this page cannot be read: ${error.message}`));
  throw error;
});
