// A queue of cells: one large, with what lies near it; the key of a class decides, Enter says that the class is right.
import { ask, does, keys, say, share, text, undo } from "./labref.js";

const section = document.getElementById("queue");
const queue = section?.dataset.queue;
const may = document.body.dataset.role !== "view";
const classes = JSON.parse(document.getElementById("classes").textContent);
const styles = Object.fromEntries(classes.map((one) => [one.label, one.style]));
const views = ["cell", "normalised", "nucleus"];
const AT_ONCE = 6;

let cells = []; // that wait, in their order
let at = 0;
let left = Number(document.getElementById("left").textContent.replace(/\D/g, ""));
let view = views[0];
let busy = Promise.resolve(); // one decision after the other, however fast the keys come

const address = (cell) => `/cell/${cell}/picture?view=${view}`;

async function more() {
  const there = cells.map((cell) => cell.cell_id);
  const rows = await ask("review.cells", { queue, limit: AT_ONCE, leave_out: there.slice(-1000) });
  cells.push(...rows.filter((row) => !there.includes(row.cell_id)));
}

function tag(label) {
  const name = document.createElement("span");
  name.className = `class ${styles[label] ?? ""}`;
  name.textContent = label;
  return name;
}

function show() {
  document.getElementById("left").textContent = left;
  const cell = cells[at];
  section.hidden = !cell;
  document.getElementById("nothing").hidden = Boolean(cell);
  if (!cell) return;
  section.dataset.cell = cell.cell_id;
  const picture = document.getElementById("picture");
  if (picture.getAttribute("src") !== address(cell.cell_id)) picture.src = address(cell.cell_id);
  const label = document.getElementById("label");
  label.textContent = cell.label;
  label.className = `class ${styles[cell.label] ?? ""}`;
  document.getElementById("source").textContent = {
    reviewed: text("reviewed"), analyser: text("by the analyser"), predicted: text("predicted"),
  }[cell.label_source];
  document.getElementById("why").textContent =
    queue === "suspects"
      ? text("Of the cells about it on the map, {share} are {name}.", { share: share(cell.share), name: cell.neighbourhood })
      : text("The network says {name}, with {share}.", { name: cell.predicted, share: share(cell.probability) }) +
        (cell.is_novel ? ` ${text("Nothing in the lab resembles it.")}` : "");
  document.getElementById("neighbours").replaceChildren(
    ...cell.neighbours.map((one) => {
      const entry = document.createElement("li");
      const link = document.createElement("a");
      const thumb = document.createElement("img");
      link.href = `/cell/${one.cell_id}`;
      thumb.src = `/cell/${one.cell_id}/picture?view=thumb`;
      thumb.alt = "";
      link.append(thumb, tag(one.label));
      entry.append(link);
      return entry;
    }),
  );
  document.getElementById("weights").replaceChildren(
    ...Object.entries(cell.weights).filter(([, part]) => part >= 0.005).slice(0, 4).map(([name, part]) => {
      const entry = document.createElement("li");
      const meter = document.createElement("meter");
      const said = document.createElement("span");
      meter.max = 1;
      meter.value = part;
      said.textContent = meter.textContent = share(part);
      entry.append(tag(name), meter, said);
      return entry;
    }),
  );
  document.getElementById("open").href = `/cell/${cell.cell_id}`;
  for (const next of cells.slice(at + 1, at + 3)) {
    new Image().src = address(next.cell_id);
    for (const one of next.neighbours) new Image().src = `/cell/${one.cell_id}/picture?view=thumb`;
  }
}

function decide(label) {
  busy = busy.then(async () => {
    const cell = cells[at];
    if (!cell) return;
    const place = at;
    const done = await does(
      async () => {
        const [row] = await ask("review.decide", { cell: cell.cell_id, queue, label });
        return row.label === cell.label
          ? text("{label}: confirmed.", { label: row.label })
          : text("{before} is now {label}.", { before: cell.label, label: row.label });
      },
      async () => {
        await ask("review.undo", { cell: cell.cell_id, queue });
        at = Math.min(place, cells.length);
        cells.splice(at, 0, cell);
        left += 1;
        show();
        return text("Undone: this cell waits again.");
      },
    );
    if (!done) return;
    cells.splice(place, 1);
    left = Math.max(left - 1, 0);
    await follow();
  });
}

function later() {
  busy = busy.then(async () => {
    const cell = cells[at];
    if (!cell) return;
    const place = at;
    await does(
      async () => {
        if (cells.length - at < 3) await more();
        cells.splice(place, 1);
        cells.push(cell);
        return text("Later: it comes again at the end.");
      },
      async () => {
        cells.splice(cells.indexOf(cell), 1);
        cells.splice(place, 0, cell);
        at = place;
        show();
      },
    );
    await follow();
  });
}

/** Go on with the cell that took the place of the one before. */
async function follow() {
  if (cells.length - at < 3) await more();
  if (at >= cells.length) at = 0;
  show();
}

async function step(by) {
  await busy;
  if (at + by >= cells.length) await more();
  if (at + by < 0 || at + by >= cells.length) return say(by < 0 ? text("This is the first cell.") : text("This is the last cell."));
  at += by;
  show();
}

function turnView() {
  view = views[(views.indexOf(view) + 1) % views.length];
  say({ cell: text("As captured"), normalised: text("Background normalised"), nucleus: text("Nucleus brightened") }[view]);
  show();
}

if (section) {
  const actions = {
    V: [text("As captured, background normalised, nucleus brightened"), turnView],
    O: [text("Open this cell"), () => document.getElementById("open").click()],
    ArrowRight: [text("The next cell, without a decision"), () => step(1)],
    ArrowLeft: [text("The cell before"), () => step(-1)],
  };
  if (may) {
    actions.Enter = [text("The class is right"), () => decide(null)];
    actions.S = [text("Decide later"), later];
    for (const one of classes) if (one.key) actions[one.key] = [one.label, () => decide(one.label)];
  }
  keys(actions);
  section.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (!button) return;
    button.blur(); // Enter goes on to confirm
    if (button.dataset.label) decide(button.dataset.label);
    else (button.dataset.do === "u" ? undo : actions[button.dataset.do][1])();
  });
  await more();
  show();
  section.dataset.ready = "yes";
}
