// A smear as a gallery: point at a cell, or go there with the arrows, and press the key of a class.
import { ask, carriedNow, does, keys, moment, number, pointsAt, say, share, text, undo } from "./labref.js";

const slide = document.querySelector(".slide");
const gallery = document.getElementById("gallery");
const may = document.body.dataset.role !== "view";
const tiles = () => [...gallery.querySelectorAll(".tile")];
const awaits = (tile) => tile.dataset.source !== "reviewed";
const sectionOf = (label) => [...gallery.querySelectorAll(".of-class")].find((one) => one.dataset.label === label);

// which cell is meant: the one pointed at or gone to last

let now = null;
let held = null; // gone to or clicked last: a mouse on its way to a button passes over others
let anchor = null; // where Shift+arrows began

function show(tile, { scroll = false, focus = false } = {}) {
  now?.classList.remove("now");
  now = tile;
  if (!tile) return;
  tile.classList.add("now");
  if (focus) held = tile;
  for (const one of gallery.querySelectorAll('.tile[tabindex="0"]')) one.tabIndex = -1;
  tile.tabIndex = 0;
  if (focus) tile.focus({ preventScroll: true });
  if (scroll) tile.scrollIntoView({ block: "nearest" });
  const picture = document.getElementById("now-picture");
  picture.src = `/cell/${tile.dataset.cell}/picture?view=captured`;
  const says = document.getElementById("now-says");
  says.textContent = tile.dataset.label;
  const by = { reviewed: text("reviewed"), analyser: text("by the analyser"), predicted: text("predicted") }[tile.dataset.source];
  const when = moment(tile.dataset.captured ?? tile.dataset.stored);
  const more = document.getElementById("now-more");
  more.textContent = [by, tile.dataset.confidence, when].filter(Boolean).join(" · ");
  document.getElementById("now-none").hidden = true;
  for (const one of [picture, says, more]) one.hidden = false;
}

gallery.addEventListener("pointermove", (event) => {
  const tile = event.target.closest(".tile");
  if (pointsAt(event) && tile && tile !== now) show(tile);
});
gallery.addEventListener("focusin", (event) => {
  const tile = event.target.closest(".tile");
  if (tile && tile !== now) show(tile, { scroll: true });
});

function neighbour(key) {
  const all = tiles();
  if (!now?.isConnected) return all[0];
  const at = all.indexOf(now);
  if (key === "ArrowLeft" || key === "ArrowRight") return all[at + (key === "ArrowRight" ? 1 : -1)];
  const here = now.getBoundingClientRect();
  const down = key === "ArrowDown";
  let best = null;
  let least = Infinity;
  for (let i = at + (down ? 1 : -1); all[i]; i += down ? 1 : -1) {
    const box = all[i].getBoundingClientRect();
    const rows = Math.abs(box.top - here.top);
    if (rows < here.height / 2) continue;
    if (best && Math.abs(box.top - best.getBoundingClientRect().top) > here.height / 2) break; // beyond the next row
    const away = Math.abs(box.left - here.left);
    if (away < least) [best, least] = [all[i], away];
  }
  return best;
}

// selecting several

const selected = () => tiles().filter((tile) => tile.ariaSelected === "true");
const select = (tile, on = true) => (tile.ariaSelected = String(on));
const clear = () => selected().forEach((tile) => select(tile, false));

function range(from, to) {
  const all = tiles();
  const [first, last] = [all.indexOf(from), all.indexOf(to)].sort((a, b) => a - b);
  all.forEach((tile, i) => select(tile, i >= first && i <= last));
}

function arrow(event) {
  const to = neighbour(event.key);
  if (!to) return;
  if (event.shiftKey) {
    anchor ??= now ?? to;
    range(anchor, to);
  } else anchor = null;
  show(to, { scroll: true, focus: true });
}

gallery.addEventListener("click", (event) => {
  const tile = event.target.closest(".tile");
  if (!tile) return;
  if (event.shiftKey && now) range(anchor ?? now, tile);
  else if (event.ctrlKey || event.metaKey) select(tile, tile.ariaSelected !== "true");
  else clear();
  if (!event.shiftKey) anchor = tile;
  show(tile, { focus: true });
});
gallery.addEventListener("dblclick", (event) => {
  const tile = event.target.closest(".tile");
  if (tile) location.assign(`/cell/${tile.dataset.cell}`);
});

// counts and the differential

