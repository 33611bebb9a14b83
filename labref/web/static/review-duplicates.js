// Pairs that may be of one cell: both beside each other, or in one place, laid over each other; a key a decision.
import { ask, keys, moment, number, say, text, undo } from "./labref.js";
import { Queue } from "./queue.js";

const section = document.getElementById("pair");
const may = document.body.dataset.role !== "view";
const stage = section?.querySelector(".stage");
const pictures = { other: document.getElementById("other"), cell: document.getElementById("cell") };
const styles = JSON.parse(document.getElementById("styles").textContent);
const views = ["cell", "normalised", "nucleus"];
const PIECE = 256; // pixels of a view around a cell
const AT_ONCE = 50;

let view = views[0];
let mode = "beside"; // or "flicker", "difference"
let shown = "other"; // in one place: which of the two
let last = null; // the pair that is shown
const overlays = new Map();

const address = (cell) => `/cell/${cell}/picture?view=${view}`;
const overlayOf = (pair) => {
  if (!overlays.has(pair.cell_id)) {
    const none = { score: null, rows: 0, columns: 0, turn: 0, mirrored: false };
    const asked = ask("duplicates.overlay", { cell: pair.cell_id, other: pair.duplicate_of });
    overlays.set(pair.cell_id, asked.then(([row]) => row).catch(() => none));
  }
  return overlays.get(pair.cell_id);
};

async function fetch(here) {
  const rows = await ask("duplicates.list", { verdict: "possible_duplicate", limit: here.length + AT_ONCE });
  const there = new Set(here.map((pair) => pair.cell_id));
  return rows.filter((row) => row.kind === "pair" && !there.has(row.cell_id));
}

function show(pair, coming) {
  if (pair !== last) shown = "other";
  last = pair;
  section.hidden = !pair;
  document.getElementById("nothing").hidden = Boolean(pair);
  for (const fact of ["which", "score", "conflict"]) document.getElementById(fact).hidden = !pair;
  if (!pair) return;
  section.dataset.cell = pair.cell_id;
  section.dataset.other = pair.duplicate_of;
  for (const [side, id] of [["other", pair.duplicate_of], ["cell", pair.cell_id]]) {
    if (pictures[side].getAttribute("src") !== address(id)) pictures[side].src = address(id);
    const about = pair[side];
    const label = section.querySelector(`[data-label="${side}"]`);
    label.textContent = about?.label ?? "";
    label.className = `class ${styles[about?.label] ?? ""}`;
    section.querySelector(`[data-about="${side}"]`).textContent = [about?.slide, about?.slide_folder, moment(about?.captured_at)].filter(Boolean).join(" · ");
  }
  document.getElementById("score").textContent =
    pair.score === null ? "" : text("alike to {score} of 1", { score: number(pair.score, 2) });
  document.getElementById("conflict").hidden = !pair.conflict;
  lay(pair);
  for (const next of coming) {
    for (const id of [next.cell_id, next.duplicate_of]) new Image().src = address(id);
    overlayOf(next);
  }
}

/** Put the two pictures where the mode wants them; in one place the later lies on the earlier as registration says. */
async function lay(pair) {
  stage.dataset.mode = mode;
  stage.dataset.shown = shown;
  const which = { other: text("the earlier"), cell: text("the later") }[shown];
  document.getElementById("which").textContent =
    { flicker: text("In one place: {which}", { which }), difference: text("Difference: black where they agree") }[mode] ?? "";
  pictures.cell.style.transform = "";
  if (mode === "beside") return;
  const found = await overlayOf(pair);
  if (queue.now !== pair || mode === "beside") return;
  const share = 100 / PIECE;
  pictures.cell.style.transform =
    `translate(${found.columns * share}%, ${found.rows * share}%) rotate(${found.turn}deg)${found.mirrored ? " scaleX(-1)" : ""}`;
  stage.dataset.laid = found.rows || found.columns || found.turn ? "registered" : "centred";
}

function flicker() {
  if (mode === "flicker") shown = shown === "other" ? "cell" : "other";
  mode = "flicker";
  if (queue.now) lay(queue.now);
}

function change(to) {
  mode = mode === to ? "beside" : to;
  shown = "other";
  if (queue.now) lay(queue.now);
}

const queue = new Queue("duplicates", {
  fetch,
  show,
  words: {
    first: text("This is the first pair."),
    last: text("This is the last pair."),
    undone: text("Undone: this pair waits again."),
  },
});

function decide(operation, said) {
  queue.decide(
    async (pair) => {
      await ask(operation, { cell: pair.cell_id, undecided: true });
      return said;
    },
    (pair) => ask("duplicates.undo", { cell: pair.cell_id, of: pair.duplicate_of, own: true }),
  );
}

function turnView() {
  view = views[(views.indexOf(view) + 1) % views.length];
  say({ cell: text("As captured"), normalised: text("Background normalised"), nucleus: text("Nucleus brightened") }[view]);
  queue.show();
}

if (section) {
  const actions = {
    " ": [text("Both in one place: switch between them"), flicker],
    D: [text("Show where they differ"), () => change("difference")],
    B: [text("Both side by side"), () => change("beside")],
    V: [text("As captured, background normalised, nucleus brightened"), turnView],
    ArrowRight: [text("The next pair, without a decision"), () => queue.step(1)],
    ArrowLeft: [text("The pair before"), () => queue.step(-1)],
  };
  if (may) {
    actions.Y = [text("One cell: the later repeats the earlier"), () => decide("duplicates.confirm", text("One cell."))];
    actions.N = [text("Two cells"), () => decide("duplicates.reject", text("Two cells."))];
    actions.S = [text("Decide later"), () => queue.later()];
  }
  keys(actions);
  for (const button of section.querySelectorAll("[data-do]")) {
    button.addEventListener("click", () => {
      button.blur(); // Space goes on to switch the pictures
      (button.dataset.do === "u" ? undo : actions[button.dataset.do][1])();
    });
  }
  await queue.begin();
  section.dataset.ready = "yes";
}
