// The page of one cell: keys for its class and its references; all nine pictures are zoomed and moved together.
import { ask, carriedNow, does, fullName, keys, moment, say, text, undo } from "./labref.js";

const page = document.getElementById("cell-page");
const nine = document.getElementById("nine");
const cell = page.dataset.cell;
document.documentElement.classList.add("scripts");

// zoom and place: of all nine
const LARGEST = 12;
const FIRST = 1; // large cells fill the piece
const kept = Number(localStorage.getItem("labref-cell-zoom"));
const lens = { zoom: kept >= 1 && kept <= LARGEST ? kept : FIRST, x: 0, y: 0 };

function show() {
  // nothing but picture is ever in the frame: half of what stands out of it, in shares of the frame
  const most = (lens.zoom - 1) / 2;
  lens.x = Math.max(-most, Math.min(most, lens.x));
  lens.y = Math.max(-most, Math.min(most, lens.y));
  nine.style.setProperty("--zoom", lens.zoom);
  nine.style.setProperty("--x", `${100 * lens.x}%`);
  nine.style.setProperty("--y", `${100 * lens.y}%`);
}

/** Zoom by a factor; what lies at (x, y), in shares of the frame from its middle, stays there. */
function zoom(factor, x = 0, y = 0) {
  const before = lens.zoom;
  lens.zoom = Math.max(1, Math.min(LARGEST, before * factor));
  lens.x = x - ((x - lens.x) * lens.zoom) / before;
  lens.y = y - ((y - lens.y) * lens.zoom) / before;
  localStorage.setItem("labref-cell-zoom", lens.zoom);
  show();
}

nine.addEventListener(
  "wheel",
  (event) => {
    const frame = event.target.closest(".frame");
    if (!frame || event.ctrlKey) return;
    event.preventDefault();
    const box = frame.getBoundingClientRect();
    const [x, y] = [(event.clientX - box.left) / box.width - 0.5, (event.clientY - box.top) / box.height - 0.5];
    zoom(Math.exp(-Math.sign(event.deltaY) * Math.min(0.25, Math.abs(event.deltaY) / 400)), x, y);
  },
  { passive: false },
);

let drag = null;
let dragged = false;
nine.addEventListener("pointerdown", (event) => {
  const frame = event.target.closest(".frame");
  if (!frame || event.button !== 0) return;
  drag = { x: event.clientX, y: event.clientY, side: frame.clientWidth };
  dragged = false;
});
addEventListener("pointermove", (event) => {
  if (!drag) return;
  const [x, y] = [event.clientX - drag.x, event.clientY - drag.y];
  if (!dragged && Math.hypot(x, y) < 5) return;
  dragged = true;
  nine.classList.add("panning");
  lens.x += x / drag.side;
  lens.y += y / drag.side;
  Object.assign(drag, { x: event.clientX, y: event.clientY });
  show();
});
for (const end of ["pointerup", "pointercancel"]) {
  addEventListener(end, () => {
    drag = null;
    nine.classList.remove("panning");
  });
}
nine.addEventListener("click", (event) => dragged && event.preventDefault(), true);
nine.addEventListener("dragstart", (event) => event.preventDefault());
for (const button of document.querySelectorAll("[data-zoom]")) {
  button.addEventListener("click", () => zoom(button.dataset.zoom === "in" ? 1.25 : 0.8));
}
show();

// which picture
const VIEWS = ["cell", "normalised", "nucleus"];

function look(view) {
  page.dataset.view = view;
  for (const picture of document.querySelectorAll("#nine img, .contrast img")) picture.src = picture.dataset[view];
  for (const link of document.querySelectorAll("[data-choice=view]")) {
    if (link.dataset.value === view) link.setAttribute("aria-current", "true");
    else link.removeAttribute("aria-current");
  }
  for (const link of document.querySelectorAll(".choices a, .nine a")) {
    if (link.dataset.choice === "view") continue;
    const address = new URL(link.href);
    address.searchParams.set("view", view);
    link.href = address;
  }
  if (cell) {
    const address = new URL(location.href);
    address.searchParams.set("view", view);
    history.replaceState(null, "", address);
  }
}
for (const link of document.querySelectorAll("[data-choice=view]")) {
  link.addEventListener("click", (event) => {
    event.preventDefault();
    look(link.dataset.value);
  });
}

/** Go to the choice of this kind that is not taken. */
function other(choice) {
  document.querySelector(`[data-choice=${choice}]:not([aria-current])`)?.click();
}

// the focus, in the nine
const stops = [...nine.children].map((tile) => (tile.matches(".query") ? tile : tile.querySelector("a.frame, .frame[tabindex]")));

function go(rows, columns) {
  const now = Math.max(0, stops.findIndex((stop) => stop && stop === document.activeElement));
  const from = stops.includes(document.activeElement) ? now : 4;
  const [row, column] = [Math.floor(from / 3) + rows, (from % 3) + columns];
  if (row < 0 || row > 2 || column < 0 || column > 2) return;
  stops[3 * row + column]?.focus();
}