const counts = new Map();
for (const row of document.querySelectorAll("tr[data-class]")) {
  const cell = row.querySelector("[data-count-of]");
  counts.set(row.dataset.class, Number(cell.textContent.replace(/\D/g, "")));
}
const kinds = Object.fromEntries([...gallery.querySelectorAll(".of-class")].map((one) => [one.dataset.label, one.dataset.kind]));

function recount() {
  const of = (kind) => [...counts].reduce((sum, [label, count]) => sum + (kinds[label] === kind ? count : 0), 0);
  const leukocytes = of("leukocyte");
  const white = Number(document.getElementById("white").value) || 0;
  for (const [label, count] of counts) {
    const part = kinds[label] === "leukocyte" && count && leukocytes ? count / leukocytes : null;
    for (const [name, value] of [
      ["count", number(count)],
      ["share", part === null ? "" : share(part, 1)],
      ["absolute", part === null || !white ? "" : number(part * white, 2)],
    ]) {
      for (const cell of document.querySelectorAll(`[data-${name}-of="${CSS.escape(label)}"]`)) cell.textContent = value;
    }
  }
  for (const cell of document.querySelectorAll("[data-absolute]")) cell.hidden = !white;
  document.getElementById("leukocytes").textContent = text("{number} leukocytes counted.", { number: number(leukocytes) });
  const erythroblasts = of("erythroblast");
  const said = document.getElementById("erythroblasts");
  said.hidden = !erythroblasts || !leukocytes;
  if (leukocytes) said.textContent = text("{number} erythroblasts for 100 leukocytes.", { number: number(Math.round((1000 * erythroblasts) / leukocytes) / 10) });
}

let waiting = Number(document.getElementById("awaiting").dataset.count);

function recountAwaiting(step) {
  waiting += step;
  document.getElementById("done").value = Number(slide.dataset.cells) - waiting;
  document.getElementById("awaiting").textContent = waiting
    ? text("{number} await review", { number: number(waiting) })
    : text("all reviewed");
}

document.getElementById("white").disabled = false;
document.getElementById("white").addEventListener("input", recount);

// giving classes

/** Put a tile where its class is, as what it carries now. */
function place(tile, label, source, confidence) {
  const before = tile.dataset.label;
  recountAwaiting((source === "reviewed" ? 0 : 1) - (awaits(tile) ? 1 : 0));
  tile.dataset.source = source;
  if (confidence) tile.dataset.confidence = confidence;
  else delete tile.dataset.confidence;
  const says = tile.querySelector(".says");
  says.replaceChildren();
  if (source === "reviewed") {
    const sure = document.createElement("span");
    sure.className = "sure";
    sure.textContent = "✓";
    says.append(sure);
  } else says.append(source === "analyser" ? text("analyser") : (confidence ?? ""));
  if (label !== before) {
    counts.set(before, counts.get(before) - 1);
    counts.set(label, (counts.get(label) ?? 0) + 1);
    tile.dataset.label = label;
    tile.ariaLabel = label;
    for (const mark of tile.querySelectorAll(".mark:not(.repeat)")) mark.remove();
    const from = tile.closest(".of-class");
    const to = sectionOf(label);
    to.hidden = false;
    to.querySelector(".tiles").prepend(tile);
    from.hidden = !from.querySelector(".tile");
    recount();
  }
  if (tile === now) show(tile);
}

let doing = Promise.resolve(); // one after the other, in the order of the keys

/** Give cells a class; the page shows it at once, and takes it back where the lab refuses. */
function give(chosen, label) {
  if (!chosen.length) return;
  const before = chosen.map((tile) => ({ tile, ...tile.dataset }));
  for (const tile of chosen) place(tile, label, "reviewed");
  const back = ({ tile, label: was, source, confidence }) => place(tile, was, source, confidence);
  doing = doing.then(async () => {
    const given = [];
    const done = await does(
      async () => {
        for (const one of before) {
          const [row] = await ask("label.set", { cell: one.cell, label, seen: one.label });
          if (row.outcome !== "older") given.push(one);
        }
        return chosen.length === 1 ? "" : text("{number} cells are {label}", { number: chosen.length, label });
      },
      async () => {
        for (const one of given.reverse()) {
          const [row] = await ask("label.undo", { cell: one.cell, label });
          place(one.tile, row.label, row.label_source, row.label === one.label ? one.confidence : undefined);
        }
        if (given.length) show(given.at(-1).tile, { scroll: true, focus: true });
      },
    );
    if (!done) {
      for (const one of before.filter((other) => !given.includes(other))) {
        const now = await carriedNow(one.cell).catch(() => null); // what was refused is told already
        if (now && now.label !== one.label) place(one.tile, now.label, now.source);
        else back(one);
      }
    }
    if (before.some((one) => one.label !== label)) standing();
  });
}

