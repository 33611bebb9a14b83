// Pairs that may be of one cell: both beside each other, or in one place, laid over each other; a key a decision.
import { ask, does, keys, moment, number, say, text, undo } from "./labref.js";

const section = document.getElementById("pair");
const may = document.body.dataset.role !== "view";
const stage = section?.querySelector(".stage");
const pictures = { other: document.getElementById("other"), cell: document.getElementById("cell") };
const styles = JSON.parse(document.getElementById("styles").textContent);
const views = ["cell", "normalised", "nucleus"];
const PIECE = 256; // pixels of a view around a cell
const AT_ONCE = 50;

let pairs = []; // that wait, in their order; none is ever left out
let at = 0;
let left = Number(document.getElementById("left").textContent.replace(/\D/g, ""));
let view = views[0];
let mode = "beside"; // or "flicker", "difference"
let shown = "other"; // in one place: which of the two
let busy = Promise.resolve(); // one decision after the other, however fast the keys come
const overlays = new Map();

const address = (cell) => `/cell/${cell}/picture?view=${view}`;
const overlayOf = (pair) => {
  if (!overlays.has(pair.cell_id)) {
    const none = { score: null, rows: 0, columns: 0, turn: 0 };
    const asked = ask("duplicates.overlay", { cell: pair.cell_id, other: pair.duplicate_of });
    overlays.set(pair.cell_id, asked.then(([row]) => row).catch(() => none));
  }
  return overlays.get(pair.cell_id);
};

async function more() {
  const rows = await ask("duplicates.list", { verdict: "possible_duplicate", limit: pairs.length + AT_ONCE });
  const there = new Set(pairs.map((pair) => pair.cell_id));
  pairs.push(...rows.filter((row) => row.kind === "pair" && !there.has(row.cell_id)));
}

async function show() {
  document.getElementById("left").textContent = left;
  const pair = pairs[at];
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
    section.querySelector(`[data-about="${side}"]`).textContent = [about?.slide, moment(about?.captured_at)].filter(Boolean).join(" · ");
  }
  document.getElementById("score").textContent =
    pair.score === null ? "" : text("alike to {score} of 1", { score: number(pair.score) });
  document.getElementById("conflict").hidden = !pair.conflict;
  lay(pair);
  for (const next of pairs.slice(at + 1, at + 3)) {
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
  if (pairs[at] !== pair || mode === "beside") return;
  const share = 100 / PIECE;
  pictures.cell.style.transform =
    `translate(${found.columns * share}%, ${found.rows * share}%) rotate(${found.turn}deg)`;
  stage.dataset.laid = found.rows || found.columns || found.turn ? "registered" : "centred";
}

function flicker() {
  if (mode === "flicker") shown = shown === "other" ? "cell" : "other";
  mode = "flicker";
  if (pairs[at]) lay(pairs[at]);
}

function change(to) {
  mode = mode === to ? "beside" : to;
  shown = "other";
  if (pairs[at]) lay(pairs[at]);
}

async function step(by) {
  await busy;
  if (at + by >= pairs.length) await more();
  if (at + by < 0 || at + by >= pairs.length) return say(by < 0 ? text("This is the first pair.") : text("This is the last pair."));
  at += by;
  shown = "other";
  show();
}

function decide(operation, said) {
  busy = busy.then(async () => {
    const pair = pairs[at];
    if (!pair) return;
    const place = at;
    const done = await does(
      async () => {
        await ask(operation, { cell: pair.cell_id });
        return said;
      },
      async () => {
        await ask("duplicates.undo", { cell: pair.cell_id });
        at = Math.min(place, pairs.length);
        pairs.splice(at, 0, pair);
        left += 1;
        await show();
        return text("Undone: this pair waits again.");
      },
    );
    if (!done) return;
    pairs.splice(place, 1);
    left -= 1;
    await follow();
  });
}

function later() {
  busy = busy.then(async () => {
    const pair = pairs[at];
    if (!pair) return;
    const place = at;
    await does(
      async () => {
        pairs.splice(place, 1);
        pairs.push(pair);
        return text("Later: it comes again at the end.");
      },
      async () => {
        pairs.splice(pairs.indexOf(pair), 1);
        pairs.splice(place, 0, pair);
        at = place;
        await show();
      },
    );
    await follow();
  });
}

/** Go on with the pair that took the place of the one before. */
async function follow() {
  if (pairs.length - at < 5) await more();
  if (at >= pairs.length) at = 0;
  shown = "other";
  await show();
}

function turnView() {
  view = views[(views.indexOf(view) + 1) % views.length];
  say({ cell: text("As captured"), normalised: text("Background normalised"), nucleus: text("Nucleus brightened") }[view]);
  show();
}

if (section) {
  const actions = {
    " ": [text("Both in one place: switch between them"), flicker],
    D: [text("Show where they differ"), () => change("difference")],
    B: [text("Both side by side"), () => change("beside")],
    V: [text("As captured, background normalised, nucleus brightened"), turnView],
    ArrowRight: [text("The next pair, without a decision"), () => step(1)],
    ArrowLeft: [text("The pair before"), () => step(-1)],
  };
  if (may) {
    actions.Y = [text("One cell: the later repeats the earlier"), () => decide("duplicates.confirm", text("One cell."))];
    actions.N = [text("Two cells"), () => decide("duplicates.reject", text("Two cells."))];
    actions.S = [text("Decide later"), later];
  }
  keys(actions);
  for (const button of section.querySelectorAll("[data-do]")) {
    button.addEventListener("click", () => {
      button.blur(); // Space goes on to switch the pictures
      (button.dataset.do === "u" ? undo : actions[button.dataset.do][1])();
    });
  }
  await more();
  await show();
  section.dataset.ready = "yes";
}