keys({
  ArrowLeft: [text("To the picture on the left"), () => go(0, -1)],
  ArrowRight: [text("To the picture on the right"), () => go(0, 1)],
  ArrowUp: [text("To the picture above"), () => go(-1, 0)],
  ArrowDown: [text("To the picture below"), () => go(1, 0)],
  "+": [text("All pictures larger"), () => zoom(1.25)],
  "-": [text("All pictures smaller"), () => zoom(0.8)],
  Z: [text("All pictures as at first"), () => { Object.assign(lens, { zoom: FIRST, x: 0, y: 0 }); zoom(1); }],
  V: [text("Next kind of picture: as captured, background even, nucleus brighter"), () => look(VIEWS[(VIEWS.indexOf(page.dataset.view) + 1) % VIEWS.length])],
});
if (document.querySelector("[data-choice=by][data-value=map]")) keys({ M: [text("References by map, or the nearest"), () => other("by")] });
if (document.querySelector("[data-choice=optics]")) keys({ O: [text("References of the same or of any optics"), () => other("optics")] });

// what a person says
const buttons = [...document.querySelectorAll(".classes button")];

const SOURCES = { reviewed: "reviewed by a person", analyser: "the analyser's class", predicted: "predicted, not reviewed" };

let carried = document.getElementById("label")?.textContent.trim(); // the class that is shown

/** The name of a class, in its colour. */
function named(label) {
  const name = document.createElement("span");
  name.className = `class ${buttons.find((one) => one.dataset.label === label)?.dataset.style ?? ""}`;
  name.textContent = label;
  return name;
}

function called(label, source) {
  carried = label;
  for (const place of [document.getElementById("label"), document.querySelector("#query .line b")]) {
    place.replaceChildren(named(label));
  }
  document.getElementById("short-for").textContent = fullName(label);
  document.getElementById("source").textContent = text(SOURCES[source]);
  press(label);
  document.title = document.title.replace(/^.* · /, `${label} · `);
}

function press(label) {
  for (const one of buttons) one.setAttribute("aria-pressed", String(one.dataset.label === label));
}

/** Write down in the record that this person gave the cell a class now, as it stands there when the page is loaded anew. */
function note(label) {
  const line = document.createElement("li");
  const when = document.createElement("span");
  when.className = "quiet-text";
  when.textContent = moment(new Date().toISOString());
  const who = document.body.dataset.who;
  line.append(when, " ", named(label), who ? `, ${who}` : "");
  const record = document.getElementById("record");
  record.append(line);
  record.scrollTop = record.scrollHeight; // the record alone: the page stays at the pictures
}

async function setClass(label) {
  const done = await does(
    async () => {
      const [row] = await ask("label.set", { cell, label, seen: carried });
      called(row.label, "reviewed");
      if (row.outcome === "same") return text("It is reviewed as {label} already.", { label });
      note(row.label);
      return text("Now {label}, it was {previous}.", { label: row.label, previous: row.previous });
    },
    async () => {
      const [row] = await ask("label.undo", { cell, label });
      called(row.label, row.label_source);
      note(row.label);
      return text("It is {label} again.", { label: row.label });
    },
  );
  if (done) return;
  const now = await carriedNow(cell).catch(() => null); // what was refused is told already
  if (now && now.label !== carried) called(now.label, now.source);
}

function reject(everywhere) {
  if (document.activeElement.closest("[data-central]")) return say(text("A central cell is not the lab's: it cannot be left out."));
  const tile = document.activeElement.closest("[data-reference]");
  if (!tile) return say(text("Go to a reference first, with the arrow keys."));
  if (tile.classList.contains("left-out")) return say(text("It is left out already; u takes that back."));
  const asked = { cell: tile.dataset.reference, query: everywhere ? null : cell };
  does(
    async () => {
      await ask("reference.reject", asked);
      tile.classList.add("left-out");
      return everywhere ? text("It is no reference any more, for any cell.") : text("It is no reference of this cell any more.");
    },
    async () => {
      await ask("reference.undo", asked);
      tile.classList.remove("left-out");
      return text("It may be a reference again.");
    },
  );
}

if (cell && document.body.dataset.role !== "view") {
  press(document.getElementById("label").textContent.trim());
  for (const button of buttons) {
    const label = button.dataset.label;
    button.addEventListener("click", () => setClass(label));
    if (button.dataset.key) keys({ [button.dataset.key]: [label, () => setClass(label)] });
  }
  document.querySelector("[data-undo]")?.addEventListener("click", undo);
  keys({
    N: [text("This reference is not a good one for this cell"), () => reject(false)],
    X: [text("This reference is no good one for any cell"), () => reject(true)],
  });
}