/** The next cell that awaits review after this one, or from the beginning on. */
function following(tile) {
  const all = tiles();
  const at = all.indexOf(tile);
  return [...all.slice(at + 1), ...all.slice(0, Math.max(0, at))].find(awaits);
}

function key(label, meant = now) {
  const several = selected();
  const chosen = several.length ? several : meant ? [meant] : [];
  if (!chosen.length) return say(text("Point at a cell, or press an arrow key."));
  const last = chosen.at(-1);
  const byKeyboard = document.activeElement === now;
  // found before the cell moves away
  const next = byKeyboard ? following(last) ?? tiles()[tiles().indexOf(last) + 1] : null;
  give(chosen, label);
  clear();
  anchor = null;
  if (next && !chosen.includes(next)) show(next, { scroll: true, focus: true });
}

function confirm() {
  const several = selected();
  if (!several.length && !now) return next();
  const by = new Map();
  for (const tile of several.length ? several : [now]) by.set(tile.dataset.label, [...(by.get(tile.dataset.label) ?? []), tile]);
  const last = several.at(-1) ?? now;
  const to = following(last);
  for (const [label, chosen] of by) give(chosen.filter(awaits), label);
  clear();
  anchor = null;
  if (to && to !== last) show(to, { scroll: true, focus: true });
  else if (!waiting) say(document.getElementById("approve")?.hidden ? text("No cell here awaits review.") : text("All cells are reviewed. A approves the slide."));
}

function next() {
  const to = following(now);
  if (to) show(to, { scroll: true, focus: true });
  else say(text("No cell here awaits review."));
}

function confirmClass() {
  if (!now) return;
  const chosen = [...now.closest(".of-class").querySelectorAll(".tile")].filter(awaits);
  give(chosen, now.dataset.label);
}

// dragging to another class

let dragged = null;
for (const section of gallery.querySelectorAll(".of-class")) {
  section.addEventListener("dragover", (event) => {
    if (!dragged || section.dataset.label === dragged.dataset.label) return;
    event.preventDefault();
    section.classList.add("over");
  });
  section.addEventListener("dragleave", () => section.classList.remove("over"));
  section.addEventListener("drop", (event) => {
    event.preventDefault();
    section.classList.remove("over");
    const several = selected();
    if (dragged) give(several.includes(dragged) ? several : [dragged], section.dataset.label);
    clear();
  });
}
gallery.addEventListener("dragstart", (event) => (dragged = event.target.closest?.(".tile")));
gallery.addEventListener("dragend", () => (dragged = null));

// approval

const approval = document.getElementById("approval");

function standing(row) {
  // a label that changed ends the approval
  const given = row ? row.approval : undefined;
  const holds = given?.standing === "approved";
  if (row) {
    approval.className = holds ? "good" : "quiet-text";
    approval.textContent = holds
      ? `✓ ${text("approved by {who}", { who: given.who ?? text("the lab") })}`
      : text("not approved");
  } else if (document.getElementById("unapprove")?.hidden === false) {
    approval.className = "mark";
    approval.textContent = text("labels changed since it was approved");
  }
  for (const [id, hidden] of [["approve", holds], ["unapprove", !holds]]) {
    const button = document.getElementById(id);
    if (button) button.hidden = hidden;
  }
}

/** What whoever approves has seen: others may have changed the slide meanwhile. */
const looked = () => ({ cells: Number(slide.dataset.cells), seen: Number(slide.dataset.seen) });

const approved = async (operation, more = {}) => {
  const [row] = await ask(operation, { slide: slide.dataset.slide, ...more });
  standing(row);
};
/** Whether to approve a slide of which nobody reviewed some cells: asked each time, answered by one key. */
function approveUnreviewed() {
  const dialog = document.getElementById("unreviewed");
  const all = number(Number(slide.dataset.cells));
  document.getElementById("unreviewed-title").textContent =
    waiting === 1
      ? text("Nobody has reviewed 1 of the {all} cells.", { all })
      : text("Nobody has reviewed {number} of the {all} cells.", { number: number(waiting), all });
  dialog.returnValue = "";
  return new Promise((done) => {
    dialog.addEventListener("close", () => done(dialog.returnValue === "approve"), { once: true });
    dialog.showModal();
  });
}
document.getElementById("unreviewed")?.addEventListener("keydown", (event) => {
  const answer = { y: "approve", Y: "approve", n: "", N: "" }[event.key];
  if (answer === undefined || event.ctrlKey || event.metaKey || event.altKey) return;
  event.preventDefault();
  event.stopPropagation(); // small letters give classes to the cell below
  event.currentTarget.close(answer);
});

