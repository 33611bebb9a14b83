// Cells in a list: point at one, or go there with Tab or the arrows, and press the key of a class.
import { ask, does, keys, pointsAt, say, text } from "./labref.js";

const may = document.body.dataset.role && document.body.dataset.role !== "view";
const tiles = (within) => [...within.querySelectorAll(".tile[data-cell]")];
let now = null;

function show(tile) {
  now?.classList.remove("now");
  now = tile;
  now?.classList.add("now");
}

for (const kind of ["pointermove", "focusin"]) {
  document.addEventListener(kind, (event) => {
    const tile = event.target.closest?.(".gallery .tile[data-cell]");
    if (pointsAt(event) && tile && tile !== now) show(tile);
  });
}
// a key must not reach a cell that is no longer pointed at
document.addEventListener("pointerout", (event) => {
  if (now && now === event.target.closest?.(".tile") && !now.contains(event.relatedTarget) && !now.contains(document.activeElement)) show(null);
});

/** Go from cell to cell where one has the focus; false where none has. */
export function step(event) {
  const tile = document.activeElement?.closest?.(".gallery .tile[data-cell]");
  if (!tile) return false;
  const all = tiles(tile.parentElement);
  const wide = all.filter((one) => one.offsetTop === all[0].offsetTop).length;
  const by = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -wide, ArrowDown: wide }[event.key];
  const to = all[all.indexOf(tile) + by];
  to?.querySelector("a").focus();
  return true;
}

/** The cell that is pointed at: a list may have been made anew about the one that has the focus. */
const pointed = () => (now?.isConnected ? now : document.activeElement?.closest?.(".gallery .tile[data-cell]"));

const styles = new Map();

function call(cell, label, source) {
  for (const tile of document.querySelectorAll(`.tile[data-cell="${cell}"]`)) {
    tile.dataset.label = label;
    tile.dataset.source = source;
    const shown = tile.querySelector("[data-class]");
    shown.textContent = label;
    shown.className = `class ${styles.get(label) ?? ""}`;
    tile.querySelector("img").alt = label;
  }
}

/** Called after a label changed. */
export const changed = new Set();

async function set(tile, label) {
  const { cell, label: before } = tile.dataset;
  if (label === before && tile.dataset.source === "reviewed") return;
  await does(
    async () => {
      const [row] = await ask("label.set", { cell, label, seen: before });
      call(cell, row.label, "reviewed");
      changed.forEach((tell) => tell());
      return text("{before} is now {label}", { before, label });
    },
    async () => {
      const [row] = await ask("label.undo", { cell, label });
      call(cell, row.label, row.label_source);
      changed.forEach((tell) => tell());
      return text("{label} again", { label: row.label });
    },
  );
}

async function classKeys() {
  for (const { label, style, key } of await ask("classes.list")) {
    styles.set(label, style);
    if (key) keys({ [key]: [text("The cell is: {label}", { label }), () => pointed() && set(pointed(), label)] });
  }
}

if (may) classKeys().catch((error) => say(error.message, { failed: true }));
