// What every page can do: ask the agent, say what happened, undo it, and be used by the keyboard alone.

const texts = JSON.parse(document.getElementById("texts").textContent);

/** A text in the language of the page; {name} in it is replaced by values.name. */
export function text(english, values = {}) {
  return (texts[english] ?? english).replace(/\{(\w+)\}/g, (whole, name) => values[name] ?? whole);
}

// numbers and moments, as the filters of the templates write them

const language = document.documentElement.lang;

/** A number. digits : after the point; up to three where that is not said. */
export function number(value, digits) {
  const format = new Intl.NumberFormat(language, { minimumFractionDigits: digits, maximumFractionDigits: digits });
  const written = format.format(value);
  return written === format.format(-0) ? format.format(0) : written;
}

/** A share of one in per cent, which no line tears apart: "35 %". */
export function share(value, digits = 0) {
  return `${number(100 * value, digits)}\u00a0%`;
}

const days = new Intl.DateTimeFormat(language, { dateStyle: "medium" });
const clock = new Intl.DateTimeFormat(language, { timeStyle: "short" });

/** A moment as operations give it, in this computer's time; nothing for none. */
export function moment(value) {
  if (!value) return "";
  const at = new Date(value);
  return Number.isNaN(at.getTime()) ? value : `${days.format(at)} ${clock.format(at)}`;
}

/** Say something for a few seconds, to screen readers too. */
export function say(message, { failed = false, seconds = 6 } = {}) {
  const said = document.getElementById("said");
  for (const old of [...said.children].filter((one) => one.textContent === message)) old.remove(); // said again, it stands once
  const line = document.createElement("p");
  line.textContent = message;
  line.className = failed ? "failed" : "";
  said.append(line);
  setTimeout(() => line.remove(), seconds * 1000);
}

/** What `fetch` answers. Raises Error, with words for a person, where nobody answers. */
export async function reach(address, how = {}) {
  try {
    return await fetch(address, how);
  } catch {
    throw new Error(text("The agent does not answer. Try again in a minute."));
  }
}

/** Rows of an operation of /api/v1. What goes wrong is thrown as an Error with the agent's own words. how : more of what
 * `fetch` takes, such as `keepalive`. */
export async function ask(operation, parameters = {}, how = {}) {
  const response = await reach(`/api/v1/${operation.replaceAll(".", "/")}`, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(parameters),
    ...how,
  });
  return rowsOf(response);
}

/** Rows of an answer: one JSON object, or JSON lines. */
export async function rowsOf(response) {
  if (response.status === 401) location.assign(`/sign-in?next=${encodeURIComponent(location.pathname)}`);
  const lines = (await response.text()).split("\n").filter(Boolean).map((line) => JSON.parse(line));
  const failed = lines.find((row) => row.error);
  if (failed || !response.ok) throw new Error(failed?.error.message ?? `${response.status}`);
  return lines.filter((row) => !row.progress);
}

/** The class that a cell carries now, and its source: for a page that was refused a change since somebody else made one. */
export async function carriedNow(cell) {
  const [{ label, label_source: source }] = await ask("label.history", { cell });
  return { label, source };
}

const abbreviations = JSON.parse(document.getElementById("abbreviations").textContent);

/** A class's name without what the spellings of one class differ in: case, punctuation, the plural; `name_key` of the
 * lab's own part does the same. */
function nameKey(name) {
  const words = name.normalize("NFC").split(/[^\p{L}\p{N}]+/u).map((word) => word.toUpperCase().toLowerCase());
  const one = (word) => (word.length > 3 && /s$/.test(word) && !/(ss|us|is)$/.test(word) ? word.slice(0, -1) : word);
  return words.filter(Boolean).map(one).join(" ");
}

/** What a label stands for that is an abbreviation which labref knows; nothing for any other. */
export function fullName(label) {
  const name = nameKey(label);
  return Object.hasOwn(abbreviations, name) ? abbreviations[name] : "";
}

// wherever a class stands, whoever points at it reads what it is short for
document.addEventListener("pointerover", (event) => {
  const name = event.target.closest?.(".class");
  if (name) name.title = fullName(name.textContent);
});

/** The mark of a class that a person gave, as `sure` of cells.html makes it. */
export function sure(source) {
  if (source !== "reviewed") return "";
  const mark = document.createElement("span");
  mark.className = "good";
  mark.title = text("reviewed by a person");
  mark.textContent = "✓";
  const words = document.createElement("span");
  words.className = "hidden";
  words.textContent = ` ${mark.title}`;
  mark.append(words);
  return mark;
}

