// The cells that come in, by themselves: the agent says that something is new, and this page asks for it.
import { ask, keys, reach, say, text } from "./labref.js";

const MOST = 240; // cells that stay on the page
const coming = document.getElementById("coming");
const state = document.getElementById("state");
let latest = Number(coming.querySelector("[data-latest]").dataset.latest);
let stream = null;
let asking = Promise.resolve();

async function update() {
  const response = await reach(`/live/new?after=${latest}`);
  if (response.status === 401 || response.redirected) return location.assign("/sign-in?next=%2F");
  if (!response.ok) return;
  const piece = document.createElement("template");
  piece.innerHTML = await response.text();
  latest = Math.max(latest, Number(piece.content.querySelector("[data-latest]").dataset.latest));
  const known = new Set([...coming.querySelectorAll("[data-cell]")].map((one) => one.dataset.cell));
  for (const old of coming.querySelectorAll(".fresh")) old.classList.remove("fresh");
  const home = coming.firstElementChild;
  for (const section of [...piece.content.querySelectorAll(".coming")].reverse()) {
    const fresh = [...section.querySelectorAll("[data-cell]")].filter((one) => !known.has(one.dataset.cell));
    if (!fresh.length) continue;
    for (const one of fresh) one.classList.add("fresh");
    const there = [...coming.querySelectorAll(".coming")].find((one) => one.dataset.slide === section.dataset.slide);
    if (there) {
      there.querySelector("h2").replaceWith(section.querySelector("h2"));
      there.querySelector(".cells").prepend(...fresh);
    }
    home.prepend(there ?? section);
  }
  document.getElementById("nothing")?.remove();
  for (const one of [...coming.querySelectorAll("[data-cell]")].slice(MOST)) one.remove();
  for (const one of coming.querySelectorAll(".coming")) if (!one.querySelector("[data-cell]")) one.remove();
  await mark();
}

/** Ask what deserves a look, a few cells at a time: the newest first. */
async function mark() {
  for (;;) {
    const some = [...coming.querySelectorAll("[data-unmarked]")].slice(0, 12);
    if (!some.length || document.hidden) return;
    const rows = await ask("live.marks", { cells: some.map((one) => one.dataset.cell) });
    for (const one of some) {
      delete one.dataset.unmarked;
      const marks = rows.find((row) => row.cell_id === one.dataset.cell)?.marks;
      if (marks?.novel) add(one, text("novel"));
      else if (marks?.no_class) add(one, text("no class fits"));
      if (marks?.because && one.dataset.source === "predicted") withhold(one);
      if (marks?.disagrees) add(one, text("neighbours: {label}", { label: marks.neighbours }));
    }
  }
}

/** The class that the networks give is shown grey, with a question mark. */
function withhold(one) {
  const name = one.querySelector(".what .class");
  if (!name) return;
  name.textContent += "?";
  name.className = "quiet-text";
}

function add(one, said) {
  const line = document.createElement("span");
  line.className = "mark";
  line.textContent = said;
  one.querySelector(".marks").append(line);
}

const soon = () => (asking = asking.then(update).catch((error) => say(error.message, { failed: true })));

// a browser has six connections for all its pages: one that nobody sees keeps none
function listen() {
  if (document.hidden || stream || paused) return;
  stream = new EventSource("/events");
  stream.addEventListener("open", () => (state.textContent = text("Updates by itself.")));
  stream.addEventListener("message", (event) => Number(event.data) > latest && soon());
  stream.addEventListener("error", () => {
    const ended = stream?.readyState === EventSource.CLOSED;
    state.textContent = ended
      ? text("This page does not update: too many are open, or you are signed out. Load it again.")
      : text("The agent does not answer; trying again.");
  });
}

function hush() {
  stream?.close();
  stream = null;
}

let paused = false;
function pause() {
  paused = !paused;
  if (paused) hush();
  else listen();
  if (paused) state.textContent = text("Paused.");
}

document.addEventListener("visibilitychange", () => (document.hidden ? hush() : listen()));
addEventListener("pagehide", hush);

const links = () => [...coming.querySelectorAll(".cells a")];
function move(event) {
  const all = links();
  const at = all.indexOf(document.activeElement);
  if (at < 0) return all[0]?.focus();
  const box = all[at].getBoundingClientRect();
  const columns = Math.max(1, Math.round(coming.clientWidth / box.width) - 1);
  const step = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns, ArrowUp: -columns }[event.key];
  all[Math.max(0, Math.min(all.length - 1, at + step))].focus();
}
keys({
  ArrowRight: [text("The next cell"), move],
  ArrowLeft: [text("The cell before"), move],
  ArrowDown: [text("The cell below"), move],
  ArrowUp: [text("The cell above"), move],
  P: [text("Pause, or go on"), pause],
});
listen();
mark().catch((error) => say(error.message, { failed: true }));
