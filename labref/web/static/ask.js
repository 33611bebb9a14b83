// A picture that is dropped or pasted on any page is asked about; nothing of it is stored.
import { say, text } from "./labref.js";

const form = document.getElementById("ask-form");
const holds = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");

function send(files) {
  const [file] = files;
  if (!file) return;
  if (files.length > 1) say(text("Only the first of these pictures is asked about."));
  const carried = new DataTransfer();
  carried.items.add(file);
  form.elements.image.files = carried.files;
  form.submit();
}

addEventListener("dragover", (event) => {
  if (!holds(event)) return;
  event.preventDefault();
  document.documentElement.classList.add("dropping");
});
addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) document.documentElement.classList.remove("dropping");
});
addEventListener("drop", (event) => {
  document.documentElement.classList.remove("dropping");
  if (!holds(event)) return;
  event.preventDefault();
  send(event.dataTransfer.files);
});
addEventListener("paste", (event) => {
  if (event.clipboardData?.files.length) {
    event.preventDefault();
    send(event.clipboardData.files);
  }
});
