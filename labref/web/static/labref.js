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
  return new Intl.NumberFormat(language, { minimumFractionDigits: digits, maximumFractionDigits: digits }).format(value);
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

/** Rows of an operation of /api/v1. What goes wrong is thrown as an Error with the agent's own words. how : more of what
 * `fetch` takes, such as `keepalive`. */
export async function ask(operation, parameters = {}, how = {}) {
  const response = await fetch(`/api/v1/${operation.replaceAll(".", "/")}`, {
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

/** What a label stands for that is an abbreviation which labref knows; nothing for any other. */
export function fullName(label) {
  const name = label.trim().toLowerCase();
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

let mouse = "";

/** Whether somebody points at something with this event. A cell that slides under a mouse at rest is not pointed at: a
 * key would reach a cell that nobody looks at. */
export function pointsAt(event) {
  if (event.type !== "pointermove") return true;
  const at = `${event.screenX} ${event.screenY}`;
  const moved = at !== mouse;
  mouse = at;
  return moved;
}

let before = "";

document.addEventListener("keydown", (event) => {
  const typing = event.target.closest?.("input:not([type=checkbox], [type=radio]), textarea, select, [contenteditable]");
  // Enter and Space press what has the focus
  const pressing = (event.key === "Enter" || event.key === " ") && event.target.closest?.("a[href], button, summary, input");
  if (typing || pressing || event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
  const both = `${before} ${event.key}`;
  const found = known.get(both) ?? known.get(event.key);
  before = event.key === "g" && !found ? "g" : "";
  if (found) {
    event.preventDefault();
    found.action(event);
  }
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