/** Approve the slide: at once where all is reviewed. */
async function approve() {
  const asked = waiting;
  if (asked && !(await approveUnreviewed())) return;
  doing = doing.then(() => {
    if (waiting > asked) return void approve(); // a class that was being given is refused meanwhile: nobody knew
    return does(
      async () => {
        await approved("slide.approve", looked());
        return text("Approved.");
      },
      () => approved("slide.unapprove"),
    );
  });
}
function unapprove() {
  doing = doing.then(() =>
    does(
      async () => {
        await approved("slide.unapprove");
        return text("The approval is taken back.");
      },
      () => approved("slide.approve", looked()),
    ),
  );
}

// keys

function larger() {
  localStorage.setItem("labref-larger", gallery.classList.toggle("larger") ? "yes" : "");
  fit();
  now?.scrollIntoView({ block: "nearest" });
}

// sides of pictures, in the page's rem
const [LEAST, MOST, LARGER] = [6.4, 14, 1.6];

/** Make the pictures as large as lets the whole smear be in the window, where it can be; else as small as can be judged. */
function fit() {
  const rem = parseFloat(getComputedStyle(document.documentElement).fontSize);
  const [width, gap] = [gallery.clientWidth, 0.35 * rem];
  const height = innerHeight - (gallery.getBoundingClientRect().top + scrollY) - 4.5 * rem;
  const ofClass = [...gallery.querySelectorAll(".of-class:not([hidden])")].map((one) => one.querySelectorAll(".tile").length);
  let [side, drawn] = [LEAST, LEAST * rem];
  for (let tried = MOST; tried > LEAST; tried -= 0.2) {
    const columns = Math.max(1, Math.floor((width + gap) / (tried * rem + gap)));
    const stretched = (width - (columns - 1) * gap) / columns;
    const rows = ofClass.reduce((sum, count) => sum + Math.ceil(count / columns), 0);
    if (rows * (stretched + gap) + ofClass.length * 2.3 * rem > height) continue;
    [side, drawn] = [tried, stretched];
    break;
  }
  const more = gallery.classList.contains("larger") ? LARGER : 1;
  gallery.style.setProperty("--tile", `${side * more}rem`);
  // a thumbnail has 160 pixels
  if (drawn * more * devicePixelRatio > 220 && tiles().length <= 300) {
    for (const picture of gallery.querySelectorAll(".tile img")) picture.src = picture.src.replace("view=thumb", "view=cell");
  }
}
if (localStorage.getItem("labref-larger")) gallery.classList.add("larger");
fit();
addEventListener("resize", fit);

const way = (name) => [name, arrow];
keys({
  ArrowRight: way(text("The next cell; with Shift select")),
  ArrowLeft: way(text("The cell before; with Shift select")),
  ArrowDown: way(text("The cell below; with Shift select")),
  ArrowUp: way(text("The cell above; with Shift select")),
  Home: [text("The first cell"), () => show(tiles()[0], { scroll: true, focus: true })],
  End: [text("The last cell"), () => show(tiles().at(-1), { scroll: true, focus: true })],
  " ": [text("Select this cell, or not"), () => now && select(now, now.ariaSelected !== "true")],
  Escape: [text("Select none"), clear],
  O: [text("Open this cell"), () => now && location.assign(`/cell/${now.dataset.cell}`)],
  Z: [text("Larger or smaller pictures"), larger],
  S: [text("The other order"), () => document.querySelector("[data-order]").click()],
});
if (may) {
  keys({
    Enter: [text("Confirm the class shown, and go on to the next that awaits review"), confirm],
    N: [text("The next cell that awaits review"), next],
    C: [text("Confirm the class of all cells of this class"), confirmClass],
    A: [text("Approve the slide"), approve],
    u: [text("Undo"), () => (doing = doing.then(undo))],
  });
  for (const button of document.querySelectorAll("[data-give]")) {
    const label = button.dataset.give;
    button.addEventListener("click", () => key(label, held ?? now));
    if (button.dataset.classKey) keys({ [button.dataset.classKey]: [label, () => key(label)] });
  }
  for (const tile of tiles()) tile.draggable = true;
  document.getElementById("next").addEventListener("click", next);
  document.getElementById("approve").addEventListener("click", approve);
  document.getElementById("unapprove").addEventListener("click", unapprove);
}
if (tiles().length) tiles()[0].tabIndex = 0;
