// The queues: a key leads to each.

import { keys } from "./labref.js";

for (const link of document.querySelectorAll("[data-key]")) {
  keys({ [link.dataset.key]: [link.querySelector(".name").firstChild.textContent.trim(), () => link.click()] });
}