// a picture that is not there says so, instead of an empty frame
function shows(image, there) {
  if (image.classList.contains("missing") === !there) return;
  image.classList.toggle("missing", !there);
  [image.alt, image.dataset.alt] = there ? [image.dataset.alt, ""] : [text("The picture is missing."), image.alt];
}
for (const [what, there] of [["error", false], ["load", true]]) {
  document.addEventListener(what, ({ target }) => target instanceof HTMLImageElement && shows(target, there), { capture: true });
}
for (const image of document.images) if (image.complete && image.currentSrc && !image.naturalWidth) shows(image, false);

// undo: what was done last is undone first
const done = [];

/** Do something that can be undone. `make` does it and resolves to what is said; `unmake` takes it back. */
export async function does(make, unmake) {
  try {
    const said = await make();
    done.push(unmake);
    if (said) say(said);
    return true;
  } catch (error) {
    say(error.message, { failed: true, seconds: 12 });
    return false;
  }
}

/** Take back what was done last on this page. */
export async function undo() {
  const unmake = done.pop();
  if (!unmake) return say(text("There is nothing to undo."));
  try {
    say((await unmake()) ?? text("Undone."));
  } catch (error) {
    say(error.message, { failed: true, seconds: 12 });
  }
}

// keys
const known = new Map();

/** Let keys do things: {key: [what it does, function]}. A key is that of KeyboardEvent.key, or two after each other ("g s"). */
export function keys(given) {
  for (const [key, [about, action]] of Object.entries(given)) known.set(key, { about, action });
}

/** Let keys do nothing again. */
export function withoutKeys(names) {
  for (const name of names) known.delete(name);
}

let mouse = null; // where it was last; a browser tells so once a page is there, also of a mouse at rest
let moved = false;

document.addEventListener("pointermove", (event) => {
  moved = false;
  if (event.pointerType === "touch") return;
  const at = `${event.screenX} ${event.screenY}`;
  moved = mouse !== null && at !== mouse;
  mouse = at;
}, { capture: true });

/** Whether somebody points at something with this event. A cell that slides under a mouse at rest is not pointed at, nor
 * one under a finger that scrolls: a key would reach a cell that nobody looks at. */
export function pointsAt(event) {
  return event.type !== "pointermove" || moved;
}

let before = "";
let ofDialog = false; // whether the key that is down was pressed in a dialog: held on, it repeats when the dialog is gone
const MOVES = /^(Arrow.*|[+-])$/;
const inDialog = () => document.querySelector("dialog[open]") !== null;

document.addEventListener("keydown", (event) => {
  if (!event.repeat) ofDialog = inDialog();
}, { capture: true });

document.addEventListener("keydown", (event) => {
  if (event.repeat && ofDialog && !inDialog()) return event.preventDefault();
  const typing = event.target.closest?.("input:not([type=checkbox], [type=radio]), textarea, select, [contenteditable]");
  // Enter and Space press what has the focus
  const pressing = (event.key === "Enter" || event.key === " ") && event.target.closest?.("a[href], button, summary, input");
  if (typing || pressing || event.ctrlKey || event.metaKey || event.altKey || inDialog()) return;
  const both = `${before} ${event.key}`;
  const found = known.get(both) ?? known.get(event.key);
  before = event.key === "g" && !found ? "g" : "";
  if (!found) return;
  event.preventDefault();
  // held on, a key goes on moving; it does not give a class to one cell after another
  if (!event.repeat || MOVES.test(event.key)) found.action(event);
});

const CAPS = { " ": text("Space"), Escape: "Esc", ArrowLeft: "←", ArrowRight: "→", ArrowUp: "↑", ArrowDown: "↓" };

/** Show which keys do what. */
export function showKeys() {
  const list = document.getElementById("keys-list");
  list.replaceChildren();
  for (const [key, { about }] of known) {
    const term = document.createElement("dt");
    for (const part of key === " " ? [key] : key.split(" ")) {
      const cap = document.createElement("kbd");
      cap.textContent = CAPS[part] ?? part;
      term.append(cap, " ");
    }
    const meaning = document.createElement("dd");
    meaning.textContent = about;
    list.append(term, meaning);
  }
  const dialog = document.getElementById("keys");
  dialog.showModal();
  dialog.scrollTop = 0; // the focus is on the button at its end
}

keys({ "?": [text("Show the keys of this page"), showKeys] });
for (const link of document.querySelectorAll("[data-go]")) {
  keys({ [`g ${link.dataset.go}`]: [text("Go to {page}", { page: link.textContent }), () => link.click()] });
}
if (document.body.dataset.role && document.body.dataset.role !== "view") keys({ u: [text("Undo"), undo] });
document.querySelector("[data-keys-help]")?.addEventListener("click", showKeys);
for (const form of document.querySelectorAll("form[data-immediate]")) form.addEventListener("change", () => form.submit());
