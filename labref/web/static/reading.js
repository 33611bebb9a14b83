// A blinded reading: one key an answer, its seconds kept; whoever comes back goes on where they left off.
import { ask, keys, say, sure, text } from "./labref.js";

const section = document.getElementById("reading");
const reading = Number(section?.dataset.reading);
const triplets = section?.dataset.kind === "triplets";
const classes = JSON.parse(document.getElementById("classes").textContent);
const styles = Object.fromEntries(classes.map((one) => [one.label, one.style]));
const AHEAD = 4;
const MOST_SECONDS = 3600;

let waiting = []; // tasks, in their order; the first is shown
let current = null;
let began = null; // when its pictures were there; null while they are not, or the page is hidden
let looked = 0; // milliseconds before that
let busy = Promise.resolve(); // answers are sent one after the other, in their order
const given = new Set(); // answered here, perhaps not written yet
const unsent = new Set(); // answers that wait for others before them

const name = (one) => `${one.task} ${one.arm}`;
const address = (one, part) => `/reading/${reading}/picture/${one.task}/${one.arm}/${part}`;

async function more() {
  const rows = await ask("reading.next", { reading, limit: AHEAD + given.size > 10 ? 10 : AHEAD + given.size });
  waiting = rows.filter((row) => row.task !== null && !given.has(name(row)));
  return rows[0];
}

function show() {
  const task = waiting[0] ?? null;
  section.hidden = task === null;
  document.getElementById("nothing").hidden = task !== null;
  if (current !== task) {
    current = task;
    began = null;
    looked = 0;
  }
  if (task === null) return;
  section.dataset.task = name(task);
  document.getElementById("done").textContent = task.done;
  document.getElementById("bar").value = task.done;
  const pictures = [...section.querySelectorAll("img[data-part]")];
  for (const picture of pictures) picture.src = address(task, picture.dataset.part);
  if (!triplets) {
    const list = document.getElementById("references");
    list.replaceChildren(
      ...task.parts.map((one) => {
        const entry = document.createElement("li");
        const picture = document.createElement("img");
        const label = document.createElement("span");
        picture.src = address(task, one.part);
        picture.alt = "";
        label.className = `class ${styles[one.label] ?? ""}`;
        label.textContent = one.label;
        entry.append(picture, label, " ", sure(one.reviewed ? "reviewed" : null));
        pictures.push(picture);
        return entry;
      }),
    );
    document.getElementById("alone").hidden = task.parts.length > 0;
  }
  Promise.allSettled(pictures.map((picture) => picture.decode())).then(() => {
    if (current === task && began === null && !document.hidden) began = performance.now();
    section.dataset.ready = name(task);
  });
  for (const next of waiting.slice(1, 3)) {
    for (const part of [0, ...next.parts.map((one) => one.part)]) new Image().src = address(next, part);
  }
}

document.addEventListener("visibilitychange", () => {
  if (document.hidden && began !== null) {
    looked += performance.now() - began;
    began = null;
  } else if (!document.hidden && current) {
    began = performance.now();
  }
});

function answer(choice) {
  const task = waiting[0];
  if (!task || (began === null && looked === 0)) return; // nobody answers a picture that is not there yet
  const seconds = Math.min((looked + (began === null ? 0 : performance.now() - began)) / 1000, MOST_SECONDS);
  const said = { reading, task: task.task, arm: task.arm, choice, seconds };
  waiting.shift();
  given.add(name(task));
  unsent.add(said);
  show();
  busy = busy.then(async () => {
    if (!unsent.delete(said)) return;
    try {
      await ask("reading.answer", said, { keepalive: true });
    } catch (error) {
      say(error.message, { failed: true, seconds: 12 });
    }
    given.delete(name(task));
    if (waiting.length < AHEAD / 2 || !current) {
      const before = current && name(current);
      await more();
      if (!waiting[0] || name(waiting[0]) !== before) show();
      else current = waiting[0];
    }
  });
}

// whoever leaves the page loses no answer
addEventListener("pagehide", () => {
  for (const said of unsent) ask("reading.answer", said, { keepalive: true }).catch(() => {});
  unsent.clear();
});

function takeBack() {
  busy = busy.then(async () => {
    try {
      await ask("reading.undo", { reading });
      await more();
      show();
      say(text("Undone: answer it again."));
    } catch (error) {
      say(error.message, { failed: true });
    }
  });
}

if (section) {
  const actions = triplets
    ? {
        1: [text("The first is more like the middle one"), () => answer("1")],
        2: [text("The second is more like the middle one"), () => answer("2")],
        0: [text("Neither is particularly alike"), () => answer("0")],
      }
    : Object.fromEntries(classes.filter((one) => one.key).map((one) => [one.key, [one.label, () => answer(one.label)]]));
  if (!triplets) actions.N = [text("It cannot be told"), () => answer(null)];
  keys(actions);
  keys({ u: [text("Take back the last answer"), takeBack] });
  section.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (!button) return;
    button.blur();
    if ("undo" in button.dataset) takeBack();
    else answer(button.dataset.choice || null);
  });
  await more();
  show();
}
