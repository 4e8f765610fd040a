// The table of runs, their health, and what differs between their recipes.

function drawTable(index) {
  const [head, ...rows] = index.table;
  const state = head.indexOf("state");
  const cell = (text, i, row) => {
    if (i !== state) return h("td", {}, text);
    const run = index.runs[row];
    const how = run.state.progress;
    const far = how && run.state.name === "running" ? `, ${how.what} ${how.done.toLocaleString("en")}${how.total > 0 ? ` of ${how.total.toLocaleString("en")}` : ""}` : "";
    return h("td", { class: `state state-${run.state.name}`, title: run.state.says }, `${text}${far}`);
  };
  const notes = index.runs.flatMap((run) => run.notes.map((note) => h("p", { class: "quiet" }, `${run.name}: ${note}`)));
  const gone = index.runs.filter((run) => ["died", "hangs", "failed"].includes(run.state.name));
  document.getElementById("runs").replaceChildren(
    h("div", { class: "wide", tabindex: "0", role: "region", "aria-label": "Table of runs" },
      h("table", {}, h("thead", {}, h("tr", {}, head.map((title) => h("th", { scope: "col" }, title)))),
        h("tbody", {}, rows.map((row, r) => h("tr", {}, row.map((text, i) => cell(text, i, r))))))),
    ...gone.map((run) => h("p", { class: "finding" }, h("b", {}, `${run.name}: `), run.state.says)),
    ...notes,
  );
}

function drawHealth(index) {
  const found = index.runs.filter((run) => run.health.length);
  const well = index.runs.filter((run) => !run.health.length).map((run) => run.name);
  document.getElementById("health").replaceChildren(
    h("h2", {}, "Health"),
    ...found.flatMap((run) => [h("h3", {}, run.name), ...run.health.map((f) => h("div", { class: "finding" },
      h("p", {}, h("b", {}, `⚠ ${f.says}`), ` (step ${f.step})`), h("p", {}, `Why: ${f.why}.`), h("p", {}, `Try: ${f.remedy}.`)))]),
    well.length ? h("p", { class: "quiet" }, `Nothing stands out in ${well.join(", ")}.`) : "",
  );
}

function drawRecipes(index) {
  const runs = index.runs.filter((run) => Object.keys(run.recipe).length);
  const section = document.getElementById("recipes");
  if (!runs.length) return section.replaceChildren();
  const keys = [...new Set(runs.flatMap((run) => Object.keys(run.recipe)))];
  const differ = keys.filter((key) => new Set(runs.map((run) => own(run.recipe, key))).size > 1);
  const table = (some) => h("div", { class: "wide", tabindex: "0", role: "region", "aria-label": "Recipes" }, h("table", {},
    h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "setting"), runs.map((run) => h("th", { scope: "col" }, run.name)))),
    h("tbody", {}, some.map((key) => h("tr", {}, h("td", {}, key), runs.map((run) => h("td", {}, own(run.recipe, key) ?? "–")))))));
  const same = keys.length - differ.length;
  section.replaceChildren(
    h("h2", {}, runs.length > 1 ? "What differs between the recipes" : "The recipe"),
    runs.length > 1 && differ.length ? table(differ) : "",
    runs.length > 1 ? h("p", { class: "quiet" }, differ.length ? "" : "Nothing. ", `${plural(same, "setting")} ${same === 1 ? "is" : "are"} the same.`) : "",
    h("details", {}, h("summary", {}, "All settings"), table(keys)),
  );
}
