// A queue of cells: one large, with what lies near it; the key of a class decides, Enter says that the class is right.
import { ask, keys, say, share, sure, text, undo } from "./labref.js";
import { Queue } from "./queue.js";

const section = document.getElementById("queue");
const name = section?.dataset.queue;
const may = document.body.dataset.role !== "view";
const classes = JSON.parse(document.getElementById("classes").textContent);
const doubts = JSON.parse(document.getElementById("doubts").textContent);
const withheld = JSON.parse(document.getElementById("withheld").textContent);
const styles = Object.fromEntries(classes.map((one) => [one.label, one.style]));
const views = ["cell", "normalised", "nucleus"];
const AT_ONCE = 6;

let view = views[0];

const address = (cell) => `/cell/${cell}/picture?view=${view}`;

async function fetch(here) {
  const there = here.map((cell) => cell.cell_id);
  const rows = await ask("review.cells", { queue: name, limit: AT_ONCE, leave_out: there.slice(-1000) });
  return rows.filter((row) => !there.includes(row.cell_id));
}

function tag(label) {
  const span = document.createElement("span");
  span.className = `class ${styles[label] ?? ""}`;
  span.textContent = label;
  return span;
}

function show(cell, coming) {
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
    cell.neighbourhood !== null
      ? text("Of the cells about it whose class a person or the analyser gave, {share} are {name}.", { share: share(cell.share), name: cell.neighbourhood })
      : name === "pictures"
      ? doubts[cell.doubt] ?? ""
      : cell.because
      ? text("The network's class is withheld: {why}.", { why: withheld[cell.because] })
      : text("The network says {name}, with {share}.", { name: cell.predicted, share: share(cell.probability) });
  document.getElementById("neighbours").replaceChildren(
    ...cell.neighbours.map((one) => {
      const entry = document.createElement("li");
      const link = document.createElement("a");
      const thumb = document.createElement("img");
      link.href = `/cell/${one.cell_id}`;
      thumb.src = `/cell/${one.cell_id}/picture?view=thumb`;
      thumb.alt = "";
      link.append(thumb, tag(one.label), " ", sure(one.label_source));
      entry.append(link);
      return entry;
    }),
  );
  document.getElementById("weights").replaceChildren(
    ...Object.entries(cell.weights).filter(([, part]) => part >= 0.005).slice(0, 4).map(([label, part]) => {
      const entry = document.createElement("li");
      const meter = document.createElement("meter");
      const said = document.createElement("span");
      meter.max = 1;
      meter.value = part;
      said.textContent = meter.textContent = share(part);
      entry.append(tag(label), meter, said);
      return entry;
    }),
  );
  document.getElementById("open").href = `/cell/${cell.cell_id}`;
  for (const next of coming) {
    new Image().src = address(next.cell_id);
    for (const one of next.neighbours) new Image().src = `/cell/${one.cell_id}/picture?view=thumb`;
  }
}

const queue = new Queue(name, {
  fetch,
  show,
  words: {
    first: text("This is the first cell."),
    last: text("This is the last cell."),
    undone: text("Undone: this cell waits again."),
  },
});

/** Give the cell a class, or say that the one that is shown is right (null). */
function decide(label) {
  queue.decide(
    async (cell) => {
      const [row] = await ask("review.decide", { cell: cell.cell_id, queue: name, label, seen: cell.label });
      return row.label === cell.label
        ? text("{label}: confirmed.", { label: row.label })
        : text("{before} is now {label}.", { before: cell.label, label: row.label });
    },
    (cell) => ask("review.undo", { cell: cell.cell_id, queue: name }),
  );
}

function turnView() {
  view = views[(views.indexOf(view) + 1) % views.length];
  say({ cell: text("As captured"), normalised: text("Background normalised"), nucleus: text("Nucleus brightened") }[view]);
  queue.show();
}

if (section) {
  const actions = {
    V: [text("As captured, background normalised, nucleus brightened"), turnView],
    O: [text("Open this cell"), () => document.getElementById("open").click()],
    ArrowRight: [text("The next cell, without a decision"), () => queue.step(1)],
    ArrowLeft: [text("The cell before"), () => queue.step(-1)],
  };
  if (may) {
    actions.Enter = [text("The class is right"), () => decide(null)];
    actions.S = [text("Decide later"), () => queue.later()];
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
  await queue.begin();
  section.dataset.ready = "yes";
}
