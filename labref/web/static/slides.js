// The list of slides by keyboard.
import { keys, say, text } from "./labref.js";

const rows = [...document.querySelectorAll("a[data-row]")];

function move(step) {
  const at = rows.indexOf(document.activeElement);
  rows[Math.max(0, Math.min(rows.length - 1, at < 0 ? 0 : at + step))]?.focus();
}

const boxes = [...document.querySelectorAll('input[name="slide"]')];
const beside = document.getElementById("beside");

function chosenTwo(event) {
  if (boxes.filter((box) => box.checked).length !== 2) {
    event.preventDefault();
    say(text("Choose two slides, then look at them beside each other."));
  }
}

beside.addEventListener("submit", chosenTwo);
keys({
  ArrowDown: [text("The next slide"), () => move(1)],
  ArrowUp: [text("The slide before"), () => move(-1)],
  X: [text("Choose this slide"), () => document.activeElement.closest("tr")?.querySelector("input")?.click()],
  B: [text("Show two beside each other"), () => beside.requestSubmit()],
  F: [text("Search by name"), () => document.getElementById("search").focus()],
});
for (const button of document.querySelectorAll("[data-key]")) {
  keys({ [button.dataset.key]: [button.firstChild.textContent.trim(), () => button.click()] });
}
